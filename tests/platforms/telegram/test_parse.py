"""Updates as events: each kind against the event it must become, and made-up JSON, which must become one too."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_bridge.model import Address, Attachment, EventKind, InboundEvent, User
from chat_bridge.platforms.telegram.parse import RAW_LIMIT, Bot, parse, parse_body

PAYLOADS = {path.stem: path for path in sorted(Path(__file__).with_name("payloads").glob("*.json"))}
BOT = Bot("7000000001", "bridge_bot")

LINH = User("5512340001", "Linh")
MINH = User("5512340002", "Minh Lê", "minh_le")
OPS_ITSELF = User("-1002234567890", "Ops")
NEWS_ITSELF = User("-1001111222233", "News", "ops_news")
NOBODY = User("-")

LINHS_CHAT = Address("telegram", BOT.id, "5512340001")
OPS = Address("telegram", BOT.id, "-1002234567890")
DEPLOY = Address("telegram", BOT.id, "-1002234567890", "77")
NEWS = Address("telegram", BOT.id, "-1001111222233")
NOWHERE = Address("telegram", BOT.id, "-")

SENT = datetime(2026, 1, 1, 0, 6, 40, tzinfo=UTC)
EDITED = datetime(2026, 1, 1, 0, 8, 20, tzinfo=UTC)
CHANGED = datetime(2026, 1, 1, 0, 10, 0, tzinfo=UTC)

PHOTO = Attachment("image", "image/jpeg", "AgACbAAxkBAAIF", size=98211, same_file="AgACbx70", needs_auth=True)


def payload(name: str) -> Any:
    return json.loads(PAYLOADS[name].read_bytes())


def compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def from_linh(message_id: int, text: str = "", **more: Any) -> InboundEvent:
    """A message in Linh's private chat, or what becomes of it with other fields."""
    fields: dict[str, Any] = {
        "address": LINHS_CHAT,
        "event_key": f"5512340001:{message_id}",
        "user": LINH,
        "platform_message_id": str(message_id),
        "sent_at": SENT,
    }
    return InboundEvent(text=text, **(fields | more))


def in_ops(message_id: int, text: str, **more: Any) -> InboundEvent:
    """A message of Minh in the group, not addressed, or what becomes of it with other fields."""
    fields: dict[str, Any] = {
        "address": OPS,
        "event_key": f"-1002234567890:{message_id}",
        "user": MINH,
        "platform_message_id": str(message_id),
        "sent_at": SENT,
        "addressed": False,
        "group": True,
    }
    return InboundEvent(text=text, **(fields | more))


def told_ops(message_id: int, text: str, **more: Any) -> InboundEvent:
    return in_ops(message_id, text, kind=EventKind.LIFECYCLE, **more)


def change(update_id: int, text: str, kind: EventKind = EventKind.MEMBERSHIP, **more: Any) -> InboundEvent:
    """A change in the group, by Minh."""
    fields: dict[str, Any] = {
        "address": OPS,
        "event_key": f"update:{update_id}",
        "user": MINH,
        "sent_at": CHANGED,
        "addressed": False,
        "group": True,
    }
    return InboundEvent(text=text, kind=kind, **(fields | more))


def press(query_id: str, text: str, **more: Any) -> InboundEvent:
    """A press on a button."""
    return InboundEvent(
        text=text, event_key=f"callback:{query_id}", kind=EventKind.BUTTON, reply_handle=query_id, **more
    )


def unknown(name: str, kind: str, user: User = LINH, **more: Any) -> InboundEvent:
    """An update of which only the JSON is kept."""
    update = payload(name)
    fields: dict[str, Any] = {"address": NOWHERE, "event_key": f"update:{update['update_id']}", "user": user}
    return InboundEvent(
        text=f"[unsupported update: {kind}]",
        kind=EventKind.UNKNOWN,
        metadata={"raw": compact(update)},
        **(fields | more),
    )


def replying_to(message_id: str, text: str, author: str, **flags: bool) -> Mapping[str, Any]:
    told = {"message_id": message_id, "text": text, "author": author, "from_bot": False, "chosen": False}
    return {"reply_to": told | flags}


