"""Histories of LangChain: python write_langchain.py FILE"""

import sys

from langchain_community.chat_message_histories import SQLChatMessageHistory
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

MESSAGES = {
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
}


def main(file: str) -> None:
    for session, messages in MESSAGES.items():
        SQLChatMessageHistory(session, connection=f"sqlite:///{file}").add_messages(messages)


if __name__ == "__main__":
    main(sys.argv[1])
