"""What may stand after the ? of DATABASE_URL: pasted from a provider's page, it works or says what to write instead."""

import re

import pytest

from chat_bridge.errors import SettingsError
from chat_bridge.storage.postgres import Connector, plain
from tests.observe import rows, run_command
from tests.storage.dialogue import opened, said

PLACE = "postgresql://me:p%40ss@db.example:5432/agoric"


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ("", ""),
        ("sslmode=require&connect_timeout=10&application_name=shop", "sslmode=require"),
        ("keepalives=1&keepalives_idle=30&keepalives_interval=5&keepalives_count=3&tcp_user_timeout=9", ""),
        ("gssencmode=disable&sslmode=require&channel_binding=prefer", "sslmode=require"),
        ("sslmode=verify-full&sslrootcert=system&channel_binding=require", "sslmode=verify-full&sslrootcert=system"),
        ("client_encoding=utf8&target_session_attrs=read-write", "target_session_attrs=read-write"),
        ("options=endpoint%3Dep-1%20-csearch_path%3Da", "options=endpoint%3Dep-1%20-csearch_path%3Da"),
        ("host=/a/socket&port=5432&sslpassword=", "host=/a/socket&port=5432"),
        ("sslmode=require&", "sslmode=require"),
        ("database=agoric", "dbname=agoric"),
    ],
)
def test_what_changes_nothing_is_left_out(options: str, kept: str) -> None:
    assert plain(f"{PLACE}?{options}".rstrip("?")) == f"{PLACE}?{kept}".rstrip("?")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("sslmode=require&channel_binding=require", "option channel_binding .* sslmode=verify-full&sslrootcert=system"),
        ("sslmode=verify-ca&sslrootcert=/ca.pem&channel_binding=require", "option channel_binding can't be used"),
        ("pgbouncer=true", "the option pgbouncer can't be used: leave it out, and set DATABASE_PGBOUNCER=true"),
        ("ssl=true", "the option ssl can't be used: write sslmode=verify-full"),
        ("gssencmode=require", "the option gssencmode can't be used"),
        ("require_auth=scram-sha-256", "the option require_auth can't be used"),
        ("statement_timeout=5s", "option statement_timeout .*: leave it out; .* options=-cNAME%3DVALUE"),
        ("ssl%6Dodus=hush", "the option sslmodus can't be used"),
    ],
)
def test_what_can_not_be_kept_is_named_at_the_start(options: str, told: str) -> None:
    with pytest.raises(SettingsError, match=f"^DATABASE_URL: .*{told}") as refused:
        Connector(f"{PLACE}?{options}")
    assert "hush" not in str(refused.value)


def test_a_piece_of_a_password_is_not_shown() -> None:
    with pytest.raises(SettingsError, match="in a password, write %3F for") as refused:
        plain("postgresql://me:12?hush=er@db/agoric")
    assert "hush" not in str(refused.value)


async def test_a_pasted_url_works(database: str) -> None:
    pasted = f"{database}&connect_timeout=10&keepalives_idle=30&gssencmode=disable&channel_binding=prefer"
    async with opened(pasted) as store:
        await store.receive(said("hello"))
    assert len(await rows(database, "select from messages")) == 1


@pytest.mark.parametrize("command", [["serve"], ["migrate"], ["backup", "create"]])
async def test_every_command_says_so(command: list[str], database: str) -> None:
    settings = {"CHAT_BRIDGE_SECRET": "s" * 32, "PORT": "0", "BACKUP_TO": "/nonexistent", "DATABASE_WAIT_SECONDS": "60"}
    code, _, errors = await run_command(*command, DATABASE_URL=f"{database}&pgbouncer=true", **settings)
    assert code == 1
    last = errors.splitlines()[-1]
    assert re.match("chat-bridge: DATABASE_URL: the option pgbouncer can't be used", last), errors