def expected() -> dict[str, InboundEvent]:
    """The event of each payload."""
    return {
        # Text, mentions, commands
        "private_text": from_linh(
            1401,
            "👋 xin chào",
            raw_text="👋 @bridge_bot xin chào",
            user=User("5512340001", "Linh Trần", "linh_tr", "vi"),
            sent_at=datetime(2026, 1, 1, tzinfo=UTC),
        ),
        "large_ids": InboundEvent(
            address=Address("telegram", BOT.id, "9007199254740993"),
            event_key="9007199254740993:1549",
            user=User("9007199254740993", "X"),
            text="hi",
            platform_message_id="1549",
            sent_at=SENT,
        ),
        "group_talk": in_ops(1502, "ai ăn trưa không?"),
        "group_mention": in_ops(
            1501, "Chào, 👨‍👩‍👧 khỏe không?", raw_text="Chào @Bridge_Bot, 👨‍👩‍👧 khỏe không?", addressed=True
        ),
        "group_text_mention": in_ops(1503, "ơi", raw_text="Bridge ơi", addressed=True),
        "command_for_another_bot": in_ops(1504, "/start@other_bot"),
        "ephemeral": in_ops(
            0,
            "/ask riêng",
            raw_text="/ask@bridge_bot riêng",
            event_key="update:845210148",
            platform_message_id=None,
            addressed=True,
        ),
        # Topics, replies, quotes, forwards
        "topic_command": in_ops(
            88012,
            "/ask status?",
            raw_text="/ask@bridge_bot status?",
            address=DEPLOY,
            user=User("5512340001", "Linh", "linh_tr"),
            sent_at=datetime(2026, 1, 1, 0, 1, 0, tzinfo=UTC),
            addressed=True,
            metadata=replying_to("88010", "Ready.", "Bridge", from_bot=True),
        ),
        "first_in_topic": in_ops(1507, "mới", address=DEPLOY),
        "general_topic": in_ops(1505, "/help", addressed=True),
        "private_topic": from_linh(1508, "về chủ đề này", address=Address("telegram", BOT.id, "5512340001", "4211")),
        "reply_chain": in_ops(1506, "đúng", metadata=replying_to("88011", "[image]", "Linh")),
        "quote": from_linh(
            1509, "cái này?", metadata=replying_to("1400", "Set.", "Bridge", from_bot=True, chosen=True)
        ),
        "external_reply": from_linh(1510, "xem nè", metadata=replying_to("41", "[image]", "News")),
        "forwarded": from_linh(1511, "Tin mới", metadata={"forwarded_from": "Một người"}),
        "forwarded_post": from_linh(1512, "Ảnh", attachments=(PHOTO,), metadata={"forwarded_from": "News"}),
        # Files
        "photo_in_album": from_linh(
            1402,
            "hóa đơn",
            sent_at=datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC),
            album="13912345678901234",
            attachments=(
                Attachment(
                    "image",
                    "image/jpeg",
                    "AgACAgUAAxkBAAIFeX1",
                    size=98211,
                    same_file="AQADx70xG1t5",
                    needs_auth=True,
                ),
            ),
        ),
        "document": from_linh(
            1403,
            sent_at=datetime(2026, 1, 1, 0, 0, 20, tzinfo=UTC),
            attachments=(
                Attachment(
                    "file",
                    "application/pdf",
                    "BQACAgUAAxkBAAIFe30",
                    name="báo cáo.pdf",
                    size=184220,
                    same_file="AgADqA4AAp",
                    needs_auth=True,
                ),
            ),
        ),
        "image_as_document": from_linh(
            1517,
            attachments=(
                Attachment(
                    "image",
                    "image/png",
                    "BQACiAAxkBAAIF",
                    name="scan.PNG",
                    size=9184220,
                    same_file="BQACix70",
                    needs_auth=True,
                ),
            ),
        ),
        "voice": from_linh(
            1404,
            sent_at=datetime(2026, 1, 1, 0, 0, 30, tzinfo=UTC),
            attachments=(
                Attachment(
                    "audio", "audio/ogg", "AwACAgUAAxkBAAIFfH0", size=15211, same_file="AgADqQ4AAp", needs_auth=True
                ),
            ),
        ),
        "audio": from_linh(
            1514,
            attachments=(
                Attachment(
                    "audio",
                    "audio/mp4",
                    "CQACaAAxkBAAIF",
                    name="bien.m4a",
                    size=3734003,
                    same_file="CQACax70",
                    needs_auth=True,
                ),
            ),
        ),
        "video": from_linh(
            1513,
            "clip",
            attachments=(
                Attachment(
                    "video",
                    "video/quicktime",
                    "BAACvAAxkBAAIF",
                    name="clip.mov",
                    size=734003,
                    same_file="BAACvx70",
                    needs_auth=True,
                ),
            ),
        ),
        "video_note": from_linh(
            1515,
            attachments=(
                Attachment("video", "video/mp4", "DQACnAAxkBAAIF", size=500123, same_file="DQACnx70", needs_auth=True),
            ),
        ),
        "animation": from_linh(
            1516,
            attachments=(
                Attachment(
                    "video",
                    "video/mp4",
                    "CgACgAAxkBAAIF",
                    name="cat.mp4",
                    size=20123,
                    same_file="CgACgx70",
                    needs_auth=True,
                ),
            ),
        ),
        "sticker": from_linh(
            1405,
            "Sticker 👍",
            sent_at=datetime(2026, 1, 1, 0, 0, 40, tzinfo=UTC),
            attachments=(
                Attachment(
                    "file",
                    "application/x-tgsticker",
                    "CAACAgIAAxkBAAIFfX0",
                    size=21404,
                    same_file="AgADBQADwDZPEw",
                    needs_auth=True,
                ),
            ),
        ),
        "sticker_still": from_linh(
            1553,
            "Sticker 🙂",
            attachments=(
                Attachment("image", "image/webp", "CAACsAAxkBAAIF", size=21404, same_file="CAACsx70", needs_auth=True),
            ),
        ),
        "sticker_video": from_linh(
            1554,
            "Sticker",
            attachments=(
                Attachment("video", "video/webm", "CAACvAAxkBAAIF", size=21404, same_file="CAACvx70", needs_auth=True),
            ),
        ),
        "document_bare": from_linh(
            1555,
            attachments=(
                Attachment("file", "application/octet-stream", "BQACdAAxkBAAIF", same_file="BQACdx70", needs_auth=True),
            ),
        ),
        "audio_as_document": from_linh(
            1556,
            attachments=(
                Attachment(
                    "audio",
                    "audio/flac",
                    "BQACmAAxkBAAIF",
                    name="a.flac",
                    size=5000,
                    same_file="BQACmx70",
                    needs_auth=True,
                ),
            ),
        ),
        "live_photo": from_linh(1518, "[live photo]", attachments=(PHOTO,)),
        # What is told in words
        "location": from_linh(
            1406, "Location: 10.776889, 106.700806", sent_at=datetime(2026, 1, 1, 0, 0, 50, tzinfo=UTC)
        ),
        "live_location": from_linh(1519, "Live location: 10.5, -106.25"),
        "venue": from_linh(1520, "Venue: Bưu điện, 2 Công xã Paris (10.7798, 106.699)"),
        "contact": from_linh(1521, "Contact: Minh Lê, +84900000001"),
        "poll_message": from_linh(1522, "Poll: Trưa nay?\n- Phở\n- Cơm"),
        "checklist": from_linh(1523, "Checklist: Việc\n- Mua gạo\n- Nấu"),
        "dice": from_linh(1524, "🎯 4"),
        "game": from_linh(1525, "Game: Corsairs, Sail!"),
        "invoice": from_linh(1526, "Invoice: Vé, 150000 (in the smallest unit of VND)"),
        "payment": from_linh(1527, "Payment: 150000 (in the smallest unit of VND)"),
        "refund": from_linh(1557, "Refund: 50 (in the smallest unit of XTR)"),
        "giveaway": from_linh(1528, "[giveaway]"),
        "paid_media": from_linh(1529, "[paid media]\nchỉ 5 sao"),
        "story": from_linh(1530, "[story]"),
        "users_shared": from_linh(1531, "Shared: Minh, 5512340003"),
        "chat_shared": from_linh(1558, "Shared: Ops"),
        "web_app_data": from_linh(1532, '{"seat":12}'),
        "rich_message": from_linh(1533, "Kế hoạch\nXin chào 👋\n1. một\n2. hai\na | b\ntrích\nảnh"),
        "unknown_content": from_linh(
            1550,
            "[unsupported message]",
            kind=EventKind.UNKNOWN,
            metadata={"raw": compact(payload("unknown_content")["message"])},
        ),
        # Kept, but not answered
        "from_a_bot": in_ops(1543, "beep", user=User("7000000009", "Other", "other_bot"), skip_reason="bot"),
        "anonymous_admin": in_ops(88013, "note", user=OPS_ITSELF, sent_at=datetime(2026, 1, 1, 0, 1, 20, tzinfo=UTC)),
        "automatic_forward": in_ops(
            1544,
            "Tin",
            user=NEWS_ITSELF,
            skip_reason="automatic_forward",
            metadata={"forwarded_from": "News"},
        ),
        "channel_post": in_ops(
            1545,
            "Tin",
            address=NEWS,
            event_key="-1001111222233:1545",
            user=NEWS_ITSELF,
            skip_reason="channel_post",
        ),
        # Edits
        "edited": from_linh(
            1401,
            "xin chào!!",
            kind=EventKind.EDIT,
            event_key=f"5512340001:1401:edit:1767225670:{digest('xin chào!!')}",
            about="5512340001:1401",
            sent_at=datetime(2026, 1, 1, 0, 1, 10, tzinfo=UTC),
        ),
        "edited_caption": from_linh(
            1547,
            "hóa đơn 2",
            kind=EventKind.EDIT,
            event_key=f"5512340001:1547:edit:1767226100:{digest('hóa đơn 2', 'AgACbx70')}",
            about="5512340001:1547",
            sent_at=EDITED,
            album="13912345678901234",
            attachments=(PHOTO,),
        ),
        "edited_channel_post": in_ops(
            1546,
            "Tin sửa",
            kind=EventKind.EDIT,
            address=NEWS,
            event_key=f"-1001111222233:1546:edit:1767226100:{digest('Tin sửa')}",
            about="-1001111222233:1546",
            user=NEWS_ITSELF,
            sent_at=EDITED,
            skip_reason="channel_post",
        ),
        # Service messages
        "joined": told_ops(1534, "Minh Lê, Linh Trần joined"),
        "left": told_ops(1535, "Minh Lê left"),
        "new_title": told_ops(1536, "the title is now Ops 2"),
        "new_photo": told_ops(1537, "the photo was changed"),
        "photo_deleted": told_ops(1538, "the photo was deleted"),
        "pinned": told_ops(1539, "a message was pinned"),
        "topic_created": told_ops(
            1540,
            "service message: forum_topic_created",
            address=Address("telegram", BOT.id, "-1002234567890", "91"),
        ),
        "topic_closed": told_ops(
            1541,
            "service message: forum_topic_closed",
            address=Address("telegram", BOT.id, "-1002234567890", "91"),
        ),
        "migrate_to": told_ops(
            9,
            "the group became a supergroup",
            event_key="-4123456:9",
            user=LINH,
            sent_at=datetime(2026, 1, 1, 0, 1, 40, tzinfo=UTC),
            moved_from="-4123456",
        ),
        "migrate_from": told_ops(1542, "the group became a supergroup", user=OPS_ITSELF, moved_from="-4123456"),
        # Buttons
        "button": press(
            "23687012345678901",
            "approve:42",
            address=LINHS_CHAT,
            user=LINH,
            platform_message_id="1400",
            about="5512340001:1400",
        ),
        "button_inline": press("23687012345678902", "corsairs", address=NOWHERE, user=LINH),
        "button_inaccessible": press(
            "23687012345678903",
            "ok",
            address=OPS,
            user=MINH,
            platform_message_id="88000",
            about="-1002234567890:88000",
            group=True,
        ),
        "button_in_topic": press(
            "23687012345678904",
            "ok",
            address=DEPLOY,
            user=MINH,
            platform_message_id="88001",
            about="-1002234567890:88001",
            group=True,
        ),
        # Members
        "blocked": change(
            845210010,
            "blocked the bot",
            address=LINHS_CHAT,
            user=LINH,
            sent_at=datetime(2026, 1, 1, 0, 1, 30, tzinfo=UTC),
            addressed=True,
            group=False,
            closes=True,
        ),
        "unblocked": change(845210157, "unblocked the bot", address=LINHS_CHAT, user=LINH, addressed=True, group=False),
        "added": change(845210158, "added the bot"),
        "removed": change(845210159, "removed the bot", closes=True),
        "restricted_outside": change(845210160, "removed the bot", closes=True),
        "rights_changed": change(845210161, "rights changed"),
        "member_joined": change(845210162, "Linh joined"),
        "member_removed": change(845210163, "Linh was removed"),
        "join_request": change(845210164, "Linh asked to join", user=LINH),
        # Reactions
        "reaction": change(
            845210165,
            "👍 [custom emoji]",
            EventKind.REACTION,
            platform_message_id="88012",
            about="-1002234567890:88012",
        ),
        "reaction_removed": change(
            845210166,
            "",
            EventKind.REACTION,
            user=OPS_ITSELF,
            platform_message_id="88012",
            about="-1002234567890:88012",
        ),
        "reaction_count": change(
            845210167,
            "👍 3, ⭐ 1",
            EventKind.REACTION,
            address=NEWS,
            user=NOBODY,
            platform_message_id="43",
            about="-1001111222233:43",
        ),
        # Chats that are not the bot's own
        "business_message": unknown("business_message", "business_message"),
        "deleted_business_messages": unknown("deleted_business_messages", "deleted_business_messages", NOBODY),
        "guest_message": unknown("guest_message", "guest_message", addressed=False, group=True),
        # Others
        "inline_query": unknown("inline_query", "inline_query"),
        "shipping_query": unknown("shipping_query", "shipping_query"),
        "poll_answer": unknown("poll_answer", "poll_answer", MINH),
        "poll_state": unknown("poll_state", "poll", NOBODY),
        "generation_stopped": unknown("generation_stopped", "stopped_message_generation", NOBODY, address=LINHS_CHAT),
        "unknown_update": unknown("unknown_update", "telepathy"),
    }


