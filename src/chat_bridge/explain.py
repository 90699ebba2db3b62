"""The story of a message in words, for `chat-bridge explain` and `chat-bridge dlq show`."""

from datetime import datetime
from typing import Any

from chat_bridge.storage.messages import attachments_of
from chat_bridge.storage.outbox import file_of
from chat_bridge.storage.postgres import Record
from chat_bridge.storage.story import Story
from chat_bridge.storage.text import from_jsonb
from chat_bridge.tracing import trace_of


def told(story: Story) -> list[str]:
    """A story as lines."""
    message = story.message
    lines = [
        f"message {message['id']}: {message['direction']} {message['content_type']}, "
        f"{_became(story)}{_because(message)}",
        f"  conversation  {message['conversation_id']} ({message['platform']} {message['account']} "
        f"{message['platform_conversation_id']}{' ' + message['thread'] if message['thread'] else ''})",
        f"  session       {message['session_id']} ({message['session_status']}), seq {message['seq']}",
        f"  stored        {_time(message['created_at'])}",
    ]
    if message["sender_id"]:
        lines.append(f"  sender        {message['sender_id']}")
    if message["event_key"]:
        lines.append(f"  event key     {message['event_key']}")
    if trace := trace_of(from_jsonb(message["metadata"]) or {}):
        lines.append(f"  trace         {trace}")
    if not story.turns and message["direction"] == "inbound":
        lines.append("no turn has taken it" + (" yet" if message["status"] == "accepted" else ""))
    for turn in story.turns:
        lines += [
            f"turn {turn['id']}: {turn['status']}{', ' + turn['outcome'] if turn['outcome'] else ''}",
            f"  took          seq {turn['first_seq']} to {turn['last_seq']}, at {_time(turn['started_at'])}",
            f"  ended         {_time(turn['finished_at'])}",
            f"  agent         {turn['agent']}, request {turn['agent_request_id'] or 'not named'}",
            f"  worker        {turn['owner']}",
        ]
        if turn["error"]:
            lines.append(f"  reason        {turn['error']}")
        if turn["usage"]:
            lines.append(f"  usage         {turn['usage']}")
    for reply in story.replies:
        delivery = f"{_part(reply)} {reply['status']}" if reply["part"] else "nothing to deliver"
        lines += [
            f"reply {reply['id']}: seq {reply['seq']}, stored {_time(reply['created_at'])}",
            f"  delivery      {delivery}, tries {reply['attempts'] or 0}, at {_time(reply['sent_at'])}"
            f"{', ' + reply['error'] if reply['error'] else ''}",
        ]
    return lines


def _part(reply: Record) -> str:
    """Which part of a reply it is, and of a file which one."""
    file = file_of(reply["part"], attachments_of(reply), from_jsonb(reply["metadata"]) or {})
    return f"part {reply['part']}" if file is None else f"part {reply['part']} ({file.name or file.kind})"


def _became(story: Story) -> str:
    message = story.message
    if message["status"] != "accepted":
        return message["status"]
    pending = message["pending_since"] is not None and message["seq"] > message["answered_seq"]
    return "waiting for its answer" if pending else "answered"


def _because(message: Record) -> str:
    metadata: dict[str, Any] = from_jsonb(message["metadata"]) or {}
    reason = metadata.get("reason")
    return f" ({reason})" if reason else ""


def _time(moment: datetime | None) -> str:
    return moment.isoformat(timespec="milliseconds") if moment else "not yet"
