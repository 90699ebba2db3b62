"""CHAT_BRIDGE_ENV=production: what it refuses, how that is said, and that it refuses nothing else."""

from pathlib import Path

import aiohttp
import pytest

from chat_bridge.errors import SettingsError
from chat_bridge.production import Risk, require_safe, risks
from chat_bridge.settings import load_settings
from tests.bridge import running_bridge
from tests.observe import run_command

PASSWORD = "5b8c1f0e6d7a49320c1e"
KEY = "f3a1c95d7e20b8646c0d1b2f9a8e7d53"
PRODUCTION = {"CHAT_BRIDGE_ENV": "production", "CHAT_BRIDGE_API_KEY": KEY, "CHAT_BRIDGE_SECRET": KEY[::-1]}
CHECKED = "sslmode=verify-full&sslrootcert=/etc/ca.pem"
GOOD = {
    "DATABASE_URL": f"postgresql://agoric:{PASSWORD}@db.example/agoric?{CHECKED}",
    "REDIS_URL": f"rediss://:{PASSWORD}@cache.example/0",
}
BAD = {
    "DATABASE_URL": "postgresql://agoric:agoric@db1,db2:5433/agoric",
    "REDIS_URL": "redis://cache",
    "CHAT_BRIDGE_API_KEY": "a long random text",
    "CHAT_BRIDGE_SECRET": "change-me-change-me-change-me-please",
    "TELEGRAM_WEBHOOK_SECRET_TOKEN": "abc123",
    "CHAT_BRIDGE_LOG_LEVEL": "debug",
    "CHAT_BRIDGE_LOG_MESSAGE_TEXT": "true",
    "CHAT_BRIDGE_API_DOCS": "true",
}
RULES_BROKEN = [
    "DATABASE_URL: nothing demands TLS to db1, db2",
    "DATABASE_URL: the password has fewer than 12 characters",
    "REDIS_URL: nothing demands TLS to cache",
    "REDIS_URL: there is neither a password nor a client certificate",
    "CHAT_BRIDGE_API_KEY: it is among the first that are tried, or stands in an example",
    "CHAT_BRIDGE_SECRET: it is among the first that are tried, or stands in an example",
    "TELEGRAM_WEBHOOK_SECRET_TOKEN: it has fewer than 16 characters",
    "CHAT_BRIDGE_LOG_LEVEL: debug",
    "CHAT_BRIDGE_LOG_MESSAGE_TEXT: what people write",
    "CHAT_BRIDGE_API_DOCS: the page",
]


def broken(environ: dict[str, str] | None = None, **settings: str) -> list[Risk]:
    """The rules that production with these settings breaks; `environ`: PostgreSQL's own variables."""
    return list(risks(load_settings({**PRODUCTION, **settings}, None), environ or {}, None))


def test_good_settings_break_no_rule() -> None:
    assert broken(**GOOD) == []
    require_safe(load_settings({**PRODUCTION, **GOOD}, None))


def test_without_servers_nothing_is_on_a_network() -> None:
    assert broken() == []


def test_outside_of_production_there_are_no_rules() -> None:
    settings = load_settings(BAD, None)
    assert list(risks(settings, {})) == []
    require_safe(settings)


def test_all_problems_are_told_at_once_with_the_fix() -> None:
    with pytest.raises(SettingsError) as refused:
        require_safe(load_settings({**PRODUCTION, **BAD}, None))
    first, *lines = str(refused.value).splitlines()
    assert first == "CHAT_BRIDGE_ENV=production can't run like this; nothing was started:"
    assert len(lines) == len(RULES_BROKEN)
    for line, rule in zip(lines, RULES_BROKEN, strict=True):
        assert line.startswith(f"  - {rule}")
        assert ". " in line, "the fix follows"