def digest(*said: str) -> str:
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]


def test_every_payload_has_its_event() -> None:
    assert expected().keys() == PAYLOADS.keys()


@pytest.mark.parametrize("name", PAYLOADS)
def test_payload(name: str) -> None:
    assert parse(payload(name), BOT) == expected()[name]


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_redelivery_has_the_same_event(name: str) -> None:
    body = PAYLOADS[name].read_bytes()
    assert parse_body(body, BOT) == parse_body(body, BOT) == parse(payload(name), BOT)


# Mentions


def said(text: str, *entities: Mapping[str, Any], bot: Bot = BOT, **more: Any) -> InboundEvent:
    """The event of a message in a group."""
    message = {
        "message_id": 5,
        "from": {"id": 2, "is_bot": False, "first_name": "Minh"},
        "chat": {"id": -7, "type": "group"},
        "date": 1767226000,
        "text": text,
        "entities": entities,
        **more,
    }
    return parse(json.loads(json.dumps({"update_id": 1, "message": message})), bot)


def marked(text: str, part: str, kind: str = "mention", **more: Any) -> Mapping[str, Any]:
    """The entity for a part of a text, counted in UTF-16 units as Telegram does."""
    before = text[: text.index(part)]
    return {
        "type": kind,
        "offset": len(before.encode("utf-16-le")) // 2,
        "length": len(part.encode("utf-16-le")) // 2,
    } | more


