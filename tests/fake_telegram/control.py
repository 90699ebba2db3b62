"""The control API: who uses it plays everything beside the bot. All bodies are JSON; unknown fields are refused.

GET    /control/state                     the bot, users, chats (without messages), webhook and settings
POST   /control/users                     first_name, last_name, username, language_code, id: a person
POST   /control/chats                     type private (user), or group, supergroup, channel (title, members, forum,
                                          username, id, bot: member or administrator): a chat
GET    /control/chats/{chat}              the chat as its people see it: messages, drafts, actions, topics, members
POST   /control/chats/{chat}/messages     from, and text, entities, reply_to, topic, media, album (an id),
                                          anonymous (as an admin), forward_from (a user), fields (of the Bot API's
                                          message, as they are)
PATCH  /control/chats/{chat}/messages/{message}           text, entities, media; DELETE deletes it
POST   /control/chats/{chat}/messages/{message}/press     from, and label or data: press a button
POST   /control/chats/{chat}/messages/{message}/reaction  from, emoji (null takes it back)
POST   /control/chats/{chat}/members      user, status: member or left
POST   /control/chats/{chat}/bot          by, status: member, administrator, left, kicked (private: kicked is blocked)
POST   /control/chats/{chat}/upgrade      by: to a supergroup; gives the new chat
POST   /control/chats/{chat}/topics       by, name: a topic
PATCH  /control/chats/{chat}/topics/{id}  by, closed; DELETE deletes it
GET    /control/presses/{id}              whether a press of a button was answered, and how
GET    /control/files/{id}                the bytes of a file
GET    /control/calls                     the bot's calls (?method=), oldest first
GET    /control/deliveries                each try to send an update to the webhook
GET    /control/updates                   the updates that nobody has confirmed
POST   /control/updates                   body, lane: an update, whatever is in it
POST   /control/odd                       kinds: what shall be wrong with the next updates (see faults.py)
GET    /control/faults, POST              method, kind, times, chat, more: what shall go wrong (see faults.py); DELETE
POST   /control/settings                  retry_scale, webhook_timeout, update_lifetime (seconds), sees_all,
                                          per_chat and overall (messages a second, 0 is no limit)
GET    /control/changes?after=N           waits (?timeout= seconds) until more than N changes have happened
GET    /control/events                    the same for pages: an event stream of the counts

Each answer has the count of changes at its time in the header X-Changes.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from aiohttp import web

from tests.fake_telegram.bot_api import BotApi
from tests.fake_telegram.faults import OF_UPDATES, Faults
from tests.fake_telegram.media import KINDS, media_body
from tests.fake_telegram.methods import Methods
from tests.fake_telegram.updates import Updates
from tests.fake_telegram.webhook import WebhookSender
from tests.fake_telegram.world import Chat, Json, Message, World, text_body

LONGEST_WAIT = 60.0
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Control:
    """The routes under /control/."""

    def __init__(
        self, world: World, updates: Updates, webhook: WebhookSender, faults: Faults, methods: Methods, bot_api: BotApi
    ) -> None:
        self._world = world
        self._updates = updates
        self._webhook = webhook
        self._faults = faults
        self._methods = methods
        self._bot_api = bot_api

    def routes(self) -> list[web.RouteDef]:
        """What the server answers for tests and pages."""
        chat = "/control/chats/{chat}"
        message = chat + "/messages/{message}"
        return [
            web.get("/control/state", self._state),
            web.post("/control/users", self._add_user),
            web.post("/control/chats", self._add_chat),
            web.get(chat, self._show_chat),
            web.post(chat + "/messages", self._say),
            web.patch(message, self._edit),
            web.delete(message, self._delete),
            web.post(message + "/press", self._press),
            web.post(message + "/reaction", self._react),
            web.post(chat + "/members", self._member),
            web.post(chat + "/bot", self._bot),
            web.post(chat + "/upgrade", self._upgrade),
            web.post(chat + "/topics", self._add_topic),
            web.patch(chat + "/topics/{topic}", self._change_topic),
            web.delete(chat + "/topics/{topic}", self._delete_topic),
            web.get("/control/presses/{id}", self._show_press),
            web.get("/control/files/{id}", self._show_file),
            web.get("/control/calls", self._calls),
            web.get("/control/deliveries", self._deliveries),
            web.get("/control/updates", self._show_updates),
            web.post("/control/updates", self._add_update),
            web.post("/control/odd", self._odd),
            web.get("/control/faults", self._show_faults),
            web.post("/control/faults", self._add_fault),
            web.delete("/control/faults", self._clear_faults),
            web.post("/control/settings", self._settings),
            web.get("/control/changes", self._changes),
            web.get("/control/events", self._events),
        ]

    # People and chats

    async def _state(self, request: web.Request) -> web.Response:
        world = self._world
        chats = [self._summary(chat) for chat in world.chats.values()]
        users = [user for user in world.users.values() if user is not world.bot]
        return self._json({"bot": world.bot, "users": users, "chats": chats, "webhook": self._webhook.info()})

    def _summary(self, chat: Chat) -> Json:
        last = next(reversed(chat.messages.values()), None)
        about = {"bot": chat.bot, "members": chat.members, "migrated_to": chat.migrated_to}
        return {**chat.json(), **about, "last": self._seen(last) if last else None}

    async def _add_user(self, request: web.Request) -> web.Response:
        return self._json(self._world.add_user(await _body(request, "first_name last_name username language_code id")))

    async def _add_chat(self, request: web.Request) -> web.Response:
        body = await _body(request, "type user title members forum username id bot")
        if body["type"] == "private":
            return self._json(self._summary(self._world.private(self._user(body["user"]))))
        members = dict.fromkeys(body.get("members", []), "member")
        chat = self._world.add_chat(
            body["type"],
            body.get("title"),
            id=body.get("id"),
            is_forum=bool(body.get("forum")),
            username=body.get("username"),
            bot=body.get("bot", "administrator" if body["type"] == "channel" else "member"),
            members=members,
        )
        return self._json(self._summary(chat))

    async def _show_chat(self, request: web.Request) -> web.Response:
        chat, now = self._chat(request), time.time()
        drafts = [asdict(draft) for draft in chat.drafts.values() if draft.until > now]
        actions = {topic: action for topic, (action, until) in chat.actions.items() if until > now}
        shown = {"messages": [self._seen(message) for message in chat.messages.values()]}
        shown |= {"deleted": [self._seen(message) for message in chat.deleted]}
        shown |= {"drafts": drafts, "draft_texts": chat.draft_texts, "actions": actions}
        shown |= {"action_count": chat.action_count, "topics": [asdict(topic) for topic in chat.topics.values()]}
        return self._json(self._summary(chat) | shown)

    @staticmethod
    def _seen(message: Message) -> Json:
        """A message, with what only people see."""
        more = {"edits": message.edits, "seen_by_bot": message.seen_by_bot}
        return {**message.json(), **more, "reactions": message.reactions}

    # Messages

    async def _say(self, request: web.Request) -> web.Response:
        chat = self._chat(request)
        body = await _body(request, "from text entities reply_to topic media album anonymous forward_from fields")
        sender = self._user(body["from"])
        media = body.get("media")
        if media is not None and media.get("kind") not in KINDS:
            raise _wrong(f"media has kinds {', '.join(KINDS)}")
        said = text_body(body["text"], body.get("entities"), "caption" if media else "text") if body.get("text") else {}
        said |= media_body(self._world, media) if media else {}
        said |= {"media_group_id": body["album"]} if body.get("album") else {}
        if origin := body.get("forward_from"):
            about = {"type": "user", "date": int(time.time()), "sender_user": self._user(origin)}
            said["forward_origin"] = about
        message = self._world.post(
            chat,
            sender,
            said | body.get("fields", {}),
            reply_to=body.get("reply_to"),
            topic=body.get("topic"),
            sender_chat=chat.json() if body.get("anonymous") else None,
        )
        return self._json(self._seen(message))

    async def _edit(self, request: web.Request) -> web.Response:
        message = self._message(request)
        body = await _body(request, "text entities media")
        media = media_body(self._world, body["media"]) if body.get("media") else {}
        name = "text" if "text" in message.body and not media else "caption"
        said = text_body(body["text"], body.get("entities"), name) if body["text"] or not media else {}
        self._world.edit(message, said | media)
        return self._json(self._seen(message))

    async def _delete(self, request: web.Request) -> web.Response:
        self._world.delete(self._message(request))
        return self._json(True)

    async def _press(self, request: web.Request) -> web.Response:
        message = self._message(request)
        body = await _body(request, "from label data")
        rows = message.body.get("reply_markup", {}).get("inline_keyboard", [])
        buttons = [button for row in rows for button in row]
        data = body.get("data")
        if data is None:
            named = [button["callback_data"] for button in buttons if button["text"] == body["label"]]
            if not named:
                raise _wrong(f"there is no button {body['label']!r}, only {[button['text'] for button in buttons]}")
            data = named[0]
        return self._json(asdict(self._world.press(message, self._user(body["from"]), data)))

    async def _react(self, request: web.Request) -> web.Response:
        body = await _body(request, "from emoji")
        self._world.react(self._message(request), self._user(body["from"]), body.get("emoji"))
        return self._json(True)

    # Membership and topics

    async def _member(self, request: web.Request) -> web.Response:
        body = await _body(request, "user status")
        self._world.set_member(self._chat(request), self._user(body["user"]), body["status"])
        return self._json(True)

    async def _bot(self, request: web.Request) -> web.Response:
        body = await _body(request, "by status")
        if body["status"] not in ("member", "administrator", "left", "kicked"):
            raise _wrong("status is member, administrator, left or kicked")
        self._world.set_bot(self._chat(request), body["status"], self._user(body["by"]))
        return self._json(True)

    async def _upgrade(self, request: web.Request) -> web.Response:
        body = await _body(request, "by")
        return self._json(self._summary(self._world.upgrade(self._chat(request), self._user(body["by"]))))

    async def _add_topic(self, request: web.Request) -> web.Response:
        body = await _body(request, "by name")
        return self._json(asdict(self._world.add_topic(self._chat(request), self._user(body["by"]), body["name"])))

    async def _change_topic(self, request: web.Request) -> web.Response:
        chat, topic = self._chat(request), int(request.match_info["topic"])
        body = await _body(request, "by closed")
        chat.topics[topic].closed = body["closed"]
        service = "forum_topic_closed" if body["closed"] else "forum_topic_reopened"
        self._world.post(chat, self._user(body["by"]), {service: {}}, topic=topic)
        return self._json(True)

    async def _delete_topic(self, request: web.Request) -> web.Response:
        chat, topic = self._chat(request), int(request.match_info["topic"])
        del chat.topics[topic]
        for message in [one for one in chat.messages.values() if one.body.get("message_thread_id") == topic]:
            self._world.delete(message)
        return self._json(True)

    # What the bot did, and what shall go wrong

    async def _show_press(self, request: web.Request) -> web.Response:
        return self._json(asdict(_known(self._world.presses, request.match_info["id"])))

    async def _show_file(self, request: web.Request) -> web.Response:
        file = _known(self._world.files, request.match_info["id"])
        # A browser may only ever show it as a picture, never run it.
        headers = {"Content-Security-Policy": "sandbox; default-src 'none'", "X-Content-Type-Options": "nosniff"}
        return web.Response(body=file.content, content_type=file.mime_type, headers=headers)

    async def _calls(self, request: web.Request) -> web.Response:
        wanted = request.query.get("method", "").lower()
        return self._json([call for call in self._bot_api.calls if wanted in ("", call["method"].lower())])

    async def _deliveries(self, request: web.Request) -> web.Response:
        return self._json(self._webhook.deliveries)

    async def _show_updates(self, request: web.Request) -> web.Response:
        return self._json([update.body for update in self._updates.pending])

    async def _add_update(self, request: web.Request) -> web.Response:
        body = await _body(request, "body lane")
        return self._json(self._updates.add(body["body"], body.get("lane", 0)))

    async def _odd(self, request: web.Request) -> web.Response:
        kinds = (await _body(request, "kinds"))["kinds"]
        if not OF_UPDATES.issuperset(kinds):
            raise _wrong(f"updates have the faults {', '.join(sorted(OF_UPDATES))}")
        self._updates.odd += kinds
        return self._json(True)

    async def _show_faults(self, request: web.Request) -> web.Response:
        return self._json(self._faults.json())

    async def _add_fault(self, request: web.Request) -> web.Response:
        body = await _body(request, "method kind times chat more")
        more = body.pop("more", {})
        try:
            self._faults.add(**body, **more)
        except ValueError as error:
            raise _wrong(str(error)) from None
        return self._json(True)

    async def _clear_faults(self, request: web.Request) -> web.Response:
        self._faults.clear()
        self._updates.odd.clear()
        return self._json(True)

    async def _settings(self, request: web.Request) -> web.Response:
        body = await _body(request, "retry_scale webhook_timeout update_lifetime sees_all per_chat overall")
        webhook, limit = self._webhook, self._methods.rate_limit
        webhook.retry_scale = body.get("retry_scale", webhook.retry_scale)
        webhook.timeout = body.get("webhook_timeout", webhook.timeout)
        limit.per_chat = body.get("per_chat", limit.per_chat)
        limit.overall = body.get("overall", limit.overall)
        self._updates.lifetime = body.get("update_lifetime", self._updates.lifetime)
        self._world.sees_all = body.get("sees_all", self._world.sees_all)
        return self._json(True)

    async def _changes(self, request: web.Request) -> web.Response:
        after, seconds = int(request.query.get("after", -1)), float(request.query.get("timeout", LONGEST_WAIT))
        return self._json(await self._world.changes.after(after, min(seconds, LONGEST_WAIT)))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        count = self._world.changes.count
        while True:
            await response.write(f"data: {count}\n\n".encode())
            count = await self._world.changes.after(count, 15)

    # Small things

    def _json(self, body: Any) -> web.Response:
        headers = {"X-Changes": str(self._world.changes.count), "Cache-Control": "no-store"}
        return web.json_response(body, headers=headers)

    def _chat(self, request: web.Request) -> Chat:
        return _known(self._world.chats, int(request.match_info["chat"]))

    def _message(self, request: web.Request) -> Message:
        return _known(self._chat(request).messages, int(request.match_info["message"]))

    def _user(self, number: int) -> Json:
        return _known(self._world.users, number)


def _known(things: dict[Any, Any], key: Any) -> Any:
    if key not in things:
        raise web.HTTPNotFound(text=f"there is no {key!r}")
    return things[key]


def _wrong(text: str) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(text=text)


async def _body(request: web.Request, names: str) -> dict[str, Any]:
    """The body, whose fields are these. Only JSON is taken: a foreign page can't send that."""
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="send application/json")
    body = await request.json()
    if unknown := set(body) - set(names.split()):
        raise _wrong(f"unknown fields {sorted(unknown)}; there are {names}")
    return body
