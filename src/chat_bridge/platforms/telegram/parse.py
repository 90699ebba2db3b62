"""Updates of the Bot API as events.

Nothing here does I/O, and nothing fails: what can't be understood is an event of kind unknown, which keeps the JSON.
New fields and kinds appear every few months, so every field is looked at before it is believed.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, cast

from chat_bridge.model import Address, Attachment, EventKind, InboundEvent, User, kind_of

ALLOWED_UPDATES = [
    "message",
    "edited_message",
    "callback_query",
    "my_chat_member",
    "message_reaction",
    "channel_post",
]
RAW_LIMIT = 16_000  # characters of JSON that are kept of what was not understood
QUOTE_LIMIT = 500
RICH_DEPTH = 30  # blocks nested deeper than this are not read
GROUPS = ("group", "supergroup", "channel")
NOWHERE = "-"  # the conversation of what belongs to no chat
NOBODY = "-"
LAST_SECOND = 253_402_300_799  # of the year 9999, the last that Python knows
TIGHT = (",", ".", ";", ":", "!", "?", ")")  # no space is left before these where a mention was


@dataclass(frozen=True, slots=True)
class Bot:
    """Who we are: what getMe tells."""

    id: str
    username: str | None


def parse_body(body: bytes, bot: Bot) -> InboundEvent:
    """The event in the body of a webhook request."""
    try:
        update: object = json.loads(body)
    except (ValueError, RecursionError):
        return _no_update(body, bot)
    return _no_update(body, bot) if _id(_at(update, "update_id")) is None else parse(update, bot)


def parse(update: object, bot: Bot) -> InboundEvent:
    """The event in an update, which may be any JSON."""
    update_id = _id(_at(update, "update_id"))
    if update_id is None:
        return _no_update(_json(update).encode("utf-8", "surrogatepass"), bot)
    update_key = f"update:{update_id}"
    for name, read in _READERS.items():
        if event := read(_at(update, name), update_key, bot):
            return event
    return _unknown(cast("dict[str, object]", update), update_key, bot)


def _no_update(body: bytes, bot: Bot) -> InboundEvent:
    return InboundEvent(
        address=Address("telegram", bot.id, NOWHERE),
        event_key=f"sha256:{hashlib.sha256(body).hexdigest()}",
        user=User(NOBODY),
        text="[not an update]",
        kind=EventKind.UNKNOWN,
        metadata={"raw": body.decode("utf-8", "replace")[:RAW_LIMIT]},
    )


def _unknown(update: Mapping[str, object], update_key: str, bot: Bot) -> InboundEvent:
    name, content = next(((name, value) for name, value in update.items() if name != "update_id"), ("nothing", None))
    return InboundEvent(
        address=_address(content, bot),
        event_key=update_key,
        user=_user(_at(content, "from") or _at(content, "user")),
        text=f"[unsupported update: {name}]",
        kind=EventKind.UNKNOWN,
        addressed=not _is_group(content),
        group=_is_group(content),
        metadata={"raw": _json(update)[:RAW_LIMIT]},
    )


# Messages


def _message(
    message: object, update_key: str, bot: Bot, *, edited: bool = False, channel_post: bool = False
) -> InboundEvent | None:
    chat = _id(_at(message, "chat", "id"))
    if chat is None or _id(_at(message, "message_id")) is None:
        return None
    content = _content(message, bot)
    own_key = _message_key(message) or update_key
    event = InboundEvent(
        address=_address(message, bot),
        event_key=_edit_key(own_key, message, content) if edited else own_key,
        user=_user(_sender(message)),
        text=content.text,
        kind=EventKind.EDIT if edited and content.kind is EventKind.MESSAGE else content.kind,
        raw_text=content.raw if content.raw != content.text else None,
        platform_message_id=_message_id(message),
        about=_message_key(message) if edited else None,
        sent_at=_time(_at(message, "edit_date" if edited else "date")),
        attachments=content.attachments,
        album=_text(_at(message, "media_group_id")),
        addressed=_at(message, "chat", "type") == "private"
        or content.addressed
        or (_replies_to_bot(message, bot) and not content.for_other),
        group=_is_group(message),
        skip_reason="channel_post" if channel_post else _skip_reason(message),
        metadata=_metadata(message, content, bot),
    )
    return _moved(event, message, chat) if content.kind is EventKind.LIFECYCLE else event


def _edit_key(own_key: str, message: object, content: "_Content") -> str:
    """With a hash of the content: a message can be edited twice within one second."""
    said = "\n".join([content.raw, *(file.same_file or file.ref for file in content.attachments)])
    digest = hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{own_key}:edit:{_id(_at(message, 'edit_date')) or 0}:{digest}"


def _moved(event: InboundEvent, message: object, chat: str) -> InboundEvent:
    """A group that becomes a supergroup gets a new id, and is told so under both."""
    if new := _id(_at(message, "migrate_to_chat_id")):
        return replace(event, address=replace(event.address, conversation=new, thread=""), moved_from=chat)
    if old := _id(_at(message, "migrate_from_chat_id")):
        return replace(event, address=replace(event.address, thread=""), moved_from=old)
    return event


def _skip_reason(message: object) -> str | None:
    if _at(message, "is_automatic_forward") is True:
        return "automatic_forward"
    # The user that stands in for an anonymous admin is a bot too.
    is_bot = _at(message, "from", "is_bot") is True and not isinstance(_at(message, "sender_chat"), dict)
    return "bot" if is_bot else None


def _replies_to_bot(message: object, bot: Bot) -> bool:
    return _id(_at(_replied(message), "from", "id")) == bot.id


def _replied(message: object) -> object | None:
    """The message that this one answers. Whatever is written in a topic is a reply to the topic's creation."""
    replied: object = _at(message, "reply_to_message")
    return None if _has(replied, "forum_topic_created") else replied


