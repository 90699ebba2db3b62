"""TLS with real servers: what is asked for is what happens, and a server that can't prove who it is gets nothing.

The embedded PostgreSQL knows no TLS, so an installed one is used.
"""

import asyncio
import re
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import Mock
from urllib.parse import unquote

import aiohttp
import asyncpg
import pytest
import pytest_asyncio

from chat_bridge.backup import programs
from chat_bridge.backup.relay import for_programs
from chat_bridge.backup.restore import restore
from chat_bridge.backup.tables import connected
from chat_bridge.backup.vault import Vault
from chat_bridge.errors import SettingsError, StorageError
from chat_bridge.storage.embedded import binaries
from chat_bridge.storage.migrate import schema_state
from chat_bridge.storage.places import Folder
from chat_bridge.storage.postgres import Database
from chat_bridge.storage.redis_connect import redis_trouble
from chat_bridge.storage.server_account import server_account
from chat_bridge.storage.store import Store
from tests import redis_servers
from tests.bridge import running_bridge, visiting
from tests.certificates import Certificates
from tests.observe import run_command
from tests.redis_servers import free_ports
from tests.servers import own_server
from tests.storage.dialogue import CHAT, said

PASSWORD = "5b8c1f0e6d7a49320c1e"
SETTINGS = """
listen_addresses = '127.0.0.1'
port = {port}
ssl = on
ssl_cert_file = '{certificate}'
ssl_key_file = '{certificate}'
ssl_ca_file = '{authority}'
hba_file = '{rules}'
"""
RULES = """
local all all trust
hostssl all certified 127.0.0.1/32 cert
hostssl all agoric 127.0.0.1/32 scram-sha-256
"""
UNKNOWN_CA = "its certificate comes from a CA that we do not trust: name its own CA's file"
OTHER_HOST = "its certificate is good for other hosts only: connect by a name that is in it"


class Secured(NamedTuple):
    """A PostgreSQL at localhost that talks TLS only, and certificates: its own, and those of a CA that nobody knows."""

    port: int
    inside: str
    own: Certificates
    strange: Certificates

    def dsn(self, options: str, *, host: str = "localhost", user: str = f"agoric:{PASSWORD}") -> str:
        """`options` may name {own} and {strange}, the files of the CAs."""
        given = options.format(own=self.own.authority, strange=self.strange.authority)
        return f"postgresql://{user}@{host}:{self.port}/agoric?{given}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secured() -> AsyncGenerator[Secured]:
    account = server_account()
    async with own_server("15") as server:
        own, strange = (Certificates(server.folder / name, account) for name in ("own", "strange"))
        certificate, rules, (port,) = own.server("localhost"), server.folder / "rules", free_ports(1)
        rules.write_text(RULES)
        await server.make(SETTINGS.format(port=port, certificate=certificate, authority=own.authority, rules=rules))
        inside = server.dsn("postgres").replace(":5432/", f":{port}/")
        admin = await asyncpg.connect(inside)
        await admin.execute(f"create role agoric login password '{PASSWORD}'")
        await admin.execute("create role certified login")
        await admin.execute("create database agoric owner agoric")
        await admin.close()
        yield Secured(port, inside, own, strange)


async def refusal(dsn: str) -> str:
    """Why neither the pool nor a migration gets a connection."""
    reasons: list[str] = []
    for opening in (Database.open(dsn), _looked_at(dsn)):
        with pytest.raises((StorageError, SettingsError)) as refused:
            async with opening:
                pass
        reasons.append(str(refused.value))
    assert len(set(reasons)) == 1
    return reasons[0]


@asynccontextmanager
async def _looked_at(dsn: str) -> AsyncGenerator[None]:
    await schema_state(dsn)
    yield


