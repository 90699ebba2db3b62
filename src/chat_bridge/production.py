"""What CHAT_BRIDGE_ENV=production refuses to run with: each rule has its reason and the way out."""

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import SecretStr

from chat_bridge.errors import PlaceError, SettingsError
from chat_bridge.settings import Settings, environment, redis_place
from chat_bridge.storage.blobs import own_environment, place_of
from chat_bridge.storage.places import credential, s3_endpoint

SHORTEST_PASSWORD = 12
SHORTEST_TOKEN = 16
FEWEST_SIGNS = 6
# A password of nothing but these, digits and punctuation is tried early by who guesses, or stands in an example.
_GUESSED = re.compile(
    "(?:a|abc|admin|administrator|agent|agoric|api|bot|bridge|change|changeit|chat|database|db|default|demo|dev"
    "|development|example|guest|hello|here|in|key|letmein|local|localhost|long|login|master|me|minio|my|pass|password"
    "|please|postgres|postgresql|prod|production|qwerty|random|redis|replace|root|rustfs|secret|sql|storage|string"
    "|telegram|test|text|the|this|to|token|user|webhook|welcome|with|your)*"
)


class Risk(NamedTuple):
    """A rule that the settings break. A warning is told by doctor; a problem also keeps the bridge from starting."""

    setting: str
    reason: str
    fix: str
    status: Literal["problem", "warning"] = "problem"

    def __str__(self) -> str:
        return f"{self.setting}: {self.reason}. {self.fix}"


class _Way(NamedTuple):
    """How a server is reached and entered."""

    setting: str
    name: Literal["database", "redis"]
    hosts: Sequence[str]
    encrypted: bool
    verified: bool
    other_proof: bool  # a client certificate, or a password in a file that only PostgreSQL's libraries read
    passwords: Sequence[str]
    names: Sequence[str]  # of the account and so on: no good passwords either
    encrypt: str
    verify: str


def require_safe(settings: Settings) -> None:
    """Raise SettingsError with every rule that is broken; only in production."""
    problems = [risk for risk in risks(settings) if risk.status == "problem"]
    if problems:
        lines = "\n".join(f"  - {risk}" for risk in problems)
        raise SettingsError(f"CHAT_BRIDGE_ENV=production can't run like this; nothing was started:\n{lines}")


def risks(
    settings: Settings, environ: Mapping[str, str] = os.environ, dotenv: Path | None = Path(".env")
) -> Sequence[Risk]:
    """Every rule that the settings break; none outside of production. `environ` has PostgreSQL's own variables, and
    with `dotenv` those of object stores."""
    if settings.env != "production":
        return []
    found = list(_hidden_risks(settings, environ))
    for way in _ways(settings, environ):
        found += _network_risks(way, private=way.name in settings.private_network)
        found += _entry_risks(way, private=way.name in settings.private_network)
    # Files and backups may use the same credentials.
    found += dict.fromkeys(_storage_risks(settings, environment(environ, dotenv)))
    return [*found, *_secret_risks(settings), *_openness_risks(settings)]


def _hidden_risks(settings: Settings, environ: Mapping[str, str]) -> Iterator[Risk]:
    dsn = settings.database_url.get_secret_value() if settings.database_url else ""
    if "service" in dict(parse_qsl(urlsplit(dsn).query)) or (dsn and environ.get("PGSERVICE")):
        yield Risk(
            "DATABASE_URL",
            "it names a service (service=, PGSERVICE), and nobody looks into that file here",
            "Write its host, user, password and sslmode into the URL",
        )


def _ways(settings: Settings, environ: Mapping[str, str]) -> Iterator[_Way]:
    if settings.database_url is not None:
        yield _postgres(settings.database_url.get_secret_value(), environ)
    if settings.redis_url is not None:
        yield _redis(settings.redis_url.get_secret_value())


def _postgres(dsn: str, environ: Mapping[str, str]) -> _Way:
    """A DSN as the driver reads it: what it does not say, PostgreSQL's variables may."""
    url = urlsplit(dsn)
    options = dict(parse_qsl(url.query))
    login, _, places = url.netloc.rpartition("@")
    user, _, password = (unquote(part) for part in login.partition(":"))
    password = password or options.get("password") or environ.get("PGPASSWORD") or ""
    root = options.get("sslrootcert") or environ.get("PGSSLROOTCERT")
    mode = options.get("sslmode") or environ.get("PGSSLMODE") or ("verify-full" if root == "system" else "prefer")
    passfile = options.get("passfile") or environ.get("PGPASSFILE") or Path(environ.get("HOME", "/"), ".pgpass")
    hosts = [unquote(_without_port(place)) for place in places.split(",")] if places else []
    return _Way(
        setting="DATABASE_URL",
        name="database",
        hosts=hosts or (options.get("host") or environ.get("PGHOST") or "").split(","),
        encrypted=mode in ("require", "verify-ca", "verify-full"),
        verified=mode.startswith("verify") or bool(root),
        other_proof=bool(options.get("sslcert") or environ.get("PGSSLCERT")) or os.access(passfile, os.R_OK),
        passwords=[password] if password else [],
        names=[user or options.get("user", ""), unquote(url.path.strip("/"))],
        encrypt="sslmode=verify-full&sslrootcert=FILE",
        verify="sslmode=verify-full&sslrootcert=FILE",
    )