def _metadata(message: object, content: "_Content", bot: Bot) -> Mapping[str, Any]:
    metadata: dict[str, Any] = {}
    if reply_to := _reply_to(message, bot):
        metadata["reply_to"] = reply_to
    if forwarded_from := _origin_name(_at(message, "forward_origin")):
        metadata["forwarded_from"] = forwarded_from
    if _has(message, "edit_date") and _has(message, "location"):
        metadata["live"] = True  # a position that is shared while it changes
    if content.kind is EventKind.UNKNOWN:
        metadata["raw"] = _json(message)[:RAW_LIMIT]
    return metadata


def _reply_to(message: object, bot: Bot) -> Mapping[str, Any] | None:
    """The message that is answered or quoted; `external_reply` is one in another chat or topic."""
    replied: object
    if replied := _replied(message):
        author, name = _at(replied, "from"), _name(_sender(replied))
    elif replied := _at(message, "external_reply"):
        author, name = _at(replied, "origin", "sender_user"), _origin_name(_at(replied, "origin"))
    else:
        return None
    text = _text(_at(message, "quote", "text")) or _summary(replied, bot)
    return {
        "message_id": _message_id(replied),
        "text": text[:QUOTE_LIMIT],
        "author": name,
        "from_bot": _id(_at(author, "id")) == bot.id,
        "chosen": _at(message, "quote", "is_manual") is True,
    }


def _summary(message: object, bot: Bot) -> str:
    content = _content(message, bot)
    return content.raw or " ".join(f"[{file.kind}]" for file in content.attachments)


def _origin_name(origin: object) -> str | None:
    """Of a forwarded message, who wrote it. Some people let their name be seen but not who they are."""
    return (
        _name(_at(origin, "sender_user"))
        or _text(_at(origin, "sender_user_name"))
        or _name(_at(origin, "sender_chat"))
        or _name(_at(origin, "chat"))
    )


# What a message holds


@dataclass(frozen=True, slots=True)
class _Content:
    kind: EventKind
    text: str
    raw: str
    attachments: Sequence[Attachment] = ()
    addressed: bool = False
    for_other: bool = False  # it begins with a command for another bot