@pytest.mark.parametrize(
    ("text", "for_the_agent"),
    [
        ("@bridge_bot xin chào", "xin chào"),
        ("@bridge_bot\n\nxin  chào", "xin  chào"),
        ("xin chào @bridge_bot", "xin chào"),
        ("👋🏽👨‍👩‍👧 @bridge_bot 👍 ok", "👋🏽👨‍👩‍👧 👍 ok"),
        ("𝄞@bridge_bot 𝄞", "𝄞 𝄞"),
        ("này \t @BRIDGE_bot \n nghe\n\nđi", "này nghe\n\nđi"),
        ("này @bridge_bot, nghe", "này, nghe"),
        ("@bridge_bot", ""),
    ],
)
def test_our_mention_is_taken_out(text: str, for_the_agent: str) -> None:
    name = next(name for name in ("@bridge_bot", "@BRIDGE_bot") if name in text)
    event = said(text, marked(text, name))
    assert (event.text, event.raw_text, event.addressed) == (for_the_agent, text, True)


def test_the_case_of_our_own_name_does_not_matter() -> None:
    assert said("@bridge_bot xin", marked("@bridge_bot", "@bridge_bot"), bot=Bot(BOT.id, "Bridge_Bot")).text == "xin"


def test_half_an_emoji_counts_as_one_unit() -> None:
    event = said("\ud83d @bridge_bot xin", {"type": "mention", "offset": 2, "length": 11})
    assert event.text == "\ud83d xin"


