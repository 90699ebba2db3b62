"""Settings: where they come from, what is refused and how that is said, and that secrets stay secret."""

import os
import re
import typing
from pathlib import Path

import pytest
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from chat_bridge.errors import SettingsError
from chat_bridge.model import BusyPolicy
from chat_bridge.settings import SECRETS, Settings, how_to_install, load_settings, setting_names, shown
from scripts.settings_doc import ENV_END, PROJECT, env_example, groups, settings_page

LONG = "0123456789abcdef0123456789abcdef"


def load(dotenv: Path | None = None, **environ: str) -> Settings:
    return load_settings(environ, dotenv)


def refusal(dotenv: Path | None = None, **environ: str) -> str:
    """Why `serve` does not start."""
    with pytest.raises(SettingsError) as refused:
        load_settings(environ, dotenv, serves=True)
    return str(refused.value)


def test_without_any_setting_everything_is_embedded() -> None:
    settings = load()
    assert settings.embedded
    assert settings.redis_url is None
    assert settings.port == 3000
    assert settings.host == "127.0.0.1"
    assert settings.busy_policy is BusyPolicy.COLLECT
    assert settings.data_dir.name == "agoric-chat-bridge"
    assert settings.data_dir.is_absolute()


AGE_KEY = "age1pshypxg49y40rqt2tqg6j3tfugcyzc2vxk8gt95h50kh3szulu0sx8mvaq"