@pytest.mark.parametrize("mode", ["", "disable", "allow", "prefer"])
def test_postgresql_must_be_asked_for_tls(mode: str) -> None:
    (risk,) = broken(DATABASE_URL=f"postgresql://agoric:{PASSWORD}@db/agoric{f'?sslmode={mode}' if mode else ''}")
    assert (risk.setting, risk.status) == ("DATABASE_URL", "problem")
    assert "sslmode=verify-full&sslrootcert=FILE" in risk.fix
    assert "CHAT_BRIDGE_PRIVATE_NETWORK=database" in risk.fix


def test_tls_without_a_check_of_the_server_is_a_warning() -> None:
    database = f"postgresql://agoric:{PASSWORD}@db/agoric?sslmode=require"
    found = broken(DATABASE_URL=database, REDIS_URL=f"rediss://:{PASSWORD}@cache?ssl_cert_reqs=none")
    assert [(risk.setting, risk.status) for risk in found] == [("DATABASE_URL", "warning"), ("REDIS_URL", "warning")]
    require_safe(load_settings({**PRODUCTION, "DATABASE_URL": database}, None))
    assert broken(DATABASE_URL=f"{database}&sslrootcert=/etc/ca.pem") == []


def test_what_the_url_does_not_say_postgresqls_variables_may() -> None:
    database = "postgresql:///agoric"
    assert broken(DATABASE_URL=database) == []
    away = {"PGHOST": "db", "PGPASSWORD": PASSWORD}
    assert [risk.reason.split(":")[0] for risk in broken(away, DATABASE_URL=database)] == ["nothing demands TLS to db"]
    assert broken({**away, "PGSSLMODE": "verify-full"}, DATABASE_URL=database) == []
    (risk,) = broken({**away, "PGSSLMODE": "verify-full", "PGPASSWORD": "secret"}, DATABASE_URL=database)
    assert risk.reason == "the password has fewer than 12 characters"


@pytest.mark.parametrize(
    "settings",
    [
        {"DATABASE_URL": f"postgresql://agoric:{PASSWORD}@localhost/agoric"},
        {"DATABASE_URL": f"postgresql://agoric:{PASSWORD}@[::1]:5433,127.0.0.7/agoric"},
        {"DATABASE_URL": "postgresql://agoric@%2Fvar%2Frun:5432/agoric"},
        {"DATABASE_URL": "postgresql://agoric@/agoric?host=/var/run"},
        {"REDIS_URL": "redis://localhost"},
        {"REDIS_URL": "unix:///var/run/redis.sock"},
    ],
)
def test_what_does_not_leave_the_machine_needs_no_tls(settings: dict[str, str]) -> None:
    assert broken(**settings) == []


def test_a_network_of_trusted_machines_is_said_for_each_server() -> None:
    plain = {"DATABASE_URL": f"postgresql://agoric:{PASSWORD}@postgres/agoric", "REDIS_URL": "redis://redis"}
    assert {risk.setting for risk in broken(**plain)} == {"DATABASE_URL", "REDIS_URL"}
    assert {risk.setting for risk in broken(**plain, CHAT_BRIDGE_PRIVATE_NETWORK="database")} == {"REDIS_URL"}
    assert broken(**plain, CHAT_BRIDGE_PRIVATE_NETWORK="database,redis") == []


FILES = {"ATTACHMENT_BUCKET": "files"}
HTTP, HTTPS = ({"AWS_ENDPOINT_URL_S3": f"{scheme}://s3.example:9000"} for scheme in ("http", "https"))