def test_several_mentions_are_taken_out() -> None:
    text = "@bridge_bot 😀 Bridge @bridge_bo @bridge_botx"
    event = said(
        text,
        marked(text, "Bridge", "text_mention", user={"id": 7000000001}),
        marked(text, "@bridge_bot"),
        marked(text, "@bridge_botx"),
    )
    assert event.text == "😀 @bridge_bo @bridge_botx"


def test_a_name_that_is_no_entity_stays() -> None:
    event = said("@bridge_bot xin chào")
    assert (event.text, event.raw_text, event.addressed) == ("@bridge_bot xin chào", None, False)


def test_nothing_is_mentioned_without_a_username() -> None:
    text = "@None @ chào"
    event = said(text, marked(text, "@None"), marked(text, "@ "), bot=Bot(BOT.id, None))
    assert (event.text, event.addressed) == (text, False)


@pytest.mark.parametrize(
    ("text", "command", "for_the_agent", "addressed"),
    [
        ("/ask gì", "/ask", "/ask gì", True),
        ("😀 /ask gì", "/ask", "😀 /ask gì", False),
        ("😀 /ask@Bridge_Bot gì", "/ask@Bridge_Bot", "😀 /ask gì", True),
        ("/ask@other_bot gì", "/ask@other_bot", "/ask@other_bot gì", False),
        ("😀 /ask@other_bot", "/ask@other_bot", "😀 /ask@other_bot", False),
    ],
)
def test_commands(text: str, command: str, for_the_agent: str, addressed: bool) -> None:
    event = said(text, marked(text, command, "bot_command"))
    assert (event.text, event.addressed) == (for_the_agent, addressed)