# One right value for each setting, and what it becomes.
RIGHT: dict[str, tuple[str, object]] = {
    "DATABASE_URL": ("postgres://me:pw@db/agoric", SecretStr("postgres://me:pw@db/agoric")),
    "DATABASE_PGBOUNCER": ("true", True),
    "DATABASE_POOL_SIZE": ("20", 20),
    "DATABASE_MIGRATE": ("false", False),
    "REDIS_URL": ("rediss://cache:6379/1", SecretStr("rediss://cache:6379/1")),
    "DATABASE_WAIT_SECONDS": ("60", 60.0),
    "SESSION_TTL_SECONDS": ("60", 60),
    "CHAT_BRIDGE_DATA_DIR": ("/srv/a folder", Path("/srv/a folder")),
    "ATTACHMENT_BUCKET": ("s3://bucket/chat-bridge", "s3://bucket/chat-bridge"),
    "ATTACHMENT_MAX_BYTES": ("1000", 1000),
    "ATTACHMENT_TYPES": ("image/*, application/pdf", ("image/*", "application/pdf")),
    "ATTACHMENT_LINK_SECONDS": ("60", 60),
    "ATTACHMENT_SCANNER": ("clamav:3310", "clamav:3310"),
    "AGENT_FILE_TYPES": ("image/png", ("image/png",)),
    "AGENT_FILE_MAX_BYTES": ("0", 0),
    "ARCHIVE_AFTER_DAYS": ("8", 8),
    "BACKUP_TO": ("s3://bucket/chat-bridge", "s3://bucket/chat-bridge"),
    "BACKUP_KEY": (AGE_KEY, SecretStr(AGE_KEY)),
    "BACKUP_EVERY_HOURS": ("24", 24.0),
    "BACKUP_KEEP": ("30", 30),
    "RETENTION_DAYS": ("365", 365),
    "ATTACHMENT_RETENTION_DAYS": ("30", 30),
    "RETENTION_POLICIES": ("retention.toml", Path("retention.toml")),
    "CHAT_BRIDGE_ENV": ("production", "production"),
    "CHAT_BRIDGE_PRIVATE_NETWORK": ("redis, database", ("redis", "database")),
    "CHAT_BRIDGE_API_DOCS": ("false", False),
    "CHAT_BRIDGE_HOST": ("::", "::"),
    "PORT": ("0", 0),
    "CHAT_BRIDGE_API_KEY": (LONG, SecretStr(LONG)),
    "CHAT_BRIDGE_SECRET": (LONG, SecretStr(LONG)),
    "CHAT_BRIDGE_TRUSTED_PROXIES": ("10.0.0.0/8, ::1,", ("10.0.0.0/8", "::1")),
    "CHAT_BRIDGE_MAX_BODY_BYTES": ("1024", 1024),
    "CHAT_BRIDGE_DRAIN_SECONDS": ("1.5", 1.5),
    "CHAT_BRIDGE_LOG_LEVEL": ("debug", "debug"),
    "CHAT_BRIDGE_LOG_FORMAT": ("json", "json"),
    "CHAT_BRIDGE_LOG_MESSAGE_TEXT": ("1", True),
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("https://traces.example:4318", "https://traces.example:4318"),
    "OTEL_EXPORTER_OTLP_HEADERS": ("api-key=abc", SecretStr("api-key=abc")),
    "BUSY_POLICY": ("latest", BusyPolicy.LATEST),
    "COALESCE_SECONDS": ("0", 0.0),
    "QUEUE_CAP": ("1", 1),
    "SESSION_ROTATION": ("daily", "daily"),
    "SESSION_IDLE_MINUTES": ("90", 90),
    "SESSION_DAILY_AT": ("00:30", "00:30"),
    "SESSION_TIMEZONE": ("Asia/Ho_Chi_Minh", "Asia/Ho_Chi_Minh"),
    "SESSION_SUMMARY": ("true", True),
    "LEASE_SECONDS": ("3", 3.0),
    "TURN_TIMEOUT_SECONDS": ("86400", 86400.0),
    "MAX_TURNS": ("5", 5),
    "CHAT_BRIDGE_LANGUAGE": ("vi", "vi"),
    "CHAT_BRIDGE_TEXTS": ('{"error": "Xin lỗi"}', {"error": "Xin lỗi"}),
    "REPEAT_MODE": ("true", True),
    "MASTRA_ENDPOINT": ("https://mastra.example/api", "https://mastra.example/api"),
    "MASTRA_AGENT_ID": ("weather", "weather"),
    "MASTRA_API_KEY": ("k", SecretStr("k")),
    "MASTRA_HEADERS": ('{"X-Team": "a b"}', {"X-Team": SecretStr("a b")}),
    "MASTRA_TIMEOUT": ("100", 100),
    "UNKNOWN_DELIVERIES": ("resend", "resend"),
    "CHAT_BRIDGE_PLATFORMS": ("pager, fax", ("pager", "fax")),
    "TELEGRAM_ENABLED": ("true", True),
    "TELEGRAM_BOT_TOKEN": ("7000000001:test_TOKEN-1", SecretStr("7000000001:test_TOKEN-1")),
    "TELEGRAM_POLLING": ("false", False),
    "TELEGRAM_WEBHOOK_URL": ("https://bot.example", "https://bot.example"),
    "TELEGRAM_WEBHOOK_SECRET_TOKEN": ("a-b_c", SecretStr("a-b_c")),
    "TELEGRAM_API_BASE_URL": ("http://localhost:8081", "http://localhost:8081"),
    "TELEGRAM_GROUPS": ("never", "never"),
    "TELEGRAM_ALLOW_GROUPS": ("-1002234567890, -42", ("-1002234567890", "-42")),
    "TELEGRAM_DENY_GROUPS": ("-42", ("-42",)),
    "TELEGRAM_ALLOW_USERS": ("5512340001,@linh_tr", ("5512340001", "@linh_tr")),
    "TELEGRAM_DENY_USERS": ("@troll", ("@troll",)),
    "WEBCHAT_ENABLED": ("no", False),
    "WEBCHAT_ORIGINS": ("https://a.example, http://b:81", ("https://a.example", "http://b:81")),
    "WEBCHAT_TOKEN_SECONDS": ("60", 60),
    "WEBCHAT_MAX_TEXT": ("1", 1),
    "WEBCHAT_RATE_CONVERSATION": ("1", 1),
    "WEBCHAT_RATE_ADDRESS": ("1", 1),
}


# What some settings are not used without.
BESIDE = {"CHAT_BRIDGE_SECRET": LONG, "TELEGRAM_BOT_TOKEN": "1:a", "BACKUP_TO": "backups"}


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_is_read_by_its_name(field: str) -> None:
    name = setting_names(field)[0]
    text, value = RIGHT[name]
    assert getattr(load(**{**BESIDE, name: text}), field) == value