@pytest.mark.parametrize(
    ("settings", "environ", "setting", "reason"),
    [
        (FILES, {"AWS_SECRET_ACCESS_KEY": "minioadmin"}, "AWS_SECRET_ACCESS_KEY", "it has fewer than 12 characters"),
        (FILES, {"AWS_SECRET_ACCESS_KEY": "rustfs-rustfs"}, "AWS_SECRET_ACCESS_KEY", "it is among the first"),
        (
            FILES,
            {"AWS_ACCESS_KEY_ID": "GK31c2f218a2e4", "AWS_SECRET_ACCESS_KEY": "GK31c2f218a2e4"},
            "AWS_SECRET_ACCESS_KEY",
            "it is among the first",
        ),
        (
            {**FILES, "BACKUP_TO": "s3://backups"},
            {"ATTACHMENT_AWS_SECRET_ACCESS_KEY": "minioadmin123", "AWS_SECRET_ACCESS_KEY": PASSWORD},
            "ATTACHMENT_AWS_SECRET_ACCESS_KEY",
            "it is among the first",
        ),
        ({"BACKUP_TO": "s3://backups"}, HTTP, "BACKUP_TO", "there is no TLS to s3.example"),
        (FILES, {"AWS_ENDPOINT": "http://s3.example"}, "ATTACHMENT_BUCKET", "there is no TLS to s3.example"),
        (
            {**FILES, "BACKUP_TO": "s3://backups"},
            {**HTTPS, "ATTACHMENT_AWS_ENDPOINT_URL": "http://s3.example"},
            "ATTACHMENT_BUCKET",
            "there is no TLS to s3.example",
        ),
        (FILES, {"AWS_SECRET_ACCESS_KEY_FILE": "/nowhere/key"}, "ATTACHMENT_BUCKET", "AWS_SECRET_ACCESS_KEY_FILE:"),
    ],
)
def test_an_object_store(settings: dict[str, str], environ: dict[str, str], setting: str, reason: str) -> None:
    (risk,) = broken(environ, **settings)
    assert (risk.setting, risk.status) == (setting, "problem")
    assert risk.reason.startswith(reason)


def test_an_object_store_that_is_safe(tmp_path: Path) -> None:
    both = {"ATTACHMENT_BUCKET": "s3://files", "BACKUP_TO": "s3://backups/bridge"}
    file = tmp_path / "key"
    file.write_text(f"{PASSWORD}\n")
    assert broken({**HTTPS, "AWS_SECRET_ACCESS_KEY_FILE": str(file)}, **both) == []
    assert broken({"AWS_ENDPOINT_URL_S3": "http://localhost:9000", "AWS_SECRET_ACCESS_KEY": PASSWORD}, **both) == []
    assert broken(HTTP, **both, CHAT_BRIDGE_PRIVATE_NETWORK="storage") == []
    # Who has no place in a bucket may have any variables; and elsewhere the keys are given out.
    bad = {**HTTP, "AWS_SECRET_ACCESS_KEY": "minioadmin"}
    assert broken(bad, ATTACHMENT_BUCKET=str(tmp_path), BACKUP_TO="gs://backups") == []


def test_a_bad_key_is_told_once_and_read_from_all_places(tmp_path: Path) -> None:
    both = load_settings({**PRODUCTION, "ATTACHMENT_BUCKET": "files", "BACKUP_TO": "s3://backups"}, None)
    (tmp_path / "key").write_text("minioadmin\n")
    (tmp_path / ".env").write_text(f"AWS_SECRET_ACCESS_KEY_FILE={tmp_path / 'key'}\n")
    (risk,) = risks(both, {}, tmp_path / ".env")
    assert risk.setting == "AWS_SECRET_ACCESS_KEY"
    assert "minioadmin" not in str(risk)


def test_a_private_network_makes_no_password_better() -> None:
    found = broken(
        DATABASE_URL="postgresql://agoric:postgres-1234@postgres/agoric",
        REDIS_URL="redis://:redis@redis",
        CHAT_BRIDGE_PRIVATE_NETWORK="database,redis",
    )
    assert [risk.setting for risk in found] == ["DATABASE_URL", "REDIS_URL"]


@pytest.mark.parametrize(
    ("password", "flaw"),
    [
        ("short", "has fewer than 12 characters"),
        ("Postgres-2026!", "is among the first that are tried"),
        ("CHANGEME-CHANGEME", "is among the first that are tried"),
        ("password%31%32%33%34", "is among the first that are tried"),
        ("123456789012", "is among the first that are tried"),
        ("the_bridge_account", "is among the first that are tried"),
        ("xyxyxyxyxyxyxyxy", "has fewer than 6 different characters"),
    ],
)
def test_a_password_that_is_guessed(password: str, flaw: str) -> None:
    database, redis = (f"{scheme}://the_bridge_account:{password}@x" for scheme in ("postgresql", "rediss"))
    found = broken(DATABASE_URL=f"{database}/agoric?{CHECKED}", REDIS_URL=redis)
    assert [risk.setting for risk in found] == ["DATABASE_URL", "REDIS_URL"]
    for risk in found:
        assert risk.reason.startswith(f"the password {flaw}")
        assert password not in str(risk)


