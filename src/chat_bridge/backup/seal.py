"""What happens to the bytes of a dump on their way: encrypted as age does, counted and summed as they are stored.

age (https://age-encryption.org) is a public format of encryption in chunks, each with its own proof: nobody needs this
program to open a backup, `age --decrypt --identity FILE` does.
"""

import hashlib
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from chat_bridge.backup.manifest import BackupError
from chat_bridge.settings import how_to_install
from chat_bridge.storage.places import BLOCK, Reader, Writer


@dataclass(frozen=True, slots=True)
class Key:
    """A key of age. With its public half alone (`identity` is None) backups can be made, not opened."""

    recipient: Any
    identity: Any | None


def read_key(text: str) -> Key:
    """Read a key as `age-keygen` writes it. Raises BackupError."""
    x25519 = library("pyrage").x25519
    try:
        if text.startswith("AGE-SECRET-KEY-"):
            identity = x25519.Identity.from_str(text)
            return Key(identity.to_public(), identity)
        return Key(x25519.Recipient.from_str(text), None)
    except Exception as error:  # the library's own are no family, and may show the key
        raise BackupError("BACKUP_KEY is no key of age: copy it as age-keygen gave it") from error


def library(name: str) -> Any:
    """A library of the extra `backup`. They come without types. Raises BackupError when it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        raise BackupError(f"{name} is not installed: {how_to_install('backup')}") from None


class Summed:
    """Counts and sums what is read or written through it."""

    def __init__(self, *, source: Reader | None = None, target: Writer | None = None) -> None:
        self._source = source
        self._target = target
        self._hash = hashlib.sha256()
        self.bytes = 0

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def read(self, size: int = -1, /) -> bytes:
        assert self._source is not None
        data = self._source.read(size)
        self._add(data)
        return data

    def write(self, data: bytes, /) -> int:
        assert self._target is not None
        self._target.write(data)
        self._add(data)
        return len(data)

    def flush(self) -> None:
        """Nothing waits here; the encryption asks for it."""

    def _add(self, data: bytes) -> None:
        self._hash.update(data)
        self.bytes += len(data)


def seal(source: Reader, target: Writer, key: Key | None) -> None:
    """Copy all of it, encrypted if there is a key."""
    if key is None:
        while data := source.read(BLOCK):
            target.write(data)
        return
    pyrage = library("pyrage")
    try:
        pyrage.encrypt_io(_Blocks(source), target, [key.recipient])
    except (pyrage.EncryptError, OSError) as error:
        raise BackupError(f"it can't be encrypted and stored ({error})") from error


def unseal(source: Reader, target: Writer, key: Key | None) -> None:
    """Copy all of it, opened with the key if there is one. Raises BackupError when the key does not fit."""
    if key is None:
        while data := source.read(BLOCK):
            target.write(data)
        return
    if key.identity is None:
        raise BackupError("BACKUP_KEY is the public half of the key: it takes the secret one to open a backup")
    pyrage = library("pyrage")
    try:
        pyrage.decrypt_io(_Blocks(source), target, [key.identity])
    except (pyrage.DecryptError, OSError) as error:
        raise BackupError(f"it can't be decrypted ({error})") from error


class _Blocks:
    """Gives a big block as the small pieces that are asked for."""

    def __init__(self, source: Reader) -> None:
        self._source = source
        self._block = memoryview(b"")

    def read(self, size: int = -1, /) -> bytes:
        if not self._block:
            self._block = memoryview(self._source.read(BLOCK))
        piece, self._block = self._block[:size], self._block[size:]
        return bytes(piece)
