"""The compose stack: it comes up healthy, answers, keeps its messages whatever is killed, and leaves nothing behind."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from tests.bridge import Chat, visiting
from tests.docker.stack import IMAGE, Stack, docker, free_port
from tests.needs import unavailable

pytestmark = pytest.mark.timeout(600)  # the first test builds the image

SERVICES = ("app", "postgres", "redis", "s3")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what containers do."""
    while not await asyncio.to_thread(condition):
        await asyncio.sleep(0.2)


async def say(chat: Chat, text: str, client_msg_id: str) -> None:
    """Send it until somebody has stored it, as a page does."""
    while True:
        try:
            status, _ = await chat.post(text, client_msg_id)
        except (aiohttp.ClientError, OSError):
            status = 0
        if status in (200, 202):
            return
        await asyncio.sleep(0.1)


async def test_it_comes_up_healthy_and_answers(stack: Stack) -> None:
    assert {service: stack.health(service) for service in SERVICES} == dict.fromkeys(SERVICES, "healthy")
    assert "bucket attachments: made" in stack.compose("logs", "bucket")
    async with aiohttp.ClientSession() as http, http.get(f"{stack.url()}/readyz") as response:
        assert await response.json() == {
            "status": "ok",
            "checks": {"database": "ok", "migrations": "ok", "redis": "ok", "platforms.webchat": "ok"},
        }
    async with aiohttp.ClientSession() as http, http.get(f"{stack.url()}/chat") as response:
        assert response.status == 200
        assert "<!doctype html>" in await response.text()
    async with visiting(stack.url()) as chat:
        await chat.send("hello")
        assert await chat.until(2) == ["> hello", "hello"]


def test_the_bucket_is_made_once(stack: Stack) -> None:
    again = stack.compose("run", "--rm", "--no-deps", "bucket")
    assert "bucket attachments: is there" in again
    wrong = stack.tried("run", "--rm", "--no-deps", "--env", "S3_SECRET_KEY_FILE=/run/keys/REDIS_PASSWORD", "bucket")
    assert wrong.returncode == 1
    assert "can't be made: 403" in wrong.stderr


def test_the_image_holds_the_program_and_nothing_else(stack: Stack) -> None:
    [image] = json.loads(docker("image", "inspect", IMAGE))
    assert image["Config"]["User"] == "10001:10001"
    assert image["Config"]["Entrypoint"] == ["chat-bridge"]
    assert image["Config"]["Healthcheck"]["Test"][0] == "CMD"
    assert image["Config"]["Labels"]["org.opencontainers.image.title"] == "agoric-chat-bridge"
    found = stack.python(
        "import importlib.util, os, shutil, pathlib\n"
        "modules = ['pip', 'ensurepip', 'uv_build', 'pytest']\n"
        "print(os.getuid(), [name for name in modules if importlib.util.find_spec(name)],"
        " [name for name in ('pip', 'gcc', 'make', 'git', 'curl') if shutil.which(name)],"
        " [str(path) for name in ('test_stack.py', 'Dockerfile', '.env') for path in pathlib.Path('/').glob(name)],"
        " list(pathlib.Path('/source').glob('*')))"
    )
    assert found.strip() == "10001 [] [] [] []"


def test_only_tmp_can_be_written_and_nobody_becomes_root(stack: Stack) -> None:
    places = stack.python(
        "import os\n"
        "for place in ('/', '/tmp', '/opt/chat-bridge', '/run/keys'):\n"
        "    try:\n"
        "        open(os.path.join(place, 'file'), 'w')\n"
        "    except OSError:\n"
        "        print(place)\n"
    )
    assert places.split() == ["/", "/opt/chat-bridge", "/run/keys"]
    [app] = stack.containers("app")
    assert app["HostConfig"]["ReadonlyRootfs"]
    assert app["HostConfig"]["CapDrop"] == ["ALL"]
    status = stack.python("print(open('/proc/self/status').read())")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status


def test_passwords_are_random_needed_and_in_no_environment(stack: Stack) -> None:
    names = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "CHAT_BRIDGE_SECRET", "CHAT_BRIDGE_API_KEY")
    keys = [stack.python(f"print(open('/run/keys/{name}').read())").strip() for name in names]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 48 for key in keys)
    for service in SERVICES:
        told = json.dumps(stack.containers(service))
        assert not [key for key in keys if key in told]
    refused = stack.python(
        "import asyncio, asyncpg\n"
        "async def main():\n"
        "    for password in ('agoric', 'postgres', 'password'):\n"
        "        try:\n"
        "            await asyncpg.connect(f'postgresql://agoric:{password}@postgres/agoric')\n"
        "        except asyncpg.InvalidPasswordError:\n"
        "            print('refused')\n"
        "asyncio.run(main())\n"
    )
    assert refused.split() == ["refused"] * 3
    assert "NOAUTH" in stack.compose("exec", "-T", "redis", "redis-cli", "ping")