@pytest.mark.parametrize(
    "options",
    [
        "sslmode=require",
        "sslmode=require&sslrootcert={own}",
        "sslmode=verify-ca&sslrootcert={own}",
        "sslmode=verify-full&sslrootcert={own}",
    ],
)
async def test_the_connection_is_encrypted(secured: Secured, options: str) -> None:
    dsn = secured.dsn(options)
    async with Database.open(dsn):
        admin = await asyncpg.connect(secured.inside)
        encrypted = "select ssl from pg_stat_ssl join pg_stat_activity using (pid) where usename = 'agoric'"
        assert [row["ssl"] for row in await admin.fetch(encrypted)] == [True]
        await admin.close()
    await schema_state(dsn)


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_a_wrong_ca_is_refused(secured: Secured, mode: str) -> None:
    reason = await refusal(secured.dsn(f"sslmode={mode}&sslrootcert={{strange}}"))
    assert reason == f"PostgreSQL: {UNKNOWN_CA}"


async def test_another_host_name_is_refused_with_verify_full_only(secured: Secured) -> None:
    assert await refusal(secured.dsn("sslmode=verify-full&sslrootcert={own}", host="127.0.0.1")) == (
        f"PostgreSQL: {OTHER_HOST}"
    )
    await schema_state(secured.dsn("sslmode=verify-ca&sslrootcert={own}", host="127.0.0.1"))


async def test_of_several_hosts_the_one_that_proves_itself_is_taken(secured: Secured) -> None:
    hosts = f"127.0.0.1:{secured.port},localhost"
    dsn = secured.dsn("sslmode=verify-full&sslrootcert={own}", host=hosts)
    async with Database.open(dsn) as database:
        await database.ping()
    await schema_state(dsn)


async def test_without_encryption_nobody_is_let_in(secured: Secured) -> None:
    assert "no encryption" in await refusal(secured.dsn("sslmode=disable"))


async def test_a_client_certificate_is_the_login(secured: Secured) -> None:
    ours = secured.own.client("certified")
    options = "sslmode=verify-full&sslrootcert={own}"
    dsn = secured.dsn(f"{options}&sslcert={ours}&sslkey={ours}", user="certified")
    async with Database.open(dsn) as database:
        await database.ping()
    await schema_state(dsn)
    assert await refusal(secured.dsn(options, user="certified")) == (
        "PostgreSQL: connection requires a valid client certificate"
    )
    other = secured.own.client("agoric")
    assert "certificate authentication failed" in await refusal(
        secured.dsn(f"{options}&sslcert={other}&sslkey={other}", user="certified")
    )
    strange = secured.strange.client("certified")
    await refusal(secured.dsn(f"{options}&sslcert={strange}&sslkey={strange}", user="certified"))
    assert await refusal(secured.dsn(f"{options}&sslcert={ours}&sslkey={strange}", user="certified")) == (
        "PostgreSQL: our client certificate and its key do not belong together"
    )
    assert "the file of our client certificate or its key is not one" in await refusal(
        secured.dsn(f"{options}&sslcert={secured.own.authority}", user="certified")
    )