def _redis(text: str) -> _Way:
    place = redis_place(text)
    options = dict(parse_qsl(place.query.removeprefix("?")))
    user, _, password = (unquote(part) for part in place.login.removesuffix("@").partition(":"))
    given = [password or options.get("password", ""), options.get("sentinel_password", "")]
    return _Way(
        setting="REDIS_URL",
        name="redis",
        hosts=[host for host, _ in place.hosts],
        encrypted=place.scheme == "rediss",
        verified=options.get("ssl_cert_reqs", "required") == "required",
        other_proof="ssl_certfile" in options,
        passwords=[each for each in given if each],
        names=[user],
        encrypt="rediss:// instead of redis://",
        verify="no ssl_cert_reqs, and ?ssl_ca_certs=FILE for a CA of your own",
    )


def _without_port(place: str) -> str:
    return re.sub(r":\d*$", "", place).strip("[]")


def _network_risks(way: _Way, *, private: bool) -> Iterator[Risk]:
    away = sorted({host for host in way.hosts if not _on_this_machine(host)})
    if not away or private:
        return
    if not way.encrypted:
        reason = f"nothing demands TLS to {', '.join(away)}: who is on the way can read messages and the password"
        fix = f"Use {way.encrypt}; or say CHAT_BRIDGE_PRIVATE_NETWORK={way.name} if it is a network of trusted machines"
        yield Risk(way.setting, reason, fix)
    elif not way.verified:
        reason = f"there is TLS to {', '.join(away)}, but anybody may be at its end: no certificate is checked"
        yield Risk(way.setting, reason, f"Use {way.verify}", "warning")


def _entry_risks(way: _Way, *, private: bool) -> Iterator[Risk]:
    for password in way.passwords:
        if flaw := _flaw(password, SHORTEST_PASSWORD, way.names):
            yield Risk(way.setting, f"the password {flaw}", "Give the server another one: openssl rand -hex 24")
    open_to_others = any(not _on_this_machine(host) for host in way.hosts) and not private
    if open_to_others and not way.passwords and not way.other_proof:
        yield Risk(way.setting, "there is neither a password nor a client certificate", "Let the server ask for one")


def _on_this_machine(host: str) -> bool:
    if not host or host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _storage_risks(settings: Settings, given: Mapping[str, str]) -> Iterator[Risk]:
    """An S3 server may be anybody's own; those who run the others give out good keys, and talk TLS."""
    places = [
        ("BACKUP_TO", settings.backup_to or "", ("", given)),
        ("ATTACHMENT_BUCKET", place_of(settings.attachment_bucket or "."), own_environment(given)),
    ]
    for setting, place, (before, credentials) in places:
        if not place.startswith("s3://"):
            continue
        endpoint = urlsplit(s3_endpoint(credentials))
        host = endpoint.hostname or ""
        if endpoint.scheme == "http" and not _on_this_machine(host) and "storage" not in settings.private_network:
            reason = f"there is no TLS to {host}: who is on the way can read files"
            fix = (
                "Use an https:// endpoint; or say CHAT_BRIDGE_PRIVATE_NETWORK=storage if it is a network of trusted "
                "machines"
            )
            yield Risk(setting, reason, fix)
        name = "AWS_SECRET_ACCESS_KEY"
        try:
            secret = credential(credentials, name)
            account = credential(credentials, "AWS_ACCESS_KEY_ID") or ""
        except PlaceError as error:
            yield Risk(setting, str(error), "Mount that file, and let the bridge's user read it")
            continue
        if secret and (flaw := _flaw(secret, SHORTEST_PASSWORD, [account])):
            yield Risk(f"{before}{name}", f"it {flaw}", "Give the server another one: openssl rand -hex 24")


def _secret_risks(settings: Settings) -> Iterator[Risk]:
    secrets: Mapping[str, tuple[SecretStr | None, int]] = {
        # How long these two must be is said where they are declared.
        "CHAT_BRIDGE_API_KEY": (settings.api_key, 0),
        "CHAT_BRIDGE_SECRET": (settings.secret, 0),
        "TELEGRAM_WEBHOOK_SECRET_TOKEN": (settings.telegram_webhook_secret_token, SHORTEST_TOKEN),
    }
    for name, (secret, shortest) in secrets.items():
        if secret is not None and (flaw := _flaw(secret.get_secret_value(), shortest)):
            yield Risk(name, f"it {flaw}", "Make another one: openssl rand -hex 32")


def _flaw(password: str, shortest: int, names: Sequence[str] = ()) -> str | None:
    if len(password) < shortest:
        return f"has fewer than {shortest} characters"
    letters = re.sub("[^a-z]", "", password.casefold())
    if _GUESSED.fullmatch(letters) or password in names:
        return "is among the first that are tried, or stands in an example"
    if len(set(password)) < FEWEST_SIGNS:
        return f"has fewer than {FEWEST_SIGNS} different characters"
    return None


def _openness_risks(settings: Settings) -> Iterator[Risk]:
    if settings.log_level == "debug":
        yield Risk("CHAT_BRIDGE_LOG_LEVEL", "debug tells more than a log should keep", "Use info")
    if settings.log_message_text:
        reason = "what people write would be in the log, where nothing deletes it"
        yield Risk("CHAT_BRIDGE_LOG_MESSAGE_TEXT", reason, "Leave it out; `chat-bridge dlq show` shows single texts")
    if settings.api_docs:
        reason = "the page of the API tells everybody what can be called"
        yield Risk("CHAT_BRIDGE_API_DOCS", reason, "Leave it out: then the page is closed in production")
