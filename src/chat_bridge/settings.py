"""Every setting, read once from the environment (and a `.env` file) into one frozen object.

Environment variables win over `.env`. Every secret can also be given as NAME_FILE, the path of a file that holds it,
as Docker and Kubernetes mount them. No value of a secret is ever shown, in no error either.
"""

import ipaddress
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import platformdirs
from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic_core import PydanticUndefined

from chat_bridge.errors import SettingsError
from chat_bridge.model import BusyPolicy
from chat_bridge.texts import TEXTS

APP = "agoric-chat-bridge"


def _url_with(*schemes: str) -> AfterValidator:
    def check(value: SecretStr | str) -> SecretStr | str:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if text.partition("://")[0] not in schemes:  # not parsed: urlsplit's own errors show the password
            raise ValueError(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return value

    return AfterValidator(check)


class RedisPlace(NamedTuple):
    """What a REDIS_URL says: `kind` is empty, cluster or sentinel; a port of 0 is the usual one; `login`, `path` and
    `query` are kept as they were written, with their signs."""

    scheme: str
    kind: str
    login: str
    hosts: Sequence[tuple[str, int]]
    path: str
    query: str


def redis_place(url: str) -> RedisPlace:
    """Read a REDIS_URL; raise ValueError, which shows nothing of it."""
    parts = re.fullmatch(
        r"(?P<scheme>redis|rediss|unix)(?:\+(?P<kind>cluster|sentinel))?://(?P<login>[^/?#]*@)?(?P<hosts>[^/?#@]*)"
        r"(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?",
        url,
    )
    if parts is None:
        raise ValueError("is not a URL; in a password, write %2F for /, %3F for ? and %23 for #")
    scheme, kind, login, hosts, path, query = (parts[name] or "" for name in parts.groupdict())
    places = [re.fullmatch(r"([\w.-]+|\[[\w:.%]+\])(?::(\d{1,5}))?", host) for host in hosts.split(",") if hosts]
    if not all(place and int(place[2] or 0) < 65536 for place in places):
        raise ValueError("must name each server as HOST or HOST:PORT, separated by commas")
    if scheme == "unix" and (kind or hosts or len(path) < 2):
        raise ValueError("must be unix:///PATH")
    if kind and not hosts:
        raise ValueError("must name at least one server")
    if scheme != "unix" and not kind and (len(places) > 1 or not re.fullmatch(r"(/\d*)?", path)):
        raise ValueError("must be redis://HOST:PORT/NUMBER; several servers are redis+cluster:// or redis+sentinel://")
    if kind == "cluster" and path not in ("", "/"):
        raise ValueError("must not have a path: a cluster has one database")
    if kind == "sentinel" and not re.fullmatch(r"/[\w.-]+(/\d*)?", path):
        raise ValueError("must end in /NAME or /NAME/NUMBER: the name that the Sentinels know the servers by")
    named = [(place[1].strip("[]"), int(place[2] or 0)) for place in places if place]
    return RedisPlace(scheme, kind, login, named, path, query)


def _redis_url(value: SecretStr) -> SecretStr:
    redis_place(value.get_secret_value())
    return value


def _postgres_url(value: SecretStr) -> SecretStr:
    try:
        places = urlsplit(value.get_secret_value()).netloc.rpartition("@")[2]
        if not all(re.fullmatch(r"([\w.%~-]+|\[[\w:.%]+\])?(:\d{1,5})?", place) for place in places.split(",")):
            raise ValueError
    except ValueError:  # its own text may show the password
        raise ValueError("is not a URL; in a password, write %2F for /, %3F for ?, %23 for # and %5B for [") from None
    return value


def _json_object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        parsed: object = json.loads(value)
    except ValueError as error:
        raise ValueError("is not JSON") from error
    if not isinstance(parsed, dict):
        raise ValueError("must be a JSON object")
    return cast("dict[str, object]", parsed)


def _known_texts(value: Mapping[str, str]) -> Mapping[str, str]:
    if unknown := sorted(value.keys() - TEXTS["en"].keys()):
        raise ValueError(f"knows no text named {', '.join(unknown)}; the names are {', '.join(TEXTS['en'])}")
    return value


def _comma_list(value: object) -> object:
    if isinstance(value, str):
        return tuple(item.strip() for item in value.split(",") if item.strip())
    return value


def _origin(value: str) -> str:
    if value == "*":
        return value
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query or parts.fragment:
        raise ValueError("each must be an origin: scheme, host and port, no path")
    return value


def _without_credentials(value: str) -> str:
    if "@" in value:
        raise ValueError("must not hold a user name or a password")
    return value


_NAME_VALUE = re.compile(r"\s*[!#$%&'*+.^_`|~0-9A-Za-z-]+\s*=.+")


def _name_values(value: SecretStr) -> SecretStr:
    if not all(_NAME_VALUE.fullmatch(each) for each in value.get_secret_value().split(",")):
        raise ValueError("must be NAME=VALUE, separated by commas; in a value, write %2C for a comma")
    return value


def _network(value: str) -> str:
    try:
        if value != "*":
            ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError("each must be an address or a network, or * for all") from None
    return value


def _telegram_group(value: str) -> str:
    if not re.fullmatch(r"-[0-9]+", value):
        raise ValueError("each must be the id of a group, a negative number")
    return value


def _telegram_user(value: str) -> str:
    if not re.fullmatch(r"[0-9]+|@\w+", value):
        raise ValueError("each must be the id of a person, a number, or a name that begins with @")
    return value


def _headers(value: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
    for name, secret in value.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise ValueError("has a name that no HTTP header may have")
        if not re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", secret.get_secret_value()):
            raise ValueError("has a value that no HTTP header may have")
    return value


def _backup_place(value: str) -> str:
    scheme, is_url, rest = value.partition("://")
    if is_url and (scheme not in ("s3", "gs", "az") or not rest or "@" in rest or "?" in rest):
        raise ValueError("must be a folder, or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX")
    return value


def _attachment_place(value: str) -> str:
    scheme, is_url, rest = value.partition("://")
    if is_url and (scheme not in ("s3", "gs", "az") or not rest or "@" in rest or "?" in rest):
        raise ValueError("must be a bucket, a folder, or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX")
    if not is_url and not re.fullmatch(r"[/~.].*|[a-z0-9][a-z0-9.-]{1,62}", value):
        raise ValueError("must be the name of a bucket, or the path of a folder (beginning with /, ~ or .)")
    return value


def _mime_types(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not re.fullmatch(r"(\*|[a-z]+)/(\*|[a-z0-9][a-z0-9.+-]*\*?)", value):
            raise ValueError(f"{value!r} is no type of files: write such as image/png, image/* or */*")
    return values


def _host_and_port(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError("must be HOST:PORT, such as clamav:3310")
    return value


def _age_key(value: SecretStr) -> SecretStr:
    lines = [line.strip() for line in value.get_secret_value().splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]  # age-keygen writes comments too
    if len(keys) != 1 or not re.fullmatch(r"age1[0-9a-z]{58}|AGE-SECRET-KEY-1[0-9A-Z]{58}", keys[0]):
        raise ValueError("must be a key of age (AGE-SECRET-KEY-1... or age1...), as age-keygen makes it")
    return SecretStr(keys[0])


def _archive_age(value: int) -> int:
    if value < 8:
        raise ValueError("must be 8 or more: until then a message that its platform sends again is known by its row")
    return value


def _timezone(value: str) -> str:
    if value == "UTC":
        return value
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError):
        raise ValueError(f"there is no time zone {value!r}: write such as Asia/Ho_Chi_Minh or UTC") from None
    return value


def _time_of_day(value: str) -> str:
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value):
        raise ValueError("must be a time as HH:MM, from 00:00 to 23:59")
    return value


def _home_folder(value: Path) -> Path:
    try:
        return value.expanduser()
    except RuntimeError:
        raise ValueError("there is no home folder: name another folder") from None


def _user_data_folder() -> Path:
    return Path(platformdirs.user_data_dir(APP, appauthor=False))


def _setting(default: Any, env: str, about: str, example: str, also: str | None = None, **limits: Any) -> Any:
    alias = AliasChoices(env, also) if also else AliasChoices(env)
    return Field(default, validation_alias=alias, description=about, examples=[example], **limits)


_TelegramGroups = Annotated[tuple[Annotated[str, AfterValidator(_telegram_group)], ...], BeforeValidator(_comma_list)]
_TelegramUsers = Annotated[tuple[Annotated[str, AfterValidator(_telegram_user)], ...], BeforeValidator(_comma_list)]


class Settings(BaseModel):
    """What is in force. Build it with `load_settings`, which turns mistakes into one readable message.

    The comments name the groups in which `docs/settings.md` and `.env.example` list the settings.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    # Storage
    database_url: Annotated[SecretStr, _url_with("postgres", "postgresql"), AfterValidator(_postgres_url)] | None = (
        _setting(
            None,
            "DATABASE_URL",
            "PostgreSQL 15 or newer. Not set: an embedded PostgreSQL runs inside the data folder. "
            "`?sslmode=verify-full&sslrootcert=FILE` is TLS with the server's CA checked.",
            "postgresql://agoric:PASSWORD@localhost:5432/agoric",
            also="POSTGRES_URL",
        )
    )
    database_pgbouncer: bool = _setting(
        False, "DATABASE_PGBOUNCER", "DATABASE_URL points at PgBouncer in transaction mode.", "true"
    )
    database_pool_size: int = _setting(
        10, "DATABASE_POOL_SIZE", "Most connections this process opens to PostgreSQL.", "20", ge=2, le=1000
    )
    database_migrate: bool = _setting(
        True, "DATABASE_MIGRATE", "Bring the schema up to date when `serve` starts.", "false"
    )
    database_wait_seconds: float = _setting(
        0.0,
        "DATABASE_WAIT_SECONDS",
        "How long `serve` and `migrate` wait for a PostgreSQL that can't be reached yet.",
        "60",
        ge=0,
        le=3600,
    )
    redis_url: (
        Annotated[
            SecretStr,
            _url_with(
                "redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel"
            ),
            AfterValidator(_redis_url),
        ]
        | None
    ) = _setting(
        None,
        "REDIS_URL",
        "Redis 7 or newer. Not set: a Redis inside the process. A cluster is `redis+cluster://HOST:PORT,HOST:PORT`; "
        "with Sentinels it is `redis+sentinel://HOST:PORT,HOST:PORT/NAME/0`. `rediss` instead of `redis` is TLS, with "
        "`?ssl_ca_certs=FILE` for a CA of your own.",
        "redis://localhost:6379/0",
    )
    session_ttl_seconds: int = _setting(
        3600,
        "SESSION_TTL_SECONDS",
        "How long a conversation counts as active, in Redis and the metrics, after its last message.",
        "1800",
        ge=1,
    )
    data_dir: Annotated[Path, AfterValidator(_home_folder)] = _setting(
        PydanticUndefined,
        "CHAT_BRIDGE_DATA_DIR",
        "Folder of the embedded PostgreSQL and of keys made at the first start. Not set: the system's folder for "
        "data of yours, on Linux ~/.local/share/agoric-chat-bridge.",
        "/var/lib/chat-bridge",
        default_factory=_user_data_folder,
        validate_default=True,
    )

    # Attachments
    attachment_bucket: Annotated[str, AfterValidator(_attachment_place)] | None = _setting(
        None,
        "ATTACHMENT_BUCKET",
        "Where files of messages are kept: a bucket of S3, a URL (`s3://`, `gs://`, `az://`), or a folder. Not set: "
        "the folder `attachments` in CHAT_BRIDGE_DATA_DIR, which one process alone can use; docs/attachments.md tells "
        "all.",
        "s3://bucket/chat-bridge",
    )
    attachment_max_bytes: int = _setting(
        20 * 1024 * 1024, "ATTACHMENT_MAX_BYTES", "Largest file that is kept, in bytes.", "10485760", ge=1, le=2**31
    )
    attachment_types: Annotated[tuple[str, ...], BeforeValidator(_comma_list), AfterValidator(_mime_types)] = _setting(
        ("*/*",),
        "ATTACHMENT_TYPES",
        "Types of files that are kept, as their bytes say, with commas; `*` stands for any.",
        "image/*,application/pdf",
    )
    attachment_link_seconds: int = _setting(
        3600, "ATTACHMENT_LINK_SECONDS", "How long a link to a file is good for.", "600", ge=60, le=86400
    )
    attachment_scanner: Annotated[str, AfterValidator(_host_and_port)] | None = _setting(
        None,
        "ATTACHMENT_SCANNER",
        "HOST:PORT of clamd, the daemon of ClamAV: files are kept only if it finds nothing in them.",
        "clamav:3310",
    )
    agent_file_types: Annotated[tuple[str, ...], BeforeValidator(_comma_list), AfterValidator(_mime_types)] = _setting(
        ("image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf", "text/*"),
        "AGENT_FILE_TYPES",
        "Types of files that the agent gets; of others it is told name, type and size.",
        "image/*",
    )
    agent_file_max_bytes: int = _setting(
        10 * 1024 * 1024,
        "AGENT_FILE_MAX_BYTES",
        "Most bytes of files that the agent gets in one turn.",
        "5242880",
        ge=0,
    )

    # Archives
    archive_after_days: Annotated[int, AfterValidator(_archive_age)] | None = _setting(
        None,
        "ARCHIVE_AFTER_DAYS",
        "Move closed sessions in which nothing has happened for so many days, 8 or more, from PostgreSQL to the place "
        "of attachments, compressed; docs/operate/archive.md tells all. Not set: none.",
        "90",
        le=36500,
    )

    # Backups
    backup_to: Annotated[str, AfterValidator(_backup_place)] | None = _setting(
        None,
        "BACKUP_TO",
        "Where backups go: a folder, or a bucket (`s3://`, `gs://`, `az://`); docs/operate/backup.md tells all.",
        "s3://bucket/chat-bridge",
    )
    backup_key: Annotated[SecretStr, AfterValidator(_age_key)] | None = _setting(
        None,
        "BACKUP_KEY",
        "Encrypt backups with this key of age. The public half will do to make them, not to open them.",
        "age1pshypxg49y40rqt2tqg6j3tfugcyzc2vxk8gt95h50kh3szulu0sx8mvaq",
    )
    backup_every_hours: float | None = _setting(
        None,
        "BACKUP_EVERY_HOURS",
        "`serve` makes a backup when the newest one is so old. Not set: only `chat-bridge backup create` makes them.",
        "24",
        ge=0.1,
        le=8760,
    )
    backup_keep: int = _setting(7, "BACKUP_KEEP", "How many backups are kept, the newest ones.", "30", ge=1)

    # Retention
    retention_days: int | None = _setting(
        None,
        "RETENTION_DAYS",
        "For so many days messages are kept, and what belongs to them. Not set: for ever; docs/operate/retention.md "
        "tells all.",
        "365",
        ge=1,
        le=36500,
    )
    attachment_retention_days: int | None = _setting(
        None,
        "ATTACHMENT_RETENTION_DAYS",
        "For so many days the files of messages are kept, at most as long as these. Not set: as long.",
        "30",
        ge=1,
        le=36500,
    )
    retention_policies: Path | None = _setting(
        None,
        "RETENTION_POLICIES",
        "A TOML file with other lifetimes for some platforms, accounts, groups or private chats.",
        "/etc/chat-bridge/retention.toml",
    )

    # Production
    env: Literal["development", "production"] = _setting(
        "development",
        "CHAT_BRIDGE_ENV",
        "production: refuse to start with anything that must not be public or easily guessed; docs/operate/secure.md "
        "lists the rules.",
        "production",
    )
    private_network: Annotated[tuple[Literal["database", "redis", "storage"], ...], BeforeValidator(_comma_list)] = (
        _setting(
            (),
            "CHAT_BRIDGE_PRIVATE_NETWORK",
            "What is reached over a network of trusted machines only, and so needs no TLS in production: `database`, "
            "`redis`, `storage` (of files and backups), or some of them with commas.",
            "database,redis",
        )
    )
    api_docs: bool | None = _setting(
        None,
        "CHAT_BRIDGE_API_DOCS",
        "Show the API's description at /docs and /openapi.json. Not set: yes, but in production no.",
        "false",
    )

    # Service
    host: str = _setting("127.0.0.1", "CHAT_BRIDGE_HOST", "Address to listen on. 0.0.0.0: all of them.", "0.0.0.0")  # noqa: S104
    port: int = _setting(3000, "PORT", "Port to listen on. 0: any free one.", "8080", ge=0, le=65535)
    api_key: SecretStr | None = _setting(
        None,
        "CHAT_BRIDGE_API_KEY",
        "Key of the REST API, as `Authorization: Bearer KEY`. Not set: the API is closed, but on the embedded default "
        "one is made.",
        "a long random text",
        min_length=16,
    )
    secret: SecretStr | None = _setting(
        None,
        "CHAT_BRIDGE_SECRET",
        "Signs visitors' tokens; the same on every replica. Needed with DATABASE_URL while web chat is on; on the "
        "embedded default one is made.",
        "a long random text",
        min_length=32,
    )
    trusted_proxies: Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], BeforeValidator(_comma_list)] = (
        _setting(
            ("127.0.0.1",),
            "CHAT_BRIDGE_TRUSTED_PROXIES",
            "Addresses and networks whose X-Forwarded-For is believed, comma separated.",
            "10.0.0.0/8",
        )
    )
    max_body_bytes: int = _setting(
        1_048_576, "CHAT_BRIDGE_MAX_BODY_BYTES", "Longest request body taken, in bytes.", "65536", ge=1024
    )
    drain_seconds: float = _setting(
        20.0, "CHAT_BRIDGE_DRAIN_SECONDS", "How long running turns may finish after a stop signal.", "60", ge=0, le=3600
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", "CHAT_BRIDGE_LOG_LEVEL", "Least level that is logged.", "debug"
    )
    log_format: Literal["auto", "text", "json"] = _setting(
        "auto", "CHAT_BRIDGE_LOG_FORMAT", "auto: text on a terminal, JSON elsewhere.", "json"
    )
    log_message_text: bool = _setting(
        False, "CHAT_BRIDGE_LOG_MESSAGE_TEXT", "Write the text of messages into the log.", "true"
    )
    otel_endpoint: Annotated[str, _url_with("http", "https"), AfterValidator(_without_credentials)] | None = _setting(
        None,
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "Send OpenTelemetry traces to this collector, by OTLP over HTTP; needs the extra `otel`. Not set: no traces.",
        "http://localhost:4318",
    )
    otel_headers: Annotated[SecretStr, AfterValidator(_name_values)] | None = _setting(
        None,
        "OTEL_EXPORTER_OTLP_HEADERS",
        "Headers for that collector, as NAME=VALUE, comma separated.",
        "api-key=...",
    )

    # Conversations
    busy_policy: BusyPolicy = _setting(
        BusyPolicy.COLLECT, "BUSY_POLICY", "What a message does that arrives while a turn runs.", "followup"
    )
    coalesce_seconds: float | None = _setting(
        None,
        "COALESCE_SECONDS",
        "How long a first message waits for more of them. Not set: the platform's own value (web chat 0).",
        "1.5",
        ge=0,
        le=60,
    )
    unknown_deliveries: Literal["hold", "resend"] = _setting(
        "hold",
        "UNKNOWN_DELIVERIES",
        "What becomes of a reply when its platform may have it but did not say so. hold: it is marked unknown; resend: "
        "it is sent again, and may be seen twice.",
        "resend",
    )
    queue_cap: int = _setting(
        50,
        "QUEUE_CAP",
        "Most messages that may wait in one conversation; more are stored but skipped.",
        "20",
        ge=1,
        le=1000,
    )
    session_rotation: Literal["none", "idle", "daily"] = _setting(
        "none",
        "SESSION_ROTATION",
        "When a conversation's next message opens a new session, besides after /new. idle: after SESSION_IDLE_MINUTES "
        "without a word; daily: after SESSION_DAILY_AT.",
        "daily",
    )
    session_idle_minutes: int = _setting(
        1440, "SESSION_IDLE_MINUTES", "With SESSION_ROTATION=idle: how long a session may be idle.", "120", ge=5
    )
    session_daily_at: Annotated[str, AfterValidator(_time_of_day)] = _setting(
        "04:00", "SESSION_DAILY_AT", "With SESSION_ROTATION=daily: when the day begins, as HH:MM.", "00:00"
    )
    session_timezone: Annotated[str, AfterValidator(_timezone)] = _setting(
        "UTC", "SESSION_TIMEZONE", "The time zone of SESSION_DAILY_AT.", "Asia/Ho_Chi_Minh"
    )
    session_summary: bool = _setting(
        False,
        "SESSION_SUMMARY",
        "With SESSION_ROTATION: the agent sums up the session that ends, and the new one begins with that.",
        "true",
    )
    lease_seconds: float = _setting(
        30.0, "LEASE_SECONDS", "How long a turn stays its worker's without a renewal.", "60", ge=3, le=600
    )
    turn_timeout_seconds: float = _setting(
        600.0, "TURN_TIMEOUT_SECONDS", "Longest time an agent may take for one turn.", "120", ge=1, le=86400
    )
    max_turns: int = _setting(
        1000, "MAX_TURNS", "Most turns that run at once in this process; more wait in PostgreSQL.", "200", ge=1
    )
    language: Literal["en", "vi"] = _setting("en", "CHAT_BRIDGE_LANGUAGE", "Language of the bridge's own texts.", "vi")
    texts: Annotated[Mapping[str, str], BeforeValidator(_json_object), AfterValidator(_known_texts)] = _setting(
        {}, "CHAT_BRIDGE_TEXTS", "The bridge's own texts in your words, as JSON by name.", '{"error": "Sorry!"}'
    )

    # Agents
    repeat_mode: bool = _setting(False, "REPEAT_MODE", "Answer with the echo agent, whatever else is set.", "true")
    mastra_endpoint: Annotated[str, _url_with("http", "https"), AfterValidator(_without_credentials)] = _setting(
        "http://localhost:4111/api",
        "MASTRA_ENDPOINT",
        "The Mastra server's API, ending in /api.",
        "https://agents.example/api",
    )
    mastra_agent_id: str | None = _setting(
        None, "MASTRA_AGENT_ID", "The Mastra agent that answers. Not set: the echo agent.", "weather-agent"
    )
    mastra_api_key: SecretStr | None = _setting(
        None, "MASTRA_API_KEY", "Sent to Mastra as `Authorization: Bearer KEY`.", "sk-..."
    )
    mastra_headers: Annotated[Mapping[str, SecretStr], BeforeValidator(_json_object), AfterValidator(_headers)] = (
        _setting({}, "MASTRA_HEADERS", "More headers for Mastra, as a JSON object.", '{"X-Team": "support"}')
    )
    mastra_timeout: int = _setting(
        30_000,
        "MASTRA_TIMEOUT",
        "Milliseconds to wait for Mastra to begin its response; silence inside one may last four times that, and two "
        "minutes at least.",
        "60000",
        ge=100,
    )

    # Platforms
    platforms: Annotated[tuple[str, ...], BeforeValidator(_comma_list)] = _setting(
        (), "CHAT_BRIDGE_PLATFORMS", "Adapters of other packages to use, by name, comma separated.", "pager"
    )

    # Telegram
    telegram_enabled: bool = _setting(False, "TELEGRAM_ENABLED", "Answer as a Telegram bot.", "true")
    telegram_bot_token: SecretStr | None = _setting(
        None, "TELEGRAM_BOT_TOKEN", "The bot's token, from @BotFather.", "123456789:AA-your-token"
    )
    telegram_polling: bool | None = _setting(
        None,
        "TELEGRAM_POLLING",
        "true: ask Telegram for messages, which needs no public address; this removes the bot's webhook if it has one. "
        "Not set: so it is too, unless TELEGRAM_WEBHOOK_URL is set.",
        "true",
    )
    telegram_webhook_url: Annotated[str, _url_with("https", "http"), AfterValidator(_without_credentials)] | None = (
        _setting(
            None,
            "TELEGRAM_WEBHOOK_URL",
            "Where Telegram can reach this bridge from the internet; without a path, /webhooks/telegram is added.",
            "https://bot.example.com",
        )
    )
    telegram_webhook_secret_token: SecretStr | None = _setting(
        None,
        "TELEGRAM_WEBHOOK_SECRET_TOKEN",
        "What Telegram has to send along with every webhook request. Not set: one is made from the bot's token.",
        "a long random text of A-Z a-z 0-9 _ -",
    )
    telegram_api_base_url: Annotated[str, _url_with("https", "http"), AfterValidator(_without_credentials)] = _setting(
        "https://api.telegram.org",
        "TELEGRAM_API_BASE_URL",
        "Another Bot API server, such as one of your own.",
        "http://localhost:8081",
    )
    telegram_groups: Literal["mention", "always", "never"] = _setting(
        "mention",
        "TELEGRAM_GROUPS",
        "In groups, answer when addressed (mention), to everything (always) or not at all (never).",
        "always",
    )
    telegram_allow_groups: Annotated[
        tuple[Annotated[str, AfterValidator(_telegram_group)], ...], BeforeValidator(_comma_list)
    ] = _setting(
        (), "TELEGRAM_ALLOW_GROUPS", "Ids of the groups to answer in, comma separated. Not set: all.", "-1002234567890"
    )
    telegram_deny_groups: Annotated[
        tuple[Annotated[str, AfterValidator(_telegram_group)], ...], BeforeValidator(_comma_list)
    ] = _setting((), "TELEGRAM_DENY_GROUPS", "Ids of groups not to answer in.", "-1002234567890")
    telegram_allow_users: Annotated[
        tuple[Annotated[str, AfterValidator(_telegram_user)], ...], BeforeValidator(_comma_list)
    ] = _setting(
        (),
        "TELEGRAM_ALLOW_USERS",
        "Ids (or @names, which can change hands) of the people to answer, comma separated. Not set: all.",
        "5512340001,@linh_tr",
    )
    telegram_deny_users: Annotated[
        tuple[Annotated[str, AfterValidator(_telegram_user)], ...], BeforeValidator(_comma_list)
    ] = _setting((), "TELEGRAM_DENY_USERS", "Ids or @names of people not to answer.", "5512340001")

    # Web chat
    webchat_enabled: bool = _setting(True, "WEBCHAT_ENABLED", "The chat page at /chat and its protocol.", "false")
    webchat_origins: Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], BeforeValidator(_comma_list)] = (
        _setting(
            (), "WEBCHAT_ORIGINS", "Sites that may embed the chat, comma separated; * for all.", "https://example.com"
        )
    )
    webchat_token_seconds: int = _setting(
        30 * 86400, "WEBCHAT_TOKEN_SECONDS", "How long a visitor's token is good for.", "86400", ge=60
    )
    webchat_max_text: int = _setting(
        8000, "WEBCHAT_MAX_TEXT", "Longest text of one message, in characters.", "4000", ge=1, le=1_000_000
    )
    webchat_rate_conversation: int = _setting(
        30, "WEBCHAT_RATE_CONVERSATION", "Messages a minute that one conversation may send.", "10", ge=1
    )
    webchat_rate_address: int = _setting(
        120, "WEBCHAT_RATE_ADDRESS", "Requests a minute that make or change something, from one address.", "60", ge=1
    )

    @property
    def embedded(self) -> bool:
        """True when no DATABASE_URL is set, so that the embedded PostgreSQL is used."""
        return self.database_url is None

    @property
    def docs_open(self) -> bool:
        """Whether the API's description is shown to everybody."""
        return self.env != "production" if self.api_docs is None else self.api_docs


def load_settings(
    environ: Mapping[str, str] | None = None, dotenv: Path | None = Path(".env"), *, serves: bool = False
) -> Settings:
    """Read the settings from the environment and a `.env` file; raise SettingsError with everything that is wrong.
    `serves`: with what only a running bridge can't do without.

    A variable set to the empty text counts as not set. Spaces around a value do not count.
    """
    wrong: list[str] = []
    environ = os.environ if environ is None else environ
    values = _given_values(environ, _read_dotenv(dotenv, wrong) if dotenv is not None else {})
    for field in Settings.model_fields:
        _settle_names(field, values, wrong)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        wrong += dict.fromkeys(_explain(dict(detail)) for detail in details)
        refused = {detail["loc"][0] for detail in details}
        settings = Settings.model_validate({name: text for name, text in values.items() if name not in refused})
    own_secret = settings.embedded or any(name in values for name in _all_names("secret"))
    if serves and settings.webchat_enabled and not own_secret:
        wrong.append(
            "CHAT_BRIDGE_SECRET: is needed together with DATABASE_URL while web chat is on, "
            "so that visitors' tokens stay good after a restart. Make one: openssl rand -hex 32"
        )
    wrong += _telegram_mistakes(settings)
    if settings.backup_every_hours is not None and settings.backup_to is None:
        wrong.append("BACKUP_TO: is needed with BACKUP_EVERY_HOURS. Example: s3://bucket/chat-bridge")
    if wrong:
        lines = "\n".join(f"  - {line}" for line in wrong)
        raise SettingsError(f"the settings can't be used; nothing was started:\n{lines}")
    return settings


def environment(environ: Mapping[str, str] | None = None, dotenv: Path | None = Path(".env")) -> Mapping[str, str]:
    """All environment variables, and what the `.env` file adds to them: for adapters with settings of their own."""
    unreadable: list[str] = []
    own = _read_dotenv(dotenv, unreadable) if dotenv is not None else {}
    return {name: text for name, text in own.items() if text is not None} | dict(
        os.environ if environ is None else environ
    )


def _telegram_mistakes(settings: Settings) -> list[str]:
    wrong: list[str] = []
    token, secret = settings.telegram_bot_token, settings.telegram_webhook_secret_token
    if settings.telegram_enabled and token is None:
        wrong.append("TELEGRAM_BOT_TOKEN: is needed with TELEGRAM_ENABLED=true. @BotFather on Telegram gives you one")
    if token is not None and not re.fullmatch(r"[0-9]{1,20}:[A-Za-z0-9_-]+", token.get_secret_value()):
        wrong.append("TELEGRAM_BOT_TOKEN: must be digits, a colon and letters, as @BotFather gave it")
    if secret is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,256}", secret.get_secret_value()):
        wrong.append("TELEGRAM_WEBHOOK_SECRET_TOKEN: may have up to 256 of the characters A-Z a-z 0-9 _ - only")
    if settings.telegram_polling and settings.telegram_webhook_url is not None:
        wrong.append("TELEGRAM_POLLING=true and TELEGRAM_WEBHOOK_URL exclude each other: keep one of them")
    if settings.telegram_polling is False and settings.telegram_webhook_url is None and settings.telegram_enabled:
        wrong.append("TELEGRAM_WEBHOOK_URL: is needed with TELEGRAM_POLLING=false. Example: https://bot.example.com")
    return wrong


def how_to_install(extra: str) -> str:
    """What to do where the packages of an extra are not there; as true in a checkout as of a published package."""
    return (
        f"install the extra `{extra}` (pip install '{APP}[{extra}]', or in a checkout: "
        f"pip install --editable '.[{extra}]')"
    )


def setting_names(field: str) -> tuple[str, ...]:
    """The environment variables of a field, the first one being its proper name."""
    alias = Settings.model_fields[field].validation_alias
    assert isinstance(alias, AliasChoices)
    return tuple(str(choice) for choice in alias.choices)


def shown(settings: Settings) -> dict[str, str]:
    """Every setting as text by its environment name, secrets masked: what `chat-bridge config` prints."""
    return {setting_names(field)[0]: _show(field, getattr(settings, field)) for field in Settings.model_fields}


SECRETS = (
    "database_url",
    "redis_url",
    "api_key",
    "secret",
    "backup_key",
    "mastra_api_key",
    "mastra_headers",
    "otel_headers",
    "telegram_bot_token",
    "telegram_webhook_secret_token",
)
SECRET_URLS = ("database_url", "redis_url")
MASK = "********"


def _read_dotenv(path: Path, wrong: list[str]) -> dict[str, str | None]:
    try:
        return dotenv_values(path, interpolate=False) if path.is_file() else {}
    except (OSError, ValueError) as error:
        wrong.append(f"{path} {_unreadable(error)}")
        return {}


def _given_values(environ: Mapping[str, str], dotenv: Mapping[str, str | None]) -> dict[str, str]:
    """Per setting, what the environment says under any of its names; only without that, what the `.env` file says."""
    values: dict[str, str] = {}
    for field in Settings.model_fields:
        for source in (environ, dotenv):
            given = {name: text for name in _all_names(field) if (text := (source.get(name) or "").strip())}
            if given:
                values |= given
                break
    return values


def _all_names(field: str) -> list[str]:
    names = setting_names(field)
    return [*names, *(f"{name}_FILE" for name in names if field in SECRETS)]


def _settle_names(field: str, values: dict[str, str], wrong: list[str]) -> None:
    """Put what a NAME_FILE holds under the name; refuse two names that say different things."""
    given = [name for name in _all_names(field) if name in values]
    if len({values[name] for name in given}) > 1:
        wrong.append(f"{' and '.join(given)} are both set: keep one of them")
        return
    for name in given:
        if field in SECRETS and name.endswith("_FILE"):
            try:
                text = Path(values[name]).read_text(encoding="utf-8").strip()
            except (OSError, ValueError) as error:  # the path is not shown: it may be the secret, given by mistake
                wrong.append(f"{name}: the file it names {_unreadable(error)}")
            else:
                if text:
                    values[name.removesuffix("_FILE")] = text
                else:
                    wrong.append(f"{name}: the file it names is empty")


def _unreadable(error: OSError | ValueError) -> str:
    return f"can't be read ({error.strerror if isinstance(error, OSError) else 'it is not UTF-8 text'})"


# What pydantic's error types mean in a setting.
REASONS = {
    "bool_parsing": "must be true or false",
    "enum": "must be {expected}",
    "float_parsing": "must be a number",
    "greater_than_equal": "must be {ge:.10g} or more",
    "int_parsing": "must be a whole number",
    "less_than_equal": "must be {le:.10g} or less",
    "literal_error": "must be {expected}",
    "string_type": "must hold texts only",  # inside a JSON object
    "too_short": "must have {min_length} characters or more",
}


def _explain(detail: dict[str, Any]) -> str:
    name = str(detail["loc"][0])
    field = next(field for field in Settings.model_fields if name in setting_names(field))
    examples = Settings.model_fields[field].examples or []
    reason = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] in REASONS:
        reason = REASONS[detail["type"]].format_map(detail.get("ctx", {}))
    return f"{name}: {reason}. Example: {name}={examples[0]}"


def _show(field: str, value: object) -> str:
    if isinstance(value, SecretStr):
        return _mask_url(value.get_secret_value()) if field in SECRET_URLS else MASK
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, object]", value)
        return json.dumps({key: _show(field, item) for key, item in pairs.items()}, ensure_ascii=False)
    if isinstance(value, tuple):
        items = cast("tuple[object, ...]", value)
        return ",".join(str(item) for item in items)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.10g}"
    return "" if value is None else str(value)


def _mask_url(url: str) -> str:
    """Where a URL leads, without its password and its query, where drivers take passwords too.

    A URL that is not plain is masked as a whole: a password with a `/` or `#` in it would look like another part.
    """
    plain = re.fullmatch(
        r"(?P<scheme>\w+://)(?:(?:(?P<user>[^:/@?#]*):)?(?P<password>[^/@?#]*)@)?"
        r"(?P<place>(?:[\w.,-]*|\[[\w:.%]+\])(?::\d+)?(?:/[^@?#]*)?)(?:\?[^@]*)?",
        url,
    )
    if plain is None:
        return MASK
    user = plain["user"] or ""
    password = f"{user}:{MASK}@" if plain["password"] else f"{user}@" if user else ""
    return f"{plain['scheme']}{password}{plain['place']}"