def test_a_mention_beside_a_command_for_another_bot_counts() -> None:
    text = "/ask@other_bot @bridge_bot"
    event = said(text, marked(text, "/ask@other_bot", "bot_command"), marked(text, "@bridge_bot"))
    assert (event.text, event.addressed) == ("/ask@other_bot", True)


def test_a_mention_in_a_caption_counts() -> None:
    caption = "😀 @bridge_bot đọc"
    message = payload("photo_in_album")["message"] | {
        "chat": {"id": -7, "type": "group"},
        "caption": caption,
        "caption_entities": [marked(caption, "@bridge_bot")],
    }
    event = parse({"update_id": 1, "message": message}, BOT)
    assert (event.text, event.addressed) == ("😀 đọc", True)


@pytest.mark.parametrize("author", [7000000001, 8])
def test_only_a_reply_to_the_bot_addresses_it(author: int) -> None:
    replied = {"message_id": 4, "from": {"id": author, "is_bot": True, "first_name": "B"}, "text": "Ready."}
    assert said("ok", reply_to_message=replied).addressed is (author == 7000000001)


@pytest.mark.parametrize(
    ("text", "command", "addressed"),
    [
        ("/ask@other_bot gì", "/ask@other_bot", False),
        ("/ask@bridge_bot gì", "/ask@bridge_bot", True),
        ("/ask gì", "/ask", True),
        ("😀 /ask@other_bot", "/ask@other_bot", True),
    ],
)
def test_a_command_for_another_bot_does_not_address_us_by_a_reply(text: str, command: str, addressed: bool) -> None:
    replied = {"message_id": 4, "from": {"id": 7000000001, "is_bot": True, "first_name": "B"}, "text": "Ready."}
    assert said(text, marked(text, command, "bot_command"), reply_to_message=replied).addressed is addressed
    both = f"{text}, @bridge_bot"
    mention = marked(both, " @bridge_bot")
    mention = {**mention, "offset": mention["offset"] + 1, "length": mention["length"] - 1}
    assert said(both, marked(both, command, "bot_command"), mention, reply_to_message=replied).addressed


