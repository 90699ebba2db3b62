"""The parameters of a call, which come as JSON, as a form whose nested values are JSON in strings, or with files."""

import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.fake_telegram.errors import bad_request


@dataclass(frozen=True)
class Upload:
    """A file in a call."""

    name: str
    content: bytes
    content_type: str


@dataclass
class Parameters:
    """What a call was given."""

    values: dict[str, Any]
    files: dict[str, Upload] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """A string; empty if it is missing."""
        value = self.values.get(name)
        return "" if value is None else value if isinstance(value, str) else json.dumps(value)

    def integer(self, name: str, default: int = 0) -> int:
        """A number; the real server takes a wrong one as missing."""
        try:
            return int(self.values.get(name, default))
        except (TypeError, ValueError):
            return default

    def flag(self, name: str) -> bool:
        """A truth value."""
        return str(self.values.get(name, "")).lower() in ("true", "yes", "1")

    def nested(self, name: str) -> Any:
        """An object or a list; None if it is missing."""
        value = self.values.get(name)
        if not isinstance(value, str):
            return value
        if not value:
            return None
        try:
            return json.loads(value)
        except ValueError:
            raise bad_request(f"can't parse {name}: can't parse JSON object") from None

    def upload(self, name: str) -> Upload | None:
        """A file that came with the call, in the field itself or named there as `attach://field`."""
        value = self.values.get(name)
        if isinstance(value, str) and value.startswith("attach://"):
            return self.files.get(value.removeprefix("attach://"))
        return self.files.get(name)

    def record(self) -> dict[str, Any]:
        """What goes into the list of calls: nested JSON is read, files are only named."""
        return {name: _read(value) for name, value in self.values.items()} | {
            name: {"file_name": file.name, "size": len(file.content)} for name, file in self.files.items()
        }


def _read(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            pass
    return value


async def read(request: web.Request) -> Parameters:
    """The parameters of a request: those of the address, and those of the body."""
    values: dict[str, Any] = dict(request.query)
    files: dict[str, Upload] = {}
    match request.content_type:
        case "application/json":
            values |= from_json(await request.read())
        case "application/x-www-form-urlencoded" | "multipart/form-data":
            for name, value in (await request.post()).items():
                if isinstance(value, web.FileField):
                    files[name] = Upload(value.filename, value.file.read(), value.content_type)
                else:
                    values[name] = value if isinstance(value, str) else bytes(value).decode()
    return Parameters(values, files)


def from_json(body: bytes) -> dict[str, Any]:
    """The parameters in a JSON body."""
    try:
        values = json.loads(body or b"{}")
    except ValueError:
        raise bad_request("can't parse request: can't parse JSON object") from None
    if not isinstance(values, dict):
        raise bad_request("can't parse request: Expected an Object")
    return values