def _content(message: object, bot: Bot) -> _Content:
    attachment = _attachment(message)
    words = _words(message, attachment)
    written, entities = _written(message)
    if written is None and attachment is None and words is None:
        service = next((name for name in _SERVICE if _has(message, name)), None)
        if service is None:
            return _Content(EventKind.UNKNOWN, "[unsupported message]", "[unsupported message]")
        text = _service_text(service, _at(message, service))
        return _Content(EventKind.LIFECYCLE, text, text)
    asked, addressed, for_other = _without_mention(written or "", entities, bot)
    return _Content(
        EventKind.MESSAGE,
        text="\n".join(filter(None, (words, asked))),
        raw="\n".join(filter(None, (words, written))),
        attachments=(attachment,) if attachment else (),
        addressed=addressed,
        for_other=for_other,
    )


def _written(message: object) -> tuple[str | None, object]:
    if (text := _text(_at(message, "text"))) is not None:
        return text, _at(message, "entities")
    return _text(_at(message, "caption")), _at(message, "caption_entities")


@dataclass(frozen=True, slots=True)
class _Cut:
    """A part of a text that the agent does not need. `word` is one that leaves a gap."""

    start: int
    end: int
    word: bool


def _without_mention(text: str, entities: object, bot: Bot) -> tuple[str, bool, bool]:
    """The text as the agent gets it, whether it is addressed to the bot, and whether it is a command for another."""
    cuts: list[_Cut] = []
    addressed = for_other = False
    ours = f"@{bot.username}".casefold() if bot.username else None
    for kind, start, end, entity in _entities(text, entities):
        value = text[start:end]
        command, at, _ = value.partition("@")
        if (kind == "mention" and value.casefold() == ours) or (
            kind == "text_mention" and _id(_at(entity, "user", "id")) == bot.id
        ):
            cuts.append(_Cut(start, end, word=True))
        elif kind == "bot_command" and at and value[len(command) :].casefold() == ours:
            cuts.append(_Cut(start + len(command), end, word=False))
        elif kind == "bot_command" and start == 0:
            addressed, for_other = not at, bool(at)
    for cut in sorted(cuts, key=lambda cut: cut.start, reverse=True):
        text = _cut(text, cut)
    return text, addressed or bool(cuts), for_other


def _cut(text: str, cut: _Cut) -> str:
    before, after = text[: cut.start], text[cut.end :]
    if not cut.word:
        return before + after
    left, right = before.rstrip(), after.lstrip()
    spaced = (left != before or right != after) and not right.startswith(TIGHT)
    return f"{left} {right}" if left and right and spaced else left + right


def _entities(text: str, entities: object) -> Iterator[tuple[str, int, int, object]]:
    """Kind, start and end in Python's characters, and the entity. Telegram counts UTF-16 units."""
    units = text.encode("utf-16-le", "surrogatepass")
    for entity in _list(entities):
        kind, offset, length = _at(entity, "type"), _at(entity, "offset"), _at(entity, "length")
        if isinstance(kind, str) and isinstance(offset, int) and isinstance(length, int) and offset >= 0 and length > 0:
            start = len(units[: 2 * offset].decode("utf-16-le", "surrogatepass"))
            end = len(units[: 2 * (offset + length)].decode("utf-16-le", "surrogatepass"))
            yield kind, start, end, entity


_FILES: Mapping[str, tuple[Literal["audio", "video"] | None, str]] = {
    # An animation comes with itself as a document too.
    "animation": (None, "video/mp4"),
    "document": (None, "application/octet-stream"),
    "voice": ("audio", "audio/ogg"),
    "audio": ("audio", "audio/mpeg"),
    "video": ("video", "video/mp4"),
    "video_note": ("video", "video/mp4"),
}
"""What each kind of file is, if that is not told by its MIME type, and the MIME type where none is said."""