@pytest.mark.parametrize("password", [PASSWORD, "Tr4inSpotter%21", "kjhgfdsapoiu", "correct horse battery staple"])
def test_a_password_that_is_not_guessed(password: str) -> None:
    assert broken(DATABASE_URL=f"postgresql://agoric:{password}@db/agoric?{CHECKED}") == []


def test_a_client_certificate_does_instead_of_a_password(tmp_path: Path) -> None:
    nobody, cache = f"postgresql://agoric@db/agoric?{CHECKED}", "rediss://cache"
    assert [risk.setting for risk in broken(DATABASE_URL=nobody, REDIS_URL=cache)] == ["DATABASE_URL", "REDIS_URL"]
    assert broken(DATABASE_URL=f"{nobody}&sslcert=/etc/us.pem", REDIS_URL=f"{cache}?ssl_certfile=/etc/us.pem") == []
    file = tmp_path / "passwords"
    file.touch()
    assert broken({"PGPASSFILE": str(file)}, DATABASE_URL=nobody) == []


def test_the_sentinels_password_counts_too() -> None:
    (risk,) = broken(REDIS_URL=f"rediss+sentinel://:{PASSWORD}@s1,s2/bridge/0?sentinel_password=redis")
    assert risk.reason == "the password has fewer than 12 characters"


async def test_serve_refuses_and_doctor_says_the_same() -> None:
    # Nobody listens there, and no name has to be looked up.
    nowhere = {
        "DATABASE_URL": "postgresql://agoric:agoric@127.0.0.1:1/agoric",
        "REDIS_URL": "redis://:redis@127.0.0.1:1",
    }
    environment = {**PRODUCTION, **BAD, **nowhere, "DATABASE_WAIT_SECONDS": "600"}
    code, output, errors = await run_command("serve", **environment, PORT="0")
    assert (code, output) == (1, "")
    assert "database.waiting" not in errors, "no connection was tried"
    refused = [line.removeprefix("  - ") for line in errors.splitlines() if line.startswith("  - ")]
    assert len(refused) == len(RULES_BROKEN) - 2, "but for TLS"
    code, output, _ = await run_command("doctor", **environment)
    assert code == 1
    told = [line.split(maxsplit=2) for line in output.splitlines()]
    assert [text for status, subject, text in told if (status, subject) == ("problem", "production")] == [
        f"{line}." for line in refused
    ]


async def test_in_production_the_page_of_the_api_is_closed(database: str) -> None:
    async with running_bridge(database, **PRODUCTION, WEBCHAT_ENABLED="false") as bridge:
        async with aiohttp.ClientSession(bridge.url) as http:
            for path, status in (("/docs", 404), ("/openapi.json", 404), ("/health", 200), ("/", 200)):
                async with http.get(path) as response:
                    assert response.status == status, path
            async with http.get("/api/v1/sessions", headers={"Authorization": f"Bearer {KEY}"}) as response:
                assert response.status == 200
        assert f"{bridge.url.replace('127.0.0.1', 'localhost')}/api/v1\n" in bridge.log.read_text()


def test_a_service_is_refused_since_its_file_may_say_anything() -> None:
    safe = f"postgresql://agoric:{PASSWORD}@db/agoric?sslmode=verify-full&sslrootcert=/etc/ca.pem"
    assert broken(DATABASE_URL=safe) == []
    for found in (broken(DATABASE_URL=f"{safe}&service=prod"), broken({"PGSERVICE": "prod"}, DATABASE_URL=safe)):
        (risk,) = found
        assert (risk.setting, risk.status) == ("DATABASE_URL", "problem")
        assert "service" in risk.reason
