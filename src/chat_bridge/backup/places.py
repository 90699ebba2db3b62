"""Where backups are: a folder, or an object store. What is written appears whole, or not at all."""

import os
import secrets
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from chat_bridge.backup.manifest import BackupError
from chat_bridge.backup.seal import BLOCK, Reader, Writer, library

PART_BYTES = 16 * 1024 * 1024  # an object has 10,000 parts at the most
PARTS_AT_ONCE = 4
HALF = ".part"  # the end of a file's name while it is written

# What an object store is told from `.env` too; more is read from the environment by the library itself.
_CREDENTIALS = {
    "s3": (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
    ),
    "gs": ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY"),
    "az": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"),
}


class Place(Protocol):
    """Files by their names, such as `ID/manifest.json`. Everything raises BackupError."""

    def names(self) -> Sequence[str]:
        """All files, those left half written too."""
        ...

    def writing(self, name: str) -> AbstractContextManager[Writer]:
        """Write a file. It is there, safely stored, when the block ends well; otherwise it is not."""
        ...

    def reading(self, name: str) -> AbstractContextManager[Reader]:
        """Read a file from its beginning."""
        ...

    def delete(self, names: Sequence[str]) -> None:
        """Remove these files, one after the other."""
        ...


def open_place(to: str, environment: Mapping[str, str]) -> Place:
    """The place that BACKUP_TO names. Raises BackupError."""
    scheme, is_url, _ = to.partition("://")
    return Bucket(to, _CREDENTIALS[scheme], environment) if is_url else Folder(Path(to).expanduser())


class Folder:
    """A folder, which may be on another machine. Only its owner can read what is made there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> Sequence[str]:
        with self._errors():
            files = [path for path in self._folder.rglob("*") if path.is_file()]
            return [path.relative_to(self._folder).as_posix() for path in files]

    @contextmanager
    def writing(self, name: str) -> Generator[Writer]:
        path = self._folder / name
        with self._errors():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            half = path.with_name(f"{path.name}.{secrets.token_hex(4)}{HALF}")
            try:
                with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                half.rename(path)
            except BaseException:
                half.unlink(missing_ok=True)
                raise
            for folder in (path.parent, self._folder):
                _sync(folder)

    @contextmanager
    def reading(self, name: str) -> Generator[Reader]:
        with self._errors(), (self._folder / name).open("rb") as file:
            yield file

    def delete(self, names: Sequence[str]) -> None:
        with self._errors():
            for name in names:
                path = self._folder / name
                path.unlink(missing_ok=True)
                with suppress(OSError):  # it is not empty yet
                    path.parent.rmdir()

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise BackupError(f"the folder {self._folder} can't be used ({error.strerror or error})") from error


class Bucket:
    """A place in an object store, reached through obstore."""

    def __init__(self, url: str, credentials: Sequence[str], environment: Mapping[str, str]) -> None:
        self._url = url
        self._obstore = library("obstore")
        self._errors_of_library = library("obstore.exceptions").BaseError
        config = {name.lower(): environment[name] for name in credentials if environment.get(name)}
        endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or ""
        if endpoint and url.startswith("s3://"):
            config["aws_endpoint_url"] = endpoint
        # Without TLS only where the endpoint's own address says so.
        plain = {"allow_http": endpoint.startswith("http://")}
        with self._errors():
            self._store = library("obstore.store").from_url(url, config=config, client_options=plain)

    def names(self) -> Sequence[str]:
        with self._errors():
            return [found["path"] for found in self._obstore.list(self._store).collect()]

    @contextmanager
    def writing(self, name: str) -> Generator[Writer]:
        with self._errors():
            # Not `with`: it would store what was written so far, although the block failed. What is left then are
            # parts without an object, which nobody sees.
            writer: Any = self._obstore.open_writer(
                self._store, name, buffer_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
            )
            yield writer
            writer.close()

    @contextmanager
    def reading(self, name: str) -> Generator[Reader]:
        with self._errors():
            chunks = self._obstore.get(self._store, name).stream(min_chunk_size=BLOCK)
            yield _Chunks(iter(chunks))

    def delete(self, names: Sequence[str]) -> None:
        with self._errors():
            for name in names:
                self._obstore.delete(self._store, name)

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except (self._errors_of_library, OSError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise BackupError(f"{self._url} can't be used: {reason}") from error


class _Chunks:
    """Reads what comes in chunks; a read may give less than it was asked for."""

    def __init__(self, chunks: Any) -> None:
        self._chunks = chunks
        self._chunk = b""

    def read(self, size: int = -1, /) -> bytes:
        if not self._chunk:
            self._chunk = bytes(next(self._chunks, b""))
        piece, self._chunk = (self._chunk, b"") if size < 0 else (self._chunk[:size], self._chunk[size:])
        return piece


def _sync(folder: Path) -> None:
    """Make the names in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