# What is refused, and words that say why.
WRONG = [
    ("DATABASE_URL", "mysql://me:hush@db/agoric", "must begin with postgres:// or postgresql://"),
    ("DATABASE_URL", "db.example:hush", "must begin with postgres:// or postgresql://"),
    ("POSTGRES_URL", "mysql://me:hush@db/agoric", "must begin with postgres:// or postgresql://"),
    ("DATABASE_URL", "postgresql://me:hush/x@db/agoric", "is not a URL; in a password, write %2F for /, %3F for ?"),
    ("DATABASE_URL", "postgresql://me:hush#x@db/agoric", "is not a URL; in a password, write %2F for /, %3F for ?"),
    ("DATABASE_URL", "postgresql://me:hush?x@db/agoric", "is not a URL; in a password, write %2F for /, %3F for ?"),
    ("DATABASE_URL", "postgresql://me:hush[x@db/agoric", "is not a URL; in a password, write %2F for /, %3F for ?"),
    ("DATABASE_URL", "postgresql://me:hush@db:port/agoric", "is not a URL; in a password, write %2F for /"),
    ("CHAT_BRIDGE_ENV", "prod", "must be 'development' or 'production'"),
    ("CHAT_BRIDGE_PRIVATE_NETWORK", "database, s3", "must be 'database', 'redis' or 'storage'"),
    ("DATABASE_POOL_SIZE", "1", "must be 2 or more"),
    ("ARCHIVE_AFTER_DAYS", "7", "must be 8 or more: until then a message that its platform sends again is known"),
    ("ARCHIVE_AFTER_DAYS", "0.5", "must be a whole number"),
    ("DATABASE_POOL_SIZE", "1001", "must be 1000 or less"),
    ("REDIS_URL", "http://:hush@cache", "must begin with redis:// or rediss:// or unix:// or redis+cluster:// or "),
    ("REDIS_URL", "redis://:hush/x@cache", "must name each server as HOST or HOST:PORT"),
    ("REDIS_URL", "redis://:hush#x@cache", "is not a URL; in a password, write %2F for /, %3F for ? and %23 for #"),
    ("REDIS_URL", "redis://:hush@cache:99999", "must name each server as HOST or HOST:PORT"),
    ("REDIS_URL", "redis://:hush@cache/zero", "must be redis://HOST:PORT/NUMBER"),
    ("REDIS_URL", "redis://:hush@one,two", "must be redis://HOST:PORT/NUMBER; several servers are redis+cluster://"),
    ("REDIS_URL", "unix://run/redis.sock", "must be unix:///PATH"),
    ("REDIS_URL", "rediss+cluster://:hush@one:7000,two:port", "must name each server as HOST or HOST:PORT"),
    ("REDIS_URL", "redis+cluster://:hush@", "must name at least one server"),
    ("REDIS_URL", "redis+cluster://:hush@one/1", "must not have a path: a cluster has one database"),
    ("REDIS_URL", "redis+sentinel://:hush@one,two", "must end in /NAME or /NAME/NUMBER"),
    ("CHAT_BRIDGE_DATA_DIR", "~nobody-has-this-name/x", "there is no home folder"),
    ("PORT", "tcp://10.0.0.1:3000", "must be a whole number"),
    ("PORT", "65536", "must be 65535 or less"),
    ("CHAT_BRIDGE_API_KEY", "hush", "must have 16 characters or more"),
    ("CHAT_BRIDGE_SECRET", "hush", "must have 32 characters or more"),
    ("CHAT_BRIDGE_TRUSTED_PROXIES", "10.0.0.1,proxy", "each must be an address or a network, or * for all"),
    ("CHAT_BRIDGE_LOG_LEVEL", "loud", "must be 'debug', 'info', 'warning' or 'error'"),
    ("CHAT_BRIDGE_DRAIN_SECONDS", "long", "must be a number"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization: Bearer abc", "must be NAME=VALUE"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,,b=2", "must be NAME=VALUE"),
    ("CHAT_BRIDGE_DRAIN_SECONDS", "inf", "must be 3600 or less"),
    ("LEASE_SECONDS", "nan", "must be 600 or less"),
    ("BUSY_POLICY", "drop", "must be 'collect', 'followup', 'interrupt', 'latest' or 'reject'"),
    ("SESSION_ROTATION", "weekly", "must be 'none', 'idle' or 'daily'"),
    ("SESSION_IDLE_MINUTES", "0", "must be 5 or more"),
    ("SESSION_DAILY_AT", "4 am", "must be a time as HH:MM, from 00:00 to 23:59"),
    ("SESSION_DAILY_AT", "24:00", "must be a time as HH:MM"),
    ("SESSION_TIMEZONE", "Saigon", "there is no time zone 'Saigon'"),
    ("SESSION_TIMEZONE", "../etc", "there is no time zone"),
    ("MAX_TURNS", "1.5", "must be a whole number"),
    ("CHAT_BRIDGE_TEXTS", "hello", "is not JSON"),
    ("CHAT_BRIDGE_TEXTS", "[]", "must be a JSON object"),
    ("CHAT_BRIDGE_TEXTS", '{"error": 1}', "must hold texts only"),
    ("REPEAT_MODE", "ja", "must be true or false"),
    ("MASTRA_ENDPOINT", "localhost:4111", "must begin with http:// or https://"),
    ("MASTRA_ENDPOINT", "http://me:hush@mastra/api", "must not hold a user name or a password"),
    ("MASTRA_HEADERS", "X-Key: hush", "is not JSON"),
    ("MASTRA_HEADERS", '{"X Key": "hush"}', "has a name that no HTTP header may have"),
    ("MASTRA_HEADERS", '{"X-Key": "hush\\nX-Other: 1"}', "has a value that no HTTP header may have"),
    ("TELEGRAM_WEBHOOK_URL", "bot.example", "must begin with https:// or http://"),
    ("TELEGRAM_WEBHOOK_URL", "https://me:hush@bot.example", "must not hold a user name or a password"),
    ("TELEGRAM_API_BASE_URL", "localhost:8081", "must begin with https:// or http://"),
    ("TELEGRAM_GROUPS", "sometimes", "must be 'mention', 'always' or 'never'"),
    ("UNKNOWN_DELIVERIES", "drop", "must be 'hold' or 'resend'"),
    ("WEBCHAT_ORIGINS", "https://a.example/page", "each must be an origin: scheme, host and port, no path"),
    ("WEBCHAT_ORIGINS", "a.example", "each must be an origin: scheme, host and port, no path"),
]


