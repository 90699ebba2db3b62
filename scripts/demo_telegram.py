"""The whole path of a Telegram bot without an account: a server that speaks the Bot API, the bridge, and a page that
plays the Telegram client. Ctrl-C ends all of it; nothing is kept.

Answers come from the echo agent, or from your own if MASTRA_AGENT_ID is set (in the environment or in `.env`).
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from chat_bridge.settings import environment

PROJECT = Path(__file__).parent.parent
TOKEN = "7000000001:the-demo-needs-no-real-token"
OURS = ("MASTRA_", "REPEAT_MODE", "CHAT_BRIDGE_LANGUAGE", "CHAT_BRIDGE_TEXTS", "BUSY_POLICY", "TELEGRAM_GROUPS")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Not where we were called: a `.env` there may name a real database.
    with tempfile.TemporaryDirectory(prefix="demo-telegram-") as folder:
        telegram, page = start_telegram(Path(folder))
        bridge = None
        try:
            bridge = start_bridge(Path(folder), page)
            print(f"\nOpen {page} and write to the bot. Ctrl-C ends the demo.", flush=True)
            bridge.wait()
        except KeyboardInterrupt:
            print()
        finally:
            for process in filter(None, (bridge, telegram)):
                process.terminate()
                process.wait()


def start_telegram(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """The server that speaks the Bot API, and the address of its page."""
    port = os.environ.get("DEMO_PORT", "8081")
    command = [sys.executable, "-m", "tests.fake_telegram", "--port", port, "--token", TOKEN, "--demo"]
    process = start(command, {**os.environ, "PYTHONPATH": str(PROJECT)}, folder)
    return process, until(process, r"(http://[\w.:]+)", "the Bot API server")


def start_bridge(folder: Path, api: str) -> subprocess.Popen[str]:
    """The bridge in front of it, with data of its own."""
    kept = {name: text for name, text in environment(dotenv=PROJECT / ".env").items() if name.startswith(OURS)}
    settings = {
        "CHAT_BRIDGE_DATA_DIR": str(folder / "data"),
        "CHAT_BRIDGE_LOG_LEVEL": "warning",
        "PORT": "0",
        "TELEGRAM_ENABLED": "true",
        "TELEGRAM_BOT_TOKEN": TOKEN,
        "TELEGRAM_API_BASE_URL": api,
    }
    process = start([sys.executable, "-m", "chat_bridge", "serve"], {**plain_environment(), **kept, **settings}, folder)
    until(process, r"(is ready)", "the bridge")
    return process


def plain_environment() -> Mapping[str, str]:
    """What any program needs, and no settings of a bridge."""
    return {name: os.environ[name] for name in ("HOME", "PATH", "LANG", "TMPDIR") if name in os.environ}


def start(command: list[str], environ: Mapping[str, str], folder: Path) -> subprocess.Popen[str]:
    # In a session of its own: Ctrl-C reaches only us, and we end the others in order.
    return subprocess.Popen(command, env=environ, cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True)


def until(process: subprocess.Popen[str], pattern: str, name: str) -> str:
    """Wait for a line that matches, and give its group; what follows is read away."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(pattern, line):
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return found[1]
    sys.exit(f"{name} did not start (exit code {process.wait()}); is the port in use? Choose one: DEMO_PORT=8082")


if __name__ == "__main__":
    main()