@pytest.mark.parametrize(("manual", "chosen"), [({"is_manual": True}, True), ({}, False)])
def test_only_a_quote_that_somebody_chose_is_chosen(manual: Mapping[str, Any], chosen: bool) -> None:
    replied = {"message_id": 4, "from": {"id": 8, "first_name": "Lan"}, "text": "Ready. Set."}
    event = said("ok", reply_to_message=replied, quote={"text": "Set.", "position": 7, **manual})
    assert event.metadata == replying_to("4", "Set.", "Lan", chosen=chosen)


def test_a_position_that_changes_is_live() -> None:
    message = payload("live_location")["message"]
    moved = parse({"update_id": 2, "edited_message": message | {"edit_date": 1767226060}}, BOT)
    assert (moved.kind, moved.text, moved.metadata) == (EventKind.EDIT, "Live location: 10.5, -106.25", {"live": True})
    assert "live" not in parse({"update_id": 1, "message": message}, BOT).metadata
    assert "live" not in parse(payload("edited"), BOT).metadata


def test_a_long_quote_is_cut() -> None:
    replied = {"message_id": 4, "from": {"id": 8, "first_name": "Lan"}, "text": "ờ" * 600}
    assert said("ok", reply_to_message=replied).metadata == replying_to("4", "ờ" * 500, "Lan")


def test_entities_that_cut_an_emoji_or_lie_outside_harm_nothing() -> None:
    text = "😀😀"
    entities = [
        {"type": "bot_command", "offset": offset, "length": length} for offset in (1, 3, 99) for length in (1, 99)
    ]
    event = said(text, *entities)
    assert (event.text, event.addressed) == (text, False)


@pytest.mark.parametrize("size", [-1, "12", 1.5, None])
def test_a_size_that_is_none(size: object) -> None:
    (attachment,) = said("ok", voice={"file_id": "a", "file_size": size}).attachments
    assert attachment.size is None


def test_a_photo_without_a_file_is_told_in_words() -> None:
    event = said("", photo=[{"width": 90}])
    assert (event.text, event.attachments, event.kind) == ("[photo]", (), EventKind.MESSAGE)


# Keys


def test_edits_within_one_second_differ() -> None:
    update = payload("edited")
    other = payload("edited")
    other["edited_message"]["text"] = "xin chào!"
    assert parse(update, BOT).event_key != parse(other, BOT).event_key


def test_an_edit_that_changes_only_the_file_differs() -> None:
    update = payload("edited_caption")
    other = payload("edited_caption")
    for photo in other["edited_message"]["photo"]:
        photo["file_unique_id"] += "2"
    assert parse(update, BOT).event_key != parse(other, BOT).event_key


@pytest.mark.parametrize("date", [0, -5, 10**18, "1767226000", 1.5, None, True])
def test_a_date_that_is_none(date: object) -> None:
    assert said("ok", date=date).sent_at is None


# What is no update


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe\xfa", b"null", b"[1]", b'"a"', b'{"message":{}}', b'{"update_id":"1"}', b"[" * 100_000],
    ids=repr,
)
def test_a_body_that_is_no_update_is_kept(body: bytes) -> None:
    event = parse_body(body, BOT)
    assert event == InboundEvent(
        address=NOWHERE,
        event_key=f"sha256:{hashlib.sha256(body).hexdigest()}",
        user=NOBODY,
        text="[not an update]",
        kind=EventKind.UNKNOWN,
        metadata={"raw": body.decode("utf-8", "replace")[:RAW_LIMIT]},
    )


def test_what_is_not_understood_is_kept_up_to_a_limit() -> None:
    event = parse({"update_id": 1, "novel": "é" * 100_000}, BOT)
    assert event.metadata["raw"] == ('{"update_id":1,"novel":"' + "é" * 100_000)[:RAW_LIMIT]


@pytest.mark.parametrize("depth", [100, 500, 900, 1000, 100_000])
def test_a_body_of_any_depth_is_taken(depth: int) -> None:
    body = '{"update_id":1,"novel":' + "[" * depth + "]" * depth + "}"
    assert parse_body(body.encode(), BOT).kind is EventKind.UNKNOWN