@pytest.mark.parametrize(("name", "text", "reason"), WRONG)
def test_a_wrong_value_is_refused_with_its_name_reason_and_example(name: str, text: str, reason: str) -> None:
    message = refusal(**{name: text})
    line = next(line for line in message.splitlines() if name in line)
    field = next(field for field in Settings.model_fields if name in setting_names(field))
    examples = Settings.model_fields[field].examples
    assert examples
    assert line.startswith(f"  - {name}: {reason}")
    assert line.endswith(f"Example: {name}={examples[0]}")
    assert "hush" not in message
    assert message.count("  - ") == 1


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"TELEGRAM_ENABLED": "true"}, "TELEGRAM_BOT_TOKEN: is needed with TELEGRAM_ENABLED=true."),
        ({"TELEGRAM_BOT_TOKEN": "hush"}, "TELEGRAM_BOT_TOKEN: must be digits, a colon and letters"),
        ({"TELEGRAM_BOT_TOKEN": "1:hush/../x"}, "TELEGRAM_BOT_TOKEN: must be digits, a colon and letters"),
        ({"TELEGRAM_WEBHOOK_SECRET_TOKEN": "hush hush"}, "TELEGRAM_WEBHOOK_SECRET_TOKEN: may have up to 256"),
        (
            {"TELEGRAM_POLLING": "true", "TELEGRAM_WEBHOOK_URL": "https://bot.example"},
            "TELEGRAM_POLLING=true and TELEGRAM_WEBHOOK_URL exclude each other",
        ),
        (
            {"TELEGRAM_ENABLED": "true", "TELEGRAM_BOT_TOKEN": "1:a", "TELEGRAM_POLLING": "false"},
            "TELEGRAM_WEBHOOK_URL: is needed with TELEGRAM_POLLING=false.",
        ),
    ],
)
def test_settings_of_telegram_that_do_not_fit_each_other(environ: dict[str, str], reason: str) -> None:
    message = refusal(**environ)
    assert f"  - {reason}" in message
    assert "hush" not in message