def test_given_passwords_are_in_no_environment_but_that_of_the_task_that_keeps_them(
    checkout: Path, tmp_path: Path
) -> None:
    shutil.copy(checkout / "compose.yaml", tmp_path)
    names = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "CHAT_BRIDGE_SECRET")
    given = {name: f"given-{name}" for name in (*names, "CHAT_BRIDGE_API_KEY")}
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in given.items()))
    told = Stack(tmp_path, "agoric-test-passwords", ["compose.yaml"]).compose("config", "--format", "json")
    services = {name: json.dumps(service) for name, service in json.loads(told)["services"].items()}
    for value in given.values():
        assert [name for name, service in services.items() if value in service] == ["keys"]


def test_a_secret_that_only_its_owner_can_read(stack: Stack, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(stack.settings["S3_ACCESS_KEY"])
    secret.chmod(0o600)
    if os.getuid() == 0:
        os.chown(secret, 1000, 1000)

    def keys(file: str) -> subprocess.CompletedProcess[str]:
        given = ("--env", f"S3_ACCESS_KEY_FILE={file}", "--volume", f"{secret}:/run/secrets/s3_access_key:ro")
        return stack.tried("run", "--rm", "--no-deps", *given, "keys")

    assert keys("/run/secrets/s3_access_key").returncode == 0
    missing = keys("/run/secrets/missing")
    assert missing.returncode == 1
    assert "S3_ACCESS_KEY_FILE: /run/secrets/missing can't be read" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_a_backup_is_made_listed_and_verified(stack: Stack) -> None:
    def backup(command: str) -> str:
        running = ("exec", "--no-TTY", "--env", "BACKUP_TO=/tmp/backups", "app")
        return stack.compose(*running, "chat-bridge", "backup", command)

    made = backup("create").splitlines()[0]
    assert backup("list").splitlines() == [made]
    backup("verify")


def test_without_a_database_the_image_says_what_is_missing(stack: Stack) -> None:
    refused = subprocess.run(
        ["docker", "run", "--rm", "--read-only", IMAGE, "serve"], capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0
    assert "set DATABASE_URL to a PostgreSQL server" in refused.stderr
    assert "Traceback" not in refused.stderr


async def test_sigterm_reaches_the_bridge_and_it_stops_cleanly(stack: Stack) -> None:
    stack.compose("stop", "app")
    [app] = stack.containers("app")
    assert app["State"]["ExitCode"] == 0
    assert "stopping: running turns may finish" in stack.compose("logs", "app")
    stack.compose("start", "app")
    await until(lambda: stack.health("app") == "healthy")


async def test_a_killed_bridge_comes_back_and_answers_what_waits(stack: Stack) -> None:
    async with visiting(stack.url()) as chat:
        await say(chat, "before", "1")
        assert await chat.until(2) == ["> before", "before"]
        [before] = stack.containers("app")
        await say(chat, "when it dies", "2")
        stack.tried("exec", "--no-TTY", "app", "python", "-c", "import os; os.kill(-1, 9)")
        await until(lambda: stack.containers("app")[0]["RestartCount"] > before["RestartCount"])
        await until(lambda: stack.health("app") == "healthy")
        assert await chat.until(4) == ["> before", "before", "> when it dies", "when it dies"]


@pytest.mark.parametrize("service", ["postgres", "redis", "s3"])
async def test_a_server_that_dies_comes_back(stack: Stack, service: str) -> None:
    [before] = stack.containers(service)
    try:
        # From outside: nobody in the container can kill its first process.
        os.kill(before["State"]["Pid"], signal.SIGKILL)
    except OSError as error:
        unavailable(f"the containers' processes can't be killed from here ({error.strerror})")
    await until(lambda: stack.containers(service)[0]["RestartCount"] > before["RestartCount"])
    await until(lambda: {stack.health(service), stack.health("app")} == {"healthy"})
    async with visiting(stack.url()) as chat:
        await say(chat, "after", "1")
        assert await chat.until(2) == ["> after", "after"]


async def test_health_follows_the_database(stack: Stack) -> None:
    async with visiting(stack.url()) as chat:
        await say(chat, "before", "1")
        stack.compose("kill", "postgres")
        await until(lambda: stack.health("app") == "unhealthy")
        assert (await chat.post("nobody stores this", "2"))[0] == 503
        stack.compose("start", "postgres")
        await until(lambda: stack.health("app") == "healthy")
        await say(chat, "after", "3")
        assert await chat.until(4) == ["> before", "before", "> after", "after"]


async def test_the_bridge_waits_for_its_database(stack: Stack) -> None:
    stack.compose("stop", "postgres", "app")
    [app] = stack.containers("app")
    seen = stack.compose("logs", "app").count("database.waiting")
    docker("start", app["Id"])
    await until(lambda: stack.compose("logs", "app").count("database.waiting") > seen)
    assert stack.health("app") == "starting"
    stack.compose("start", "postgres")
    await until(lambda: stack.health("app") == "healthy")


async def test_the_whole_stack_restarts_and_has_every_message(stack: Stack) -> None:
    async with visiting(stack.url()) as chat:
        said = [f"message {number}" for number in range(20)]
        for text in said:
            await say(chat, text, text)
        await chat.answered()
        before = await chat.messages(limit=200)
        stack.compose("restart")
        await until(lambda: all(stack.health(service) == "healthy" for service in SERVICES))
        assert await chat.messages(limit=200) == before
        stack.down()
        stack.up()
        assert await chat.messages(limit=200) == before
        assert [message["text"] for message in before if message["direction"] == "inbound"] == said


async def test_three_replicas_behind_the_balancer(stack: Stack) -> None:
    # From nothing, so that three bridges want to make the schema at once; and by the rules of production.
    stack.down("--volumes")
    with (stack.folder / ".env").open("a") as file:
        file.write("CHAT_BRIDGE_ENV=production\n")
    stack.up("--scale", "app=3", profiles=["balanced"], APP_PORT="0")
    replicas = stack.containers("app")
    assert [replica["State"]["Health"]["Status"] for replica in replicas] == ["healthy"] * 3
    assert stack.compose("logs", "app").count("schema.ready") == 3
    url = stack.url("balancer")
    people = 12

    async def talk(number: int, killed: asyncio.Event) -> None:
        async with visiting(url) as chat:
            await say(chat, "first", "first")
            await chat.answered()
            if number == 0:
                docker("kill", replicas[0]["Id"])
                killed.set()
            await killed.wait()
            await say(chat, "second", "second")
            await say(chat, "third", "third")
            messages = await chat.answered()
            assert [message["text"] for message in messages if message["direction"] == "inbound"] == [
                "first",
                "second",
                "third",
            ]
            assert {message["status"] for message in messages} == {"answered", "sent"}

    killed = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for number in range(people):
            group.create_task(talk(number, killed))
    running = [docker("inspect", "--format", "{{.State.Running}}", replica["Id"]).strip() for replica in replicas]
    assert running == ["false", "true", "true"]  # Docker takes its own kill for the operator's wish
    stack.compose("rm", "--stop", "--force", "balancer")  # it has the port
    stack.up()
    async with visiting(stack.url()) as chat:
        await chat.send("one replica again")
        assert len(await chat.until(2)) == 2


async def test_the_demo_agent_of_mastra(stack: Stack) -> None:
    stack.up(profiles=["mastra"], MASTRA_AGENT_ID="demo")
    async with visiting(stack.url()) as chat:
        await chat.send("hello")
        await chat.until(2)
        await chat.send("again")
        texts = await chat.until(4)
        assert texts[3] == (
            "I am the demo agent. You have written 2 of the messages I remember; the last one is: again"
        )


async def test_the_source_is_mounted_and_a_change_restarts_the_bridge(stack: Stack) -> None:
    dev = Stack(stack.folder, stack.name, [*stack.files, "compose.dev.yaml"], **stack.settings)
    dev.up()
    chat = f"{dev.url()}/chat"
    with dev.started("watch", "--no-up") as watching:
        await until(lambda: "Watch enabled" in watching())
        texts = stack.folder / "src" / "chat_bridge" / "web" / "page_texts.py"
        texts.write_text(texts.read_text().replace("How can I help you?", "What has changed?"))

        async def page() -> str:
            async with aiohttp.ClientSession() as http:
                with suppress(aiohttp.ClientError):
                    async with http.get(chat) as response:
                        return await response.text()
            return ""

        while "What has changed?" not in await page():
            await asyncio.sleep(0.2)


async def test_production_with_servers_that_others_run(stack: Stack, tmp_path: Path) -> None:
    """The file for production, with the stack's PostgreSQL and Redis as the servers of others."""
    (tmp_path / "secrets").mkdir()
    for name in ("DATABASE_URL", "REDIS_URL", "CHAT_BRIDGE_SECRET", "CHAT_BRIDGE_API_KEY"):
        secret = tmp_path / "secrets" / name.lower()
        secret.write_text(stack.python(f"print(open('/run/keys/{name}').read())"))
        secret.chmod(0o444)
    (tmp_path / "secrets" / "database_ca").touch()
    (tmp_path / "compose.yaml").write_text((stack.folder / "deploy" / "compose" / "production.yaml").read_text())
    (tmp_path / "network.yaml").write_text(f"networks: {{default: {{name: {stack.name}_default, external: true}}}}\n")
    other = Stack(tmp_path, f"{stack.name}-production", ["compose.yaml", "network.yaml"], PORT=free_port())
    try:
        refused = other.tried("run", "--rm", "app")
        assert "CHAT_BRIDGE_ENV=production can't run like this" in refused.stderr  # no TLS to the servers
        (tmp_path / ".env").write_text("CHAT_BRIDGE_PRIVATE_NETWORK=database,redis\n")
        other.compose("up", "--detach", "--wait")
        async with visiting(other.url()) as chat:
            await chat.send("hello")
            assert await chat.until(2) == ["> hello", "hello"]
    finally:
        other.down()
