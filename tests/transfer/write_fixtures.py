"""Writes the SQLite files of tests/transfer/files with the libraries whose files they are.

    python write_fixtures.py    with openai-agents, langchain-community, sqlalchemy[asyncio] installed, and beside it a
                                node_modules folder with @mastra/libsql and @mastra/memory for write_mastra.mjs

They were last written by openai-agents 0.24.0, langchain-community 0.4.2 (langchain-core 1.7.2), @mastra/libsql 1.23.1
and @mastra/memory 1.31.0.
"""

import asyncio
import gzip
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

from agents import SQLiteSession
from langchain_community.chat_message_histories import SQLChatMessageHistory
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

FILES = Path(__file__).parent / "files"
LONG = "a long answer, word by word. " * 200


async def openai_agents() -> None:
    ada = SQLiteSession("ada", FILES / "openai-agents.sqlite")
    await ada.add_items(
        [
            {"role": "user", "content": "Xin chào 👋"},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Huế"}'},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "It rains in Huế.", "annotations": []}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "and here?"},
                    {"type": "input_image", "image_url": "https://example.invalid/sky.png", "detail": "auto"},
                ],
            },
            {"role": "assistant", "content": LONG},
        ]
    )
    ada.close()
    for number in range(20):
        session = SQLiteSession(f"user-{number}", FILES / "openai-agents.sqlite")
        await session.add_items(
            [{"role": ("user", "assistant")[n % 2], "content": f"{number}: message {n}"} for n in range(10)]
        )
        session.close()


def langchain() -> None:
    for session, messages in {
        "s-1": [
            SystemMessage("be nice"),
            HumanMessage("hello"),
            AIMessage("", tool_calls=[{"name": "weather", "args": {}, "id": "t1"}]),
            ToolMessage("rain", tool_call_id="t1"),
            AIMessage("it rains"),
            HumanMessage(
                [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": "https://example.invalid/a.png"}},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 4000}},
                ]
            ),
        ],
        "s-2": [HumanMessage("one\x00two"), AIMessage("three")],
    }.items():
        history = SQLChatMessageHistory(session, connection=f"sqlite:///{FILES / 'langchain.sqlite'}")
        history.add_messages(messages)


def settle(file: Path) -> None:
    """Move what is in the journal into the file: reading it then leaves no other files beside it."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("pragma journal_mode = delete")


def mastra() -> None:
    """Mastra makes forty tables, most of them empty: packed, they are small."""
    file = FILES / "mastra.sqlite"
    subprocess.run(["node", "write_mastra.mjs", file], cwd=Path(__file__).parent, check=True)
    settle(file)
    (FILES / "mastra.sqlite.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))
    file.unlink()


FILES.mkdir(exist_ok=True)
for old in FILES.iterdir():
    old.unlink()
asyncio.run(openai_agents())
settle(FILES / "openai-agents.sqlite")
langchain()
mastra()