def test_all_that_is_wrong_is_in_one_message(tmp_path: Path) -> None:
    message = refusal(
        PORT="x",
        QUEUE_CAP="0",
        DATABASE_URL="postgresql://db/agoric",
        REDIS_URL="redis://cache",
        REDIS_URL_FILE="/run/secrets/redis",
        MASTRA_API_KEY_FILE=str(tmp_path / "absent"),
        WEBCHAT_ORIGINS="a,b",
    )
    assert message.startswith("the settings can't be used; nothing was started:\n")
    lines = message.splitlines()[1:]
    assert len(lines) == 6
    for name in ("PORT", "QUEUE_CAP", "CHAT_BRIDGE_SECRET", "REDIS_URL", "MASTRA_API_KEY_FILE", "WEBCHAT_ORIGINS"):
        assert sum(line.startswith(f"  - {name}") for line in lines) == 1


@given(
    prefix=st.sampled_from(["", "postgresql://", "postgresql://me:", "redis://:", "mysql://me:", "http://me:"]),
    noise=st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=8),
    suffix=st.sampled_from(["", "@db/agoric", "@[::1/x", "℀@db"]),
)
def test_no_error_repr_or_list_shows_a_secret(prefix: str, noise: str, suffix: str) -> None:
    text = f"{prefix}{noise}hush{noise}{suffix}"
    for field in SECRETS:
        names = {"CHAT_BRIDGE_SECRET": LONG, setting_names(field)[0]: text}
        try:
            settings = load(**names)
            seen = [repr(settings), str(settings)]
            if "@" in suffix or field not in ("database_url", "redis_url"):
                seen += shown(settings).values()
        except SettingsError as error:
            seen = [str(error)]
        assert "hush" not in " ".join(seen)


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("postgresql://me:hush@db:5432/agoric?sslmode=require", "postgresql://me:********@db:5432/agoric"),
        ("postgresql://db/agoric?password=hush", "postgresql://db/agoric"),
        ("postgresql://me:hu@hush/x@db/agoric", "********"),
        ("postgresql:///agoric?host=/run/postgresql", "postgresql:///agoric"),
        ("postgresql://me:hush@[::1]:5432/agoric", "postgresql://me:********@[::1]:5432/agoric"),
    ],
)
def test_a_shown_url_tells_where_it_leads_but_not_the_password(url: str, seen: str) -> None:
    assert shown(load(DATABASE_URL=url, CHAT_BRIDGE_SECRET=LONG))["DATABASE_URL"] == seen


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://cache:6379/1",
        "redis://me:p%2Fss@[::1]:6380?protocol=3",
        "rediss://me:a@b@cache?ssl_ca_certs=/etc/ca.pem",
        "unix:///run/redis.sock?db=1",
        "unix://me:word@/run/redis.sock",
        "redis+cluster://one:7000,two:7001,[fd00::3]:7002/",
        "rediss+cluster://me:word@one?ssl_ca_certs=/etc/ca.pem",
        "redis+sentinel://s1:26379,s2/my-name/0",
        "rediss+sentinel://me:word@s1/name?sentinel_password=other",
    ],
)
def test_every_kind_of_redis_can_be_named(url: str) -> None:
    assert load(REDIS_URL=url).redis_url == SecretStr(url)


def test_a_redis_password_without_a_user_is_masked() -> None:
    assert shown(load(REDIS_URL="redis://hush@cache"))["REDIS_URL"] == "redis://:********@cache"
    assert shown(load(REDIS_URL="redis://:hush@cache/1"))["REDIS_URL"] == "redis://:********@cache/1"
    assert shown(load(REDIS_URL="unix:///run/redis.sock?password=hush"))["REDIS_URL"] == "unix:///run/redis.sock"


def test_everything_is_shown_as_it_could_be_set() -> None:
    settings = load(**{name: text for name, (text, _) in RIGHT.items()})
    listed = shown(settings)
    assert list(listed) == [setting_names(field)[0] for field in Settings.model_fields]
    assert listed["CHAT_BRIDGE_TRUSTED_PROXIES"] == "10.0.0.0/8,::1"
    assert listed["CHAT_BRIDGE_TEXTS"] == '{"error": "Xin lỗi"}'
    assert listed["MASTRA_HEADERS"] == '{"X-Team": "********"}'
    assert listed["CHAT_BRIDGE_SECRET"] == "********"
    assert listed["WEBCHAT_ENABLED"] == "false"
    secret = {setting_names(field)[0] for field in SECRETS}
    assert load(**{**listed, **{name: RIGHT[name][0] for name in secret}}) == settings


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load().port = 1


