"""`make demo-telegram`, as its user starts it."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import aiohttp

from tests.fake_telegram.client import FakeTelegram

DEMO = Path(__file__).parent.parent / "scripts" / "demo_telegram.py"


async def start(folder: Path, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(DEMO),
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def test_a_message_is_answered_and_ctrl_c_ends_it_all(tmp_path: Path, unused_tcp_port: int) -> None:
    (tmp_path / ".env").write_text("DATABASE_URL=postgresql://a-real-one.example/agoric\n")
    demo = await start(tmp_path, DEMO_PORT=str(unused_tcp_port))
    assert demo.stdout is not None
    told = ""
    while not (page := re.search(r"Open (http://\S+) and write", told)):
        line = await demo.stdout.readline()
        assert line, told
        told += line.decode()
    async with aiohttp.ClientSession() as http:
        async with http.get(page[1]) as response:
            assert response.status == 200
        telegram = FakeTelegram(http, page[1], "7000000001:of-the-demo")
        chat = await telegram.private(await telegram.user("Linh"))
        await chat.say("hello")
        await chat.until_texts(["> hello", "hello"])
        demo.send_signal(signal.SIGINT)
        rest = (await demo.stdout.read()).decode()
        assert await demo.wait() == 0, rest
        assert "Traceback" not in told + rest
    async with aiohttp.ClientSession() as http:
        try:
            await http.get(page[1])
        except aiohttp.ClientConnectorError:
            return
    raise AssertionError("the server is still there")


async def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    async with asyncio.timeout(30):
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        demo = await start(tmp_path, DEMO_PORT=str(port))
        output, _ = await demo.communicate()
        server.close()
        await server.wait_closed()
    assert demo.returncode == 1
    assert "Traceback" not in output.decode()
    assert output.decode().splitlines()[-1].endswith("is the port in use? Choose one: DEMO_PORT=8082")