def _attachment(message: object) -> Attachment | None:
    """The file of a message, which has one at most: a photo's sizes are one file."""
    photos = sorted(_list(_at(message, "photo")), key=_area, reverse=True)
    if photos and (attachment := _file(photos[0], "image", "image/jpeg")):
        return attachment
    sticker = _at(message, "sticker")
    if attachment := _file(sticker, None, _sticker_type(sticker)):
        return attachment
    for name, (kind, mime_type) in _FILES.items():
        file = _at(message, name)
        if attachment := _file(file, kind, _text(_at(file, "mime_type")) or mime_type):
            return attachment
    return None


def _file(file: object, kind: Literal["image", "audio", "video"] | None, mime_type: str) -> Attachment | None:
    ref = _text(_at(file, "file_id"))
    size = _at(file, "file_size")
    if ref is None:
        return None
    return Attachment(
        kind=kind or kind_of(mime_type),
        mime_type=mime_type,
        ref=ref,
        name=_text(_at(file, "file_name")),
        size=size if isinstance(size, int) and size >= 0 else None,
        same_file=_text(_at(file, "file_unique_id")),
        needs_auth=True,
    )


def _sticker_type(sticker: object) -> str:
    if _at(sticker, "is_video") is True:
        return "video/webm"
    return "application/x-tgsticker" if _at(sticker, "is_animated") is True else "image/webp"


def _area(photo: object) -> float:
    width, height = _at(photo, "width"), _at(photo, "height")
    return width * height if isinstance(width, int) and isinstance(height, int) else -1


# What is no text, in words


def _words(message: object, attachment: Attachment | None) -> str | None:
    """What a message holds besides text and files, in words."""
    for name, describe in _WORDS.items():
        if _has(message, name):
            return describe(_at(message, name))
    others = _BARE if attachment else (*_BARE, "photo", *_FILES)
    return next((f"[{name.replace('_', ' ')}]" for name in others if _has(message, name)), None)


def _sticker(sticker: object) -> str:
    return f"Sticker {_text(_at(sticker, 'emoji')) or ''}".strip()


def _place(location: object) -> str:
    return f"{_number(_at(location, 'latitude'))}, {_number(_at(location, 'longitude'))}"


def _location(location: object) -> str:
    return f"{'Live location' if _at(location, 'live_period') else 'Location'}: {_place(location)}"


def _venue(venue: object) -> str:
    named = _joined(_at(venue, "title"), _at(venue, "address"))
    return f"Venue: {named} ({_place(_at(venue, 'location'))})"


def _contact(contact: object) -> str:
    return f"Contact: {_joined(_name(contact), _at(contact, 'phone_number'))}"


def _poll(poll: object) -> str:
    options = [f"- {_text(_at(option, 'text')) or '?'}" for option in _list(_at(poll, "options"))]
    return "\n".join([f"Poll: {_text(_at(poll, 'question')) or '?'}", *options])


def _checklist(checklist: object) -> str:
    tasks = [f"- {_text(_at(task, 'text')) or '?'}" for task in _list(_at(checklist, "tasks"))]
    return "\n".join([f"Checklist: {_text(_at(checklist, 'title')) or '?'}", *tasks])


def _dice(dice: object) -> str:
    return f"{_text(_at(dice, 'emoji')) or '🎲'} {_number(_at(dice, 'value'))}"


def _game(game: object) -> str:
    return f"Game: {_joined(_at(game, 'title'), _at(game, 'description'))}"


def _invoice(invoice: object) -> str:
    return f"Invoice: {_joined(_at(invoice, 'title'), _amount(invoice))}"


def _payment(payment: object) -> str:
    return f"Payment: {_amount(payment)}"


def _refund(payment: object) -> str:
    return f"Refund: {_amount(payment)}"


def _amount(payment: object) -> str:
    """As it is sent: how many of these make one of the currency differs."""
    currency = _text(_at(payment, "currency")) or "?"
    return f"{_number(_at(payment, 'total_amount'))} (in the smallest unit of {currency})"


