"""Bodies that other programs keep as JSON: what is said, what is a file, and what is something else."""

import json
from typing import Any

import pytest

from chat_bridge.transfer.formats import DECODERS, BadRowError, Body

BYTES = "data:image/png;base64," + "A" * 5000


def body(form: str, value: object, role: str | None = None) -> Body:
    return DECODERS[form](value if isinstance(value, str) else json.dumps(value), role)


@pytest.mark.parametrize(
    ("form", "value", "role", "direction", "text"),
    [
        ("openai-agents", {"role": "user", "content": "hi"}, None, "inbound", "hi"),
        (
            "openai-agents",
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "n"}]},
            None,
            "outbound",
            "n",
        ),
        ("langchain", {"type": "chat", "data": {"role": "user", "content": "hi"}}, None, "inbound", "hi"),
        ("langchain", {"type": "AIMessageChunk", "data": {"content": ["a", "b"]}}, None, "outbound", "a\n\nb"),
        ("mastra", "as older versions wrote it", "user", "inbound", "as older versions wrote it"),
        ("mastra", '"quoted"', "assistant", "outbound", "quoted"),
        ("mastra", [{"type": "text", "text": "hi"}], "assistant", "outbound", "hi"),
        ("mastra", {"content": "hi"}, "user", "inbound", "hi"),
    ],
)
def test_messages(form: str, value: object, role: str | None, direction: str, text: str) -> None:
    found = body(form, value, role)
    assert (found.direction, found.text, found.kind, found.rest) == (direction, text, None, {})


@pytest.mark.parametrize(
    ("form", "value", "role", "kind"),
    [
        ("openai-agents", {"type": "reasoning", "summary": []}, None, "reasoning"),
        ("openai-agents", {"role": "system", "content": "be nice"}, None, "system"),
        ("openai-agents", {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, None, "no_text"),
        ("langchain", {"type": "remove", "data": {"id": "1"}}, None, "remove"),
        ("mastra", {"parts": [{"type": "reasoning", "reasoning": "hm"}]}, "assistant", "no_text"),
        ("mastra", {"parts": [{"type": "text", "text": "be nice"}]}, "system", "system"),
    ],
)
def test_what_is_no_message_is_kept_whole(form: str, value: dict[str, Any], role: str | None, kind: str) -> None:
    found = body(form, value, role)
    assert found.kind == kind
    assert found.rest


@pytest.mark.parametrize(
    ("form", "value"),
    [
        ("openai-agents", "{broken"),
        ("openai-agents", [1]),
        ("openai-agents", {"role": "user", "content": 5}),
        ("langchain", "hello"),
    ],
)
def test_what_can_not_be_read_is_bad(form: str, value: object) -> None:
    with pytest.raises(BadRowError):
        body(form, value)


def test_files() -> None:
    parts = [
        {"type": "input_image", "image_url": "https://example.invalid/a", "detail": "auto"},
        {"type": "input_file", "file_url": "https://example.invalid/b.pdf", "filename": "b.pdf"},
        {"type": "input_image", "image_url": BYTES},
        {"type": "input_image", "file_id": "file-1"},
    ]
    found = body("openai-agents", {"role": "user", "content": parts})
    assert [(file["kind"], file["ref"], file.get("name")) for file in found.attachments] == [
        ("image", "https://example.invalid/a", None),
        ("file", "https://example.invalid/b.pdf", "b.pdf"),
    ]
    assert found.inline_files == 1
    assert found.rest["parts"] == [
        {"type": "input_image", "image_url": f"({len(BYTES)} characters, left out)"},
        {"type": "input_image", "file_id": "file-1"},
    ]