def test_every_secret_is_known_as_one() -> None:
    annotations = typing.get_type_hints(Settings, include_extras=True)
    assert {field for field in Settings.model_fields if "SecretStr" in str(annotations[field])} == set(SECRETS)


@pytest.mark.parametrize("field", SECRETS)
def test_a_secret_can_come_from_a_file(field: str, tmp_path: Path) -> None:
    text, value = RIGHT[setting_names(field)[0]]
    (tmp_path / "secret").write_text(f"{text}\n", encoding="utf-8")
    environ = {"CHAT_BRIDGE_SECRET": LONG, f"{setting_names(field)[0]}_FILE": str(tmp_path / "secret")}
    if field == "secret":
        del environ["CHAT_BRIDGE_SECRET"]
    assert getattr(load(**environ), field) == value


def test_only_secrets_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "port").write_text("81")
    assert load(PORT_FILE=str(tmp_path / "port")).port == 3000


def test_the_other_name_of_the_database_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://db/agoric")
    expected = SecretStr("postgresql://db/agoric")
    secret = {"CHAT_BRIDGE_SECRET": LONG}
    assert load(POSTGRES_URL="postgresql://db/agoric", **secret).database_url == expected
    assert load(POSTGRES_URL_FILE=str(tmp_path / "url"), **secret).database_url == expected
    both = {"POSTGRES_URL": "postgresql://db/agoric", "DATABASE_URL": "postgresql://db/agoric"}
    assert load(**both, **secret).database_url == expected


@pytest.mark.parametrize(
    "names",
    [("DATABASE_URL", "POSTGRES_URL"), ("DATABASE_URL", "DATABASE_URL_FILE"), ("DATABASE_URL", "POSTGRES_URL_FILE")],
)
def test_two_names_of_one_setting_may_not_differ(names: tuple[str, str]) -> None:
    message = refusal(
        **{names[0]: "postgresql://me:hush@db/a", names[1]: "postgresql://me:hush@db/b", "CHAT_BRIDGE_SECRET": LONG}
    )
    assert f"  - {names[0]} and {names[1]} are both set: keep one of them" in message
    assert "hush" not in message