def _users_shared(shared: object) -> str:
    names = [_name(user) or _id(_at(user, "user_id")) for user in _list(_at(shared, "users"))]
    return f"Shared: {_joined(*names)}"


def _chat_shared(shared: object) -> str:
    return f"Shared: {_name(shared) or _id(_at(shared, 'chat_id')) or '?'}"


def _web_app_data(data: object) -> str:
    return _text(_at(data, "data")) or "[web app data]"


def _rich_message(message: object) -> str:
    return "\n".join(filter(None, _rich_blocks(_at(message, "blocks"), 0))) or "[rich message]"


def _rich_blocks(blocks: object, depth: int) -> Iterator[str]:
    """The lines of nested blocks."""
    if depth > RICH_DEPTH:
        return
    for block in _list(blocks):
        yield _rich_text(_at(block, "summary"), depth)
        yield _rich_text(block, depth)
        for item in _list(_at(block, "items")):
            label = _text(_at(item, "label")) or "-"
            yield f"{label} {' '.join(filter(None, _rich_blocks(_at(item, 'blocks'), depth + 1)))}"
        for row in _list(_at(block, "cells")):
            yield " | ".join(_rich_text(cell, depth) for cell in _list(row))
        yield from _rich_blocks(_at(block, "blocks"), depth + 1)
        yield _rich_text(_at(block, "caption"), depth)


def _rich_text(text: object, depth: int) -> str:
    """A text, a list of texts, or an object that holds one."""
    if isinstance(text, str):
        return text
    if depth > RICH_DEPTH:
        return ""
    if isinstance(text, list):
        return "".join(_rich_text(piece, depth + 1) for piece in cast("list[object]", text))
    inner: object = _at(text, "text") or _at(text, "alternative_text") or _at(text, "expression") or _at(text, "button")
    return _rich_text(inner, depth + 1) if inner else ""


_WORDS: Mapping[str, Callable[[object], str]] = {
    "rich_message": _rich_message,
    "sticker": _sticker,
    "venue": _venue,  # before its location, which comes too
    "location": _location,
    "contact": _contact,
    "poll": _poll,
    "checklist": _checklist,
    "dice": _dice,
    "game": _game,
    "invoice": _invoice,
    "successful_payment": _payment,
    "refunded_payment": _refund,
    "users_shared": _users_shared,
    "chat_shared": _chat_shared,
    "web_app_data": _web_app_data,
}
_BARE = ("story", "paid_media", "live_photo", "giveaway", "giveaway_winners", "gift", "unique_gift", "passport_data")
"""Kinds of content of which only the kind is told. A live photo comes as a photo too, which is taken."""


def _service_text(name: str, value: object) -> str:
    match name:
        case "new_chat_members":
            return f"{_joined(*map(_name, _list(value)))} joined"
        case "left_chat_member":
            return f"{_name(value) or '?'} left"
        case "new_chat_title":
            return f"the title is now {_text(value) or '?'}"
        case "new_chat_photo":
            return "the photo was changed"
        case "delete_chat_photo":
            return "the photo was deleted"
        case "pinned_message":
            return "a message was pinned"
        case "migrate_to_chat_id" | "migrate_from_chat_id":
            return "the group became a supergroup"
        case _:
            return f"service message: {name}"


_SERVICE = (
    "migrate_to_chat_id",
    "migrate_from_chat_id",
    "new_chat_members",
    "left_chat_member",
    "new_chat_title",
    "new_chat_photo",
    "delete_chat_photo",
    "pinned_message",
    "group_chat_created",
    "supergroup_chat_created",
    "channel_chat_created",
    "chat_owner_left",
    "chat_owner_changed",
    "message_auto_delete_timer_changed",
    "gift_upgrade_sent",
    "connected_website",
    "write_access_allowed",
    "proximity_alert_triggered",
    "boost_added",
    "chat_background_set",
    "checklist_tasks_done",
    "checklist_tasks_added",
    "direct_message_price_changed",
    "paid_message_price_changed",
    "forum_topic_created",
    "forum_topic_edited",
    "forum_topic_closed",
    "forum_topic_reopened",
    "general_forum_topic_hidden",
    "general_forum_topic_unhidden",
    "giveaway_created",
    "giveaway_completed",
    "managed_bot_created",
    "poll_option_added",
    "poll_option_deleted",
    "suggested_post_approved",
    "suggested_post_approval_failed",
    "suggested_post_declined",
    "suggested_post_paid",
    "suggested_post_refunded",
    "video_chat_scheduled",
    "video_chat_started",
    "video_chat_ended",
    "video_chat_participants_invited",
    "community_chat_added",
    "community_chat_removed",
    "community_chat_joined",
)