@pytest.mark.parametrize("key", ["text", "blocks", "novel"])
def test_json_of_any_depth_is_taken(key: str) -> None:
    nested: Any = "a"
    for _ in range(5000):
        nested = {key: [nested]}
    rich = {"message_id": 5, "chat": {"id": 7, "type": "private"}, "rich_message": {"blocks": [nested]}}
    assert parse({"update_id": 1, "message": rich}, BOT).text == "[rich message]"
    assert parse({"update_id": 1, "novel": nested}, BOT).metadata == {"raw": "[nested too deeply]"}
    assert parse(nested, BOT).metadata == {"raw": "[nested too deeply]"}


# Made-up JSON

any_text = st.text(st.characters(exclude_categories=()), max_size=12)
names = st.sampled_from(
    sorted(
        {"update_id", "message", "chat", "id", "type", "text", "date", "photo", "from", "message_id", "poll", "novel"}
    )
)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats() | any_text
any_json = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names | any_text, inner, max_size=5),
    max_leaves=15,
)
many = settings(max_examples=200, deadline=None)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container and key within a JSON value."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A real update in which some values are other JSON, gone, or swapped with each other."""
    update = payload(draw(st.sampled_from(sorted(PAYLOADS))))
    for _ in range(draw(st.integers(1, 4))):
        all_places = list(places(update))
        if not all_places:
            break
        container, key = draw(st.sampled_from(all_places))
        match draw(st.sampled_from(["replace", "replace", "remove", "swap"])):
            case "replace":
                container[key] = draw(any_json)
            case "remove":
                del container[key]
            case _:
                other, other_key = draw(st.sampled_from(all_places))
                container[key] = json.loads(json.dumps(other[other_key]))
    return update


def check(event: InboundEvent) -> None:
    """One event, of which everything has its type."""
    assert isinstance(event, InboundEvent)
    assert event.address.platform == "telegram"
    assert event.address.account == BOT.id
    for known in (event.address.conversation, event.event_key, event.user.id):
        assert isinstance(known, str)
        assert known
    for text in (event.text, event.address.thread):
        assert isinstance(text, str)
    optional = (
        event.raw_text,
        event.platform_message_id,
        event.about,
        event.album,
        event.skip_reason,
        event.moved_from,
        event.reply_handle,
        event.user.name,
        event.user.username,
        event.user.locale,
    )
    assert all(text is None or isinstance(text, str) for text in optional)
    assert all(isinstance(flag, bool) for flag in (event.addressed, event.group, event.closes))
    assert event.sent_at is None or event.sent_at.tzinfo is UTC
    for file in event.attachments:
        assert isinstance(file.ref, str)
        assert isinstance(file.mime_type, str)
        assert file.size is None or (isinstance(file.size, int) and file.size >= 0)
    assert json.loads(json.dumps(event.metadata)) == event.metadata
    assert len(event.metadata.get("raw", "")) <= RAW_LIMIT
    assert event.address.id


@many
@given(any_json)
def test_any_json_is_an_event(value: Any) -> None:
    check(parse(value, BOT))
    check(parse_body(json.dumps(value).encode(), BOT))


@many
@given(any_json, st.sampled_from(sorted({key for name in PAYLOADS for key in payload(name)} - {"update_id"})))
def test_any_json_in_an_update_is_an_event(value: Any, name: str) -> None:
    event = parse({"update_id": 6, name: value}, BOT)
    check(event)
    assert parse({"update_id": 6, name: value}, BOT).event_key == event.event_key


@many
@given(mutated())
def test_a_mutated_update_is_an_event(update: Any) -> None:
    check(parse(update, BOT))
    check(parse_body(json.dumps(update).encode(), BOT))


@many
@given(st.binary(max_size=40))
def test_any_body_is_an_event(body: bytes) -> None:
    check(parse_body(body, BOT))


@many
@given(
    any_text,
    st.lists(
        st.tuples(st.sampled_from(["mention", "bot_command", "text_mention"]), st.integers(-3, 60), st.integers(-3, 60))
    ),
    any_text,
)
def test_without_our_name_nothing_is_taken_out(before: str, spans: list[tuple[str, int, int]], after: str) -> None:
    text = f"{before}|{after}"
    entities = [{"type": kind, "offset": offset, "length": length, "user": {"id": 8}} for kind, offset, length in spans]
    event = said(text, *entities, bot=Bot(BOT.id, "a_name_longer_than_any_text_in_here"))
    assert event.text == json.loads(json.dumps(text))
    assert event.raw_text is None