def test_a_file_that_cannot_be_read_is_named_but_not_shown(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for path, reason in {
        str(tmp_path / "absent"): "No such file or directory",
        str(tmp_path): "Is a directory",
        str(tmp_path / "bytes"): "it is not UTF-8 text",
        "hush-a-secret-by-mistake": "No such file or directory",
    }.items():
        message = refusal(CHAT_BRIDGE_API_KEY_FILE=path)
        assert f"CHAT_BRIDGE_API_KEY_FILE: the file it names can't be read ({reason})" in message
        assert path not in message


def test_an_empty_file_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    assert "MASTRA_API_KEY_FILE: the file it names is empty" in refusal(MASTRA_API_KEY_FILE=str(tmp_path / "empty"))


def test_a_dotenv_file_is_read_and_the_environment_wins(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("PORT=81\nQUEUE_CAP='7' # a comment\nexport MASTRA_AGENT_ID=\"we${PORT}ther\"\nPOSTGRES_URL=x\n")
    settings = load(dotenv, PORT="82", DATABASE_URL="postgresql://db/agoric", CHAT_BRIDGE_SECRET=LONG)
    assert settings.port == 82
    assert settings.queue_cap == 7
    assert settings.mastra_agent_id == "we${PORT}ther"
    assert settings.database_url == SecretStr("postgresql://db/agoric")  # though .env has it under its other name


def test_the_environment_wins_over_the_dotenv_file_whichever_way_a_secret_is_given(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from the file")
    (tmp_path / "named").write_text(f"MASTRA_API_KEY_FILE={tmp_path / 'key'}\n")
    (tmp_path / "given").write_text("MASTRA_API_KEY=from .env\n")
    assert load(tmp_path / "named").mastra_api_key == SecretStr("from the file")
    assert load(tmp_path / "named", MASTRA_API_KEY="mine").mastra_api_key == SecretStr("mine")
    named = load(tmp_path / "given", MASTRA_API_KEY_FILE=str(tmp_path / "key"))
    assert named.mastra_api_key == SecretStr("from the file")


def test_a_dotenv_file_that_is_no_text_is_explained(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"PORT=\xff\n")
    message = refusal(tmp_path / ".env", PORT="x")
    assert f"{tmp_path / '.env'} can't be read (it is not UTF-8 text)" in message
    assert "PORT: must be a whole number" in message


def test_a_missing_dotenv_file_is_fine(tmp_path: Path) -> None:
    assert load(tmp_path / ".env") == load(tmp_path) == load()


def test_empty_and_blank_values_count_as_not_set(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=81\nQUEUE_CAP=\nMAX_TURNS\n")
    settings = load(tmp_path / ".env", PORT="", DATABASE_URL=" ", CHAT_BRIDGE_API_KEY="", REDIS_URL="\r")
    assert settings.port == 81
    assert settings.embedded
    assert settings.queue_cap == 50
    assert settings == load(PORT=" 81\r")


def test_by_default_the_process_environment_and_the_current_folder_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if any(name in setting_names(field) for field in Settings.model_fields):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("QUEUE_CAP=7\n")
    monkeypatch.setenv("PORT", "82")
    assert load_settings() == load(QUEUE_CAP="7", PORT="82")


def test_a_home_folder_may_be_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load(CHAT_BRIDGE_DATA_DIR="~/chats").data_dir == Path("/home/somebody/chats")


def test_web_chat_on_a_shared_database_needs_a_secret() -> None:
    url = "postgresql://db/agoric"
    assert "CHAT_BRIDGE_SECRET: is needed together with DATABASE_URL" in refusal(DATABASE_URL=url)
    assert refusal(DATABASE_URL=url, CHAT_BRIDGE_SECRET="short").count("CHAT_BRIDGE_SECRET:") == 1
    assert load_settings({"DATABASE_URL": url, "WEBCHAT_ENABLED": "false"}, None, serves=True).secret is None
    assert load_settings({}, None, serves=True).secret is None
    assert load(DATABASE_URL=url).secret is None, "only a bridge that serves needs it"


def test_how_an_extra_is_installed_is_true_without_a_published_package() -> None:
    assert how_to_install("backup") == (
        "install the extra `backup` (pip install 'agoric-chat-bridge[backup]', or in a checkout: "
        "pip install --editable '.[backup]')"
    )


def test_the_page_and_the_example_are_current() -> None:
    advice = "run scripts/settings_doc.py"
    assert (PROJECT / "docs" / "settings.md").read_text(encoding="utf-8") == settings_page(), advice
    assert (PROJECT / ".env.example").read_text(encoding="utf-8") == env_example(), advice


def test_page_and_example_have_every_setting_in_the_order_of_the_fields() -> None:
    names = [setting_names(field)[0] for field in Settings.model_fields]
    assert [field for fields in groups().values() for field in fields] == list(Settings.model_fields)
    assert re.findall(r"^\| `(\w+)`", settings_page(), re.MULTILINE) == names
    assert re.findall(r"^#(\w+)=", env_example().removesuffix(ENV_END), re.MULTILINE) == names


def test_the_commented_lines_of_the_example_are_the_defaults(tmp_path: Path) -> None:
    plain = tmp_path / ".env"
    plain.write_text(re.sub(r"^#(\w+=)", r"\1", env_example(), flags=re.MULTILINE), encoding="utf-8")
    assert load(plain) == load()
    unset = {name for name, text in dotenv_values(plain).items() if not text}
    defaults = {setting_names(field)[0]: info.default for field, info in Settings.model_fields.items()}
    assert {name for name in defaults if name not in unset} == {
        name for name, default in defaults.items() if default not in (None, ()) and name != "CHAT_BRIDGE_DATA_DIR"
    }


def test_every_example_is_a_right_value(tmp_path: Path) -> None:
    found = re.findall(r"^# Example: (.*)\n#(\w+)=", env_example(), re.MULTILINE)
    examples = {name: text for text, name in found}
    for name, text in examples.items():
        if not text.startswith("a long random text"):
            load(**{**BESIDE, name: text})


def test_a_text_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SettingsError, match="CHAT_BRIDGE_TEXTS: knows no text named hellp; the names are start, help"):
        load_settings({"CHAT_BRIDGE_TEXTS": '{"hellp": "?"}'}, None)