# Other updates


def _callback_query(query: object, _update_key: str, bot: Bot) -> InboundEvent | None:
    query_id = _text(_at(query, "id"))
    if query_id is None:
        return None
    message = _at(query, "message")  # none where the button hangs on an inline message
    return InboundEvent(
        address=_address(message, bot),
        event_key=f"callback:{query_id}",
        user=_user(_at(query, "from")),
        text=_text(_at(query, "data")) or _text(_at(query, "game_short_name")) or "",
        kind=EventKind.BUTTON,
        platform_message_id=_message_id(message),
        about=_message_key(message),
        group=_is_group(message),
        reply_handle=query_id,
    )


def _reaction(change: object, update_key: str, bot: Bot) -> InboundEvent | None:
    emojis = " ".join(map(_emoji, _list(_at(change, "new_reaction"))))
    return _reacted(change, update_key, bot, emojis)


def _reaction_count(change: object, update_key: str, bot: Bot) -> InboundEvent | None:
    counts = (
        f"{_emoji(_at(reaction, 'type'))} {_number(_at(reaction, 'total_count'))}"
        for reaction in _list(_at(change, "reactions"))
    )
    return _reacted(change, update_key, bot, ", ".join(counts))


def _reacted(change: object, update_key: str, bot: Bot, text: str) -> InboundEvent | None:
    about = _message_key(change)
    if about is None:
        return None
    return InboundEvent(
        address=_address(change, bot),
        event_key=update_key,
        user=_user(_at(change, "actor_chat") or _at(change, "user")),
        text=text,
        kind=EventKind.REACTION,
        platform_message_id=_message_id(change),
        about=about,
        sent_at=_time(_at(change, "date")),
        addressed=not _is_group(change),
        group=_is_group(change),
    )


def _emoji(reaction: object) -> str:
    match _at(reaction, "type"):
        case "emoji":
            return _text(_at(reaction, "emoji")) or "?"
        case "paid":
            return "⭐"
        case _:
            return "[custom emoji]"


def _my_chat_member(change: object, update_key: str, bot: Bot) -> InboundEvent | None:
    private = _at(change, "chat", "type") == "private"
    gone, was_gone = _is_gone(_at(change, "new_chat_member")), _is_gone(_at(change, "old_chat_member"))
    if gone:
        text = "blocked the bot" if private else "removed the bot"
    elif was_gone:
        text = "unblocked the bot" if private else "added the bot"
    else:
        text = "rights changed"
    return _membership(change, update_key, bot, text, closes=gone)


def _chat_member(change: object, update_key: str, bot: Bot) -> InboundEvent | None:
    gone, was_gone = _is_gone(_at(change, "new_chat_member")), _is_gone(_at(change, "old_chat_member"))
    name = _name(_at(change, "new_chat_member", "user")) or "?"
    if gone:
        kicked = _at(change, "new_chat_member", "status") == "kicked"
        text = f"{name} was removed" if kicked else f"{name} left"
    else:
        text = f"{name} joined" if was_gone else f"rights of {name} changed"
    return _membership(change, update_key, bot, text)


def _chat_join_request(request: object, update_key: str, bot: Bot) -> InboundEvent | None:
    return _membership(request, update_key, bot, f"{_name(_at(request, 'from')) or '?'} asked to join")


