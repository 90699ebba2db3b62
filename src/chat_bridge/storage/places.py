"""Where files are kept: a folder, or an object store. What is written appears whole, or not at all."""

import os
import secrets
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from chat_bridge.errors import PlaceError

BLOCK = 1024 * 1024
PART_BYTES = 16 * 1024 * 1024  # an object has 10,000 parts at the most
PARTS_AT_ONCE = 4
# The library's own three minutes are longer than anybody waits, and its calls can't be interrupted.
RETRY = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
HALF = ".part"  # the end of a file's name while it is written

# What an object store is told from `.env` too, or from files (NAME_FILE); more is read from the environment by the
# library itself.
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
_OF_LIBRARY = ("AWS_", "GOOGLE_", "AZURE_")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


class Reader(Protocol):
    """What bytes come from."""

    def read(self, size: int = -1, /) -> bytes: ...


class Writer(Protocol):
    """What bytes go to."""

    def write(self, data: bytes, /) -> int: ...


class Place(Protocol):
    """Files by their names, such as `ID/manifest.json`. Everything raises PlaceError."""

    def names(self, under: str = "") -> Sequence[str]:
        """All files, those left half written too; or those in a folder, such as `erasures/`."""
        ...

    def writing(self, name: str) -> AbstractContextManager[Writer]:
        """Write a file. It is there, safely stored, when the block ends well; otherwise it is not."""
        ...

    def reading(self, name: str, start: int = 0, block: int = BLOCK) -> AbstractContextManager[Reader]:
        """Read a file from one of its bytes on, about `block` of them being held meanwhile."""
        ...

    def delete(self, names: Sequence[str]) -> None:
        """Remove these files, and what is left of them half written, one after the other; one that is not there is no
        error."""
        ...

    def check(self) -> None:
        """Raise PlaceError if it can't be used, as far as that shows without writing anything."""
        ...


def open_place(to: str, environment: Mapping[str, str]) -> Place:
    """The place that a setting names. Raises PlaceError."""
    scheme, is_url, _ = to.partition("://")
    return Bucket(to, _CREDENTIALS[scheme], environment) if is_url else Folder(Path(to).expanduser())


class Folder:
    """A folder, which may be on another machine. Only its owner can read what is made there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self, under: str = "") -> Sequence[str]:
        with self._errors():
            files = [path for path in (self._folder / under).rglob("*") if path.is_file()]
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
            # Each may be new, and its name is in the one above it.
            for folder in path.parents:
                _sync(folder)
                if folder == self._folder:
                    break

    @contextmanager
    def reading(self, name: str, start: int = 0, block: int = BLOCK) -> Generator[Reader]:
        with self._errors(), (self._folder / name).open("rb", buffering=block) as file:
            file.seek(start)
            yield file

    def delete(self, names: Sequence[str]) -> None:
        with self._errors():
            for name in names:
                path = self._folder / name
                path.unlink(missing_ok=True)
                for half in path.parent.glob(f"{path.name}.*{HALF}"):  # who wrote them was killed
                    half.unlink(missing_ok=True)
                # A backup's own folder goes with it. Deeper ones are for many: somebody may be about to write there.
                if path.parent.parent == self._folder:
                    with suppress(OSError):  # it is not empty yet
                        path.parent.rmdir()

    def check(self) -> None:
        there = next(folder for folder in (self._folder, *self._folder.absolute().parents) if folder.exists())
        with self._errors():
            if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
                raise PermissionError(f"{there} can't be written to")

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise PlaceError(f"the folder {self._folder} can't be used ({error.strerror or error})") from error


class Bucket:
    """A place in an object store, reached through obstore."""

    def __init__(self, url: str, credentials: Sequence[str], environment: Mapping[str, str]) -> None:
        self._url = url
        # Imported where it is used: it takes a while, and has no types.
        self._obstore: Any = import_module("obstore")
        exceptions = import_module("obstore.exceptions")
        self._errors_of_library: Any = exceptions.BaseError
        self._not_found: Any = (exceptions.NotFoundError, FileNotFoundError)
        config = {name.lower(): value for name in credentials if (value := credential(environment, name))}
        endpoint = s3_endpoint(environment)
        if endpoint and url.startswith("s3://"):
            config["aws_endpoint_url"] = endpoint
        # Without TLS only where the endpoint's own address says so.
        plain = {"allow_http": endpoint.startswith("http://"), "connect_timeout": "5s"}
        with self._errors(), _only(environment):
            self._store = import_module("obstore.store").from_url(
                url, config=config, client_options=plain, retry_config=RETRY
            )

    def names(self, under: str = "") -> Sequence[str]:
        with self._errors():
            found = self._obstore.list(self._store, prefix=under.rstrip("/") or None).collect()
            return [each["path"] for each in found]

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
    def reading(self, name: str, start: int = 0, block: int = BLOCK) -> Generator[Reader]:
        with self._errors():
            options = {"range": {"offset": start}} if start else None
            chunks = self._obstore.get(self._store, name, options=options).stream(min_chunk_size=block)
            yield _Chunks(iter(chunks))

    def delete(self, names: Sequence[str]) -> None:
        with self._errors():
            for name in names:
                with suppress(*self._not_found):
                    self._obstore.delete(self._store, name)

    def check(self) -> None:
        with self._errors():
            next(iter(self._obstore.list(self._store, chunk_size=1)), None)

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except (self._errors_of_library, OSError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise PlaceError(f"{self._url} can't be used: {reason}") from error


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


@contextmanager
def _only(environment: Mapping[str, str]) -> Generator[None]:
    """Hide from the library what the process has for another place: it reads the environment too, when a store is
    made."""
    hidden = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_OF_LIBRARY) and environment.get(name) != value
    }
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def s3_endpoint(environment: Mapping[str, str]) -> str:
    """The URL of an S3 server; empty for Amazon's own."""
    return next((environment[name] for name in _ENDPOINTS if environment.get(name)), "")


def credential(environment: Mapping[str, str], name: str) -> str | None:
    """What a variable says, or the file that its `_FILE` names. Raises PlaceError."""
    if value := environment.get(name):
        return value
    file = environment.get(f"{name}_FILE")
    try:
        return Path(file).read_text(encoding="utf-8").strip() if file else None
    except (OSError, UnicodeDecodeError):
        raise PlaceError(f"{name}_FILE: {file} can't be read") from None


def _sync(folder: Path) -> None:
    """Make the names in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