async def test_a_backup_by_programs_that_know_no_tls(
    secured: Secured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn, vault = secured.dsn("sslmode=verify-full&sslrootcert={own}"), Vault(Folder(tmp_path), None)
    async with Store.open(dsn) as store:
        for number in range(100):
            await store.receive(said(f"{number}" + "x" * 9000))
    backup = await vault.create(dsn)
    await restore(vault, backup, dsn, replace=True)
    async with Store.open(dsn) as store:
        assert len(await store.history(CHAT.id, limit=1000)) == 100
    assert backup.dump.program == 15
    embedded = binaries() / "pg_dump"
    alone = subprocess.run([embedded, f"--dbname={dsn}"], capture_output=True, text=True, check=False)
    assert "SSL support is not compiled in" in alone.stderr
    monkeypatch.setattr(programs, "_candidates", Mock(return_value=[embedded]))
    assert (await vault.create(dsn)).dump.program == 18


async def test_programs_are_who_the_connection_is_and_nobody_else_gets_in(secured: Secured) -> None:
    key = secured.own.client("certified")
    options = f"sslmode=verify-full&sslrootcert={{own}}&sslcert={key}&sslkey={key}&channel_binding=require"
    dsn = secured.dsn(options, user="certified")
    async with connected(dsn) as connection:
        async with for_programs(dsn, connection) as reached:
            program = await asyncpg.connect(reached)
            told = "select current_user, (select ssl from pg_stat_ssl where pid = pg_backend_pid())"
            assert tuple(await program.fetchrow(told)) == ("certified", True)
            folder = Path(unquote(reached.partition("host=")[2].partition("&")[0]))
            assert folder.stat().st_mode & 0o777 == 0o700
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await program.fetchval("select 1")
    assert not folder.exists()


@pytest.mark.parametrize("option", ["sslrootcert", "sslcert", "sslkey"])
async def test_a_file_that_is_not_there_is_named(secured: Secured, option: str) -> None:
    assert await refusal(secured.dsn(f"sslmode=verify-full&{option}=/nonexistent.pem")) == (
        f"DATABASE_URL: {option} names a file that can't be read (No such file or directory): /nonexistent.pem"
    )


async def test_the_cas_of_the_system(secured: Secured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As Neon's page has it, but for what the bridge asks to write instead of sslmode=require.
    dsn = secured.dsn("sslmode=verify-full&sslrootcert=system&channel_binding=require")
    assert await refusal(dsn) == f"PostgreSQL: {UNKNOWN_CA}"
    monkeypatch.setenv("SSL_CERT_FILE", str(secured.own.authority))
    vault = Vault(Folder(tmp_path), None)
    async with Store.open(dsn) as store:
        await store.receive(said("hello"))
    await restore(vault, await vault.create(dsn), dsn, replace=True)
    implied = secured.dsn("sslrootcert=system")
    await schema_state(implied)
    assert await refusal(secured.dsn("sslrootcert=system", host="127.0.0.1")) == f"PostgreSQL: {OTHER_HOST}"
    monkeypatch.setenv("PGSSLROOTCERT", "system")
    await schema_state(secured.dsn("sslmode=verify-full"))


async def test_the_cas_of_the_system_and_a_client_certificate(
    secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(secured.own.authority))
    ours = secured.own.client("certified")
    dsn = secured.dsn(f"sslrootcert=system&sslcert={ours}&sslkey={ours}", user="certified")
    async with Database.open(dsn) as database:
        await database.ping()
    other = secured.strange.client("certified")
    assert await refusal(secured.dsn(f"sslrootcert=system&sslcert={ours}&sslkey={other}", user="certified")) == (
        "PostgreSQL: our client certificate and its key do not belong together"
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("sslmode=require&", "sslrootcert=system goes with sslmode=verify-full only"),
        ("sslcrl={own}&", "sslcrl does not go with sslrootcert=system: name the file of the CA"),
        ("ssl_min_protocol_version=TLSv1.3&", "ssl_min_protocol_version does not go with sslrootcert=system"),
    ],
)
async def test_what_would_make_the_cas_of_the_system_worth_less(secured: Secured, options: str, told: str) -> None:
    assert (await refusal(secured.dsn(f"{options}sslrootcert=system"))).startswith(f"DATABASE_URL: {told}")


async def test_a_ca_that_is_none(secured: Secured, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("not a certificate")
    reason = await refusal(secured.dsn(f"sslmode=verify-full&sslrootcert={file}"))
    assert reason == "PostgreSQL: the file of the CA holds no certificate"


async def test_a_server_without_tls_is_refused(unused_tcp_port: int) -> None:
    async with own_server() as server:
        await server.make(f"listen_addresses = '127.0.0.1'\nport = {unused_tcp_port}\n")
        dsn = f"postgresql://chat_bridge@127.0.0.1:{unused_tcp_port}/postgres"
        assert await refusal(f"{dsn}?sslmode=require") == "PostgreSQL: it does not talk TLS, and sslmode demands that"
        await schema_state(f"{dsn}?sslmode=prefer")


class SecuredRedis(NamedTuple):
    """A Redis at localhost that talks TLS only and demands a client certificate."""

    port: int
    own: Certificates
    strange: Certificates

    def url(self, *, host: str = "localhost", authority: Path | None = None, certificate: Path | None = None) -> str:
        options = [f"ssl_ca_certs={authority or self.own.authority}"]
        if certificate is not None:
            options += [f"ssl_certfile={certificate}", f"ssl_keyfile={certificate}"]
        return f"rediss://:{PASSWORD}@{host}:{self.port}/0?{'&'.join(options)}"


@pytest.fixture
async def secured_redis(tmp_path: Path) -> AsyncGenerator[SecuredRedis]:
    own, strange = (Certificates(tmp_path / name) for name in ("own", "strange"))
    certificate, (port,) = own.server("localhost"), free_ports(1)
    options = {
        "tls-port": str(port),
        "tls-cert-file": str(certificate),
        "tls-key-file": str(certificate),
        "tls-ca-cert-file": str(own.authority),
        "requirepass": PASSWORD,
    }
    async with redis_servers.own_server(0, options) as server:
        await server.start()
        yield SecuredRedis(port, own, strange)


async def test_redis_over_tls_with_a_client_certificate(secured_redis: SecuredRedis) -> None:
    ours = secured_redis.own.client("bridge")
    assert await redis_trouble(secured_redis.url(certificate=ours)) is None
    other = await redis_trouble(secured_redis.url(certificate=ours, authority=secured_redis.strange.authority))
    assert other == UNKNOWN_CA
    assert await redis_trouble(secured_redis.url(certificate=ours, host="127.0.0.1")) == OTHER_HOST
    assert await redis_trouble(secured_redis.url()) is not None, "no client certificate"
    assert await redis_trouble(secured_redis.url(certificate=secured_redis.strange.client("bridge"))) is not None
    with pytest.raises(SettingsError, match=r"REDIS_URL: ssl_ca_certs names a file that can't be read .*: /no\.pem"):
        await redis_trouble(secured_redis.url(certificate=ours, authority=Path("/no.pem")))


async def test_a_bridge_in_production_over_tls(secured: Secured, secured_redis: SecuredRedis) -> None:
    settings = {
        "CHAT_BRIDGE_ENV": "production",
        "CHAT_BRIDGE_API_KEY": "f3a1c95d7e20b8646c0d1b2f9a8e7d53",
        "CHAT_BRIDGE_SECRET": "35d7e8a9f2b1d0c6468b02e7d59c1a3f",
        "REPEAT_MODE": "true",
        "REDIS_URL": secured_redis.url(certificate=secured_redis.own.client("bridge")),
    }
    dsn = secured.dsn("sslmode=verify-full&sslrootcert={own}")
    async with running_bridge(dsn, **settings) as bridge, visiting(bridge.url) as chat:
        await chat.send("hello")
        assert await chat.until(2) == ["> hello", "hello"]
        async with aiohttp.ClientSession(bridge.url) as http:
            while (await (await http.get("/readyz")).json())["checks"]["redis"] != "ok":
                await asyncio.sleep(0.05)
    code, output, _ = await run_command("doctor", **settings, DATABASE_URL=dsn)
    assert code == 0, output
    assert re.search(r"^ok +production +No rule of CHAT_BRIDGE_ENV=production is broken\.$", output, re.MULTILINE)


async def test_doctor_says_which_certificate_is_not_trusted(secured: Secured, secured_redis: SecuredRedis) -> None:
    code, output, _ = await run_command(
        "doctor",
        DATABASE_URL=secured.dsn("sslmode=verify-full&sslrootcert={strange}"),
        REDIS_URL=secured_redis.url(authority=secured_redis.strange.authority),
        CHAT_BRIDGE_SECRET="35d7e8a9f2b1d0c6468b02e7d59c1a3f",
    )
    assert code == 1
    assert f"PostgreSQL: {UNKNOWN_CA}" in output
    assert f"The bridge works without, but slower: {UNKNOWN_CA}." in output
    assert PASSWORD not in output