def _membership(change: object, update_key: str, bot: Bot, text: str, *, closes: bool = False) -> InboundEvent | None:
    if _id(_at(change, "chat", "id")) is None:
        return None
    return InboundEvent(
        address=_address(change, bot),
        event_key=update_key,
        user=_user(_at(change, "from")),
        text=text,
        kind=EventKind.MEMBERSHIP,
        sent_at=_time(_at(change, "date")),
        addressed=not _is_group(change),
        group=_is_group(change),
        closes=closes,
    )


def _is_gone(member: object) -> bool:
    status = _at(member, "status")
    return status in ("kicked", "left") or (status == "restricted" and _at(member, "is_member") is False)


_READERS: Mapping[str, Callable[[object, str, Bot], InboundEvent | None]] = {
    "message": _message,
    "edited_message": partial(_message, edited=True),
    "channel_post": partial(_message, channel_post=True),
    "edited_channel_post": partial(_message, edited=True, channel_post=True),
    "callback_query": _callback_query,
    "message_reaction": _reaction,
    "message_reaction_count": _reaction_count,
    "my_chat_member": _my_chat_member,
    "chat_member": _chat_member,
    "chat_join_request": _chat_join_request,
}


# Where and who


def _address(content: object, bot: Bot) -> Address:
    """Where something with a chat belongs. Chats of business accounts, and those where the bot is a guest, can have
    the id of one of the bot's own chats without being it."""
    chat = _id(_at(content, "chat", "id"))
    if chat is None or _has(content, "business_connection_id") or _has(content, "guest_query_id"):
        return Address("telegram", bot.id, NOWHERE)
    # Without the flag, a thread is only a chain of replies. The General topic is the chat itself.
    thread = _id(_at(content, "message_thread_id")) if _at(content, "is_topic_message") is True else None
    return Address("telegram", bot.id, chat, "" if thread in (None, "1") else thread)


def _is_group(content: object) -> bool:
    return _at(content, "chat", "type") in GROUPS


def _message_key(message: object) -> str | None:
    chat, message_id = _id(_at(message, "chat", "id")), _message_id(message)
    return None if chat is None or message_id is None else f"{chat}:{message_id}"


def _message_id(message: object) -> str | None:
    """Ephemeral messages all have the id 0, which names none."""
    message_id = _id(_at(message, "message_id"))
    return None if message_id == "0" else message_id


def _sender(message: object) -> object:
    """Who wrote a message: a chat, for anonymous admins and channels, or a user."""
    return _at(message, "sender_chat") or _at(message, "from")


def _user(who: object) -> User:
    return User(
        id=_id(_at(who, "id")) or NOBODY,
        name=_name(who),
        username=_text(_at(who, "username")),
        locale=_text(_at(who, "language_code")),
    )


def _name(who: object) -> str | None:
    """The name of a user or contact, or the title of a chat."""
    full = " ".join(filter(None, (_text(_at(who, "first_name")), _text(_at(who, "last_name")))))
    return _text(_at(who, "title")) or full or None


# Reading JSON


def _at(value: object, *path: str) -> Any:
    """What nested JSON objects hold at this path, or None."""
    for key in path:
        value = cast("dict[str, object]", value).get(key) if isinstance(value, dict) else None
    return value


def _has(value: object, name: str) -> bool:
    return _at(value, name) not in (None, False)


def _list(value: object) -> Sequence[object]:
    return cast("list[object]", value) if isinstance(value, list) else ()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _id(value: object) -> str | None:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: object) -> str:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else "?"


def _joined(*values: object) -> str:
    return ", ".join(value for value in values if isinstance(value, str) and value) or "?"


def _time(value: object) -> datetime | None:
    """A moment in seconds since 1970; 0 stands for none."""
    if isinstance(value, int) and 0 < value <= LAST_SECOND and not isinstance(value, bool):
        return datetime.fromtimestamp(value, UTC)
    return None


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        return "[nested too deeply]"
