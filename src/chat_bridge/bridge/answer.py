"""Answer: have the agent (or, for a command, the bridge itself) answer a claimed turn, then complete and deliver it."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Container, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Any

from chat_bridge import tracing
from chat_bridge.agents.contract import (
    Agent,
    AgentError,
    AgentFile,
    AgentMessage,
    AgentRequest,
    Approval,
    Finished,
    Started,
    TextDelta,
)
from chat_bridge.bridge import carry, decide
from chat_bridge.bridge.claim import Running
from chat_bridge.bridge.deliver import Deliverer, rendered
from chat_bridge.bridge.fetch import Fetcher
from chat_bridge.bridge.keep import Keeper, NotKeptError, plain_name, readable
from chat_bridge.bridge.resolve import DECISIONS
from chat_bridge.errors import PlaceError, StorageError
from chat_bridge.model import Attachment, PendingMessage, Seq, Turn, TurnOutcome, kind_of, new_message_id
from chat_bridge.platforms.contract import Platform
from chat_bridge.settings import Settings
from chat_bridge.storage import messages, sessions, turns
from chat_bridge.storage.attachments import Content, StoredAttachment, key, reply_file
from chat_bridge.storage.blobs import Blobs
from chat_bridge.storage.outbox import Delivery
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.store import Store
from chat_bridge.storage.turns import Completed, Completion
from chat_bridge.telemetry import (
    AGENT_FIRST_TEXT_SECONDS,
    AGENT_SECONDS,
    ATTACHMENT_BYTES,
    ATTACHMENTS,
    FIRST_TEXT_SECONDS,
    TURN_SECONDS,
    TURNS,
    log,
)
from chat_bridge.texts import Texts

COMPLETE_RETRY_SECONDS = 0.5
LONGEST_ANSWER = 1_000_000  # characters; an agent that writes more is stopped
SHOWN_PER_SECOND = 200_000  # characters
READING_SECONDS = 10.0  # for all files that the agent gets
ROOM_SECONDS = 30.0  # how long a turn waits for the room they need
FILES_BYTES = 32 * 1024**2  # of all turns that have not sent theirs yet; an agent may need as much again, and more
MOST_FILES = 10  # of a reply; an agent that sends more hears nothing of it, and its user that they are missing
KEEP_SECONDS = 30.0  # for one file of the agent's
PIECE_BYTES = 256 * 1024
SHOWING_SECONDS = 8.0  # what showing may still take when the answer is complete


@dataclass(slots=True)
class Draft:
    """What a turn has come to so far. `files` are the agent's, with what is kept of each; `missing` says of those that
    could not be kept what they were called and why. `preview` is the platform's id of the message that shows it."""

    outcome: TurnOutcome | None = None
    text: str = ""
    files: list[tuple[Attachment, Content]] = field(default_factory=list[tuple[Attachment, Content]])
    missing: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    request_id: str | None = None
    usage: Mapping[str, Any] | None = None
    error: str | None = None
    approval: Approval | None = None
    notice: bool = False
    new_session: bool = False
    preview: str | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class _Room:
    """Bytes that all turns together may hold."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._queue = asyncio.Lock()  # in order, or who needs much would never come in
        self._more = asyncio.Event()

    async def take(self, size: int) -> None:
        async with self._queue:
            while size > self._left:
                self._more.clear()
                await self._more.wait()
            self._left -= size

    def give_back(self, size: int) -> None:
        self._left += size
        self._more.set()


class _Files:
    """The bytes of the files that the agent gets in a turn, until they are dropped."""

    def __init__(self, room: _Room) -> None:
        self._room = room
        self._size = 0
        self._of_messages: list[list[AgentFile]] = []

    async def take_room(self, size: int) -> None:
        if size:  # who needs none does not queue for it
            await self._room.take(size)
        self._size = size

    def of_message(self, files: list[AgentFile]) -> Sequence[AgentFile]:
        self._of_messages.append(files)
        return files

    def drop(self) -> None:
        for files in self._of_messages:
            files.clear()
        self._room.give_back(self._size)
        self._size = 0


class Answerer:
    """Turns a claimed turn into a stored and delivered reply."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        hot: Hot,
        platforms: Mapping[str, Platform],
        agent: Agent,
        deliverer: Deliverer,
        fetcher: Fetcher,
        keeper: Keeper,
        blobs: Blobs,
        texts: Texts,
    ) -> None:
        self._settings = settings
        self._store = store
        self._hot = hot
        self._platforms = platforms
        self._agent = agent
        self._deliverer = deliverer
        self._fetcher = fetcher
        self._keeper = keeper
        self._blobs = blobs
        self._texts = texts
        self._files = _Room(max(FILES_BYTES, settings.agent_file_max_bytes))

    async def answer(self, running: Running) -> None:
        """Answer a turn to its end. Whatever the agent does, the turn gets a final state and the user a text."""
        turn = running.turn
        came = [message.metadata for message in turn.messages]
        with tracing.span(
            "turn", "consumer", after=came, platform=turn.address.platform, messages=len(came), **_ids(turn)
        ):
            await self._answer(running)

    async def _answer(self, running: Running) -> None:
        turn, began = running.turn, time.monotonic()
        draft = Draft(preview=turn.metadata.get("preview"))
        platform = self._platforms[turn.address.platform]
        log.info("turn.claimed", messages=len(turn.messages), **_ids(turn))
        async with _typing(platform, turn):
            if not await self._obey(turn, draft):
                await running.call(self._ask(running, draft, platform), f"agent:{turn.id}")
        if running.stopped in ("superseded", "handed_back", "lost"):
            await self._give_back(running, platform)
            return
        if running.stopped == "cancelled":
            draft.outcome = TurnOutcome.CANCELLED
        completion = await self._completion(turn, draft, platform)
        untold = completion.text if completion.error_text else None
        unused, asked_at = None, time.monotonic()
        try:
            completed = await self._complete(running, completion, draft.new_session)
            if draft.new_session:
                await self._hot.forget_session(turn.conversation_id)
            self._tell(completion, completed, time.monotonic() - began)
            if completed is not None and (completed.seq is None or completion.preview is None):
                unused = draft.preview  # else it is the next turn's now, or the reply
            if completed is not None and completed.seq is not None:
                untold = None
                await self._deliver(completion, completed, asked_at)
        finally:
            await platform.show_end(turn, completion.outcome, untold, unused)

    async def _deliver(self, completion: Completion, completed: Completed, asked_at: float) -> None:
        if completed.seq is None or completed.send_key is None or completion.message_id is None:
            return
        turn = completion.turn
        await self._deliverer.deliver(
            Delivery(
                turn.conversation_id,
                completed.seq,
                1,
                1,
                completed.send_key,
                completion.message_id,
                turn.address,
                completion.text,
                completion.metadata or {},
                completion.preview,
                completion.attachments,
                taken_at=asked_at,
            )
        )

    def _tell(self, completion: Completion, completed: Completed | None, seconds: float) -> None:
        TURN_SECONDS.labels(self._agent.name).observe(seconds)
        TURNS.labels(self._agent.name, completion.outcome.value).inc()
        tracing.note(outcome=completion.outcome)
        if completion.outcome.turn_status == "failed":
            tracing.fail(completion.error or completion.outcome.value)
        # Only the operator can mend these.
        ours = completion.outcome in (TurnOutcome.UNAUTHORIZED, TurnOutcome.NOT_FOUND)
        log.log(
            logging.ERROR if ours else logging.INFO,
            "turn.completed" if completed else "turn.superseded",
            outcome=completion.outcome.value,
            milliseconds=round(seconds * 1000),
            **_ids(completion.turn),
            **({"request": completion.agent_request_id} if completion.agent_request_id else {}),
            **({"reason": completion.error} if completion.error else {}),
        )

    async def _ask(self, running: Running, draft: Draft, platform: Platform) -> None:
        turn, held = running.turn, _Files(self._files)
        try:
            request = await self._request(turn, held)
            if not request.messages and request.decision is None:
                draft.outcome = TurnOutcome.CANCELLED  # all was deleted by who wrote it
                return
            if request.decision is not None:
                # Before the call: a decision that may have been carried out must not be sent again by another turn.
                await turns.note(self._store.database, turn, {"approval": None})
            async with asyncio.timeout(self._settings.turn_timeout_seconds), self._showing(platform, running, draft):
                if self._settings.session_summary:
                    request = await self._with_summary(request, turn)
                await self._read(request, running, draft)
        except AgentError as error:
            draft.outcome, draft.error = error.outcome, error.detail
        except StorageError:
            raise
        except TimeoutError:
            draft.outcome = TurnOutcome.TIMEOUT
            draft.error = f"the agent was still answering after {self._settings.turn_timeout_seconds:g} s"
        except Exception as error:  # noqa: BLE001 - whatever an agent does, its turn ends
            log.exception("agent.crashed", agent=self._agent.name, **_ids(turn))
            draft.outcome, draft.error = TurnOutcome.ERROR, type(error).__name__
        finally:
            held.drop()

    async def _with_summary(self, request: AgentRequest, turn: Turn) -> AgentRequest:
        told = await carry.summary(self._store.database, self._agent, self._texts, turn, request)
        return request if told is None else replace(request, messages=[told, *request.messages])

    async def _read(self, request: AgentRequest, running: Running, draft: Draft) -> None:
        with tracing.span(f"agent {self._agent.name}", "client"), AGENT_SECONDS.labels(self._agent.name).time():
            await self._read_all(request, running, draft)

    async def _read_all(self, request: AgentRequest, running: Running, draft: Draft) -> None:
        called = time.monotonic()
        async with aclosing(self._agent.answer(request)) as events:
            async for event in events:
                match event:
                    case Started():
                        draft.request_id = event.request_id
                    case TextDelta():
                        if not draft.text:
                            waited = time.time() - running.turn.messages[0].created_at.timestamp()
                            FIRST_TEXT_SECONDS.labels(self._agent.name).observe(max(0.0, waited))
                            AGENT_FIRST_TEXT_SECONDS.labels(self._agent.name).observe(time.monotonic() - called)
                        draft.text += event.text
                        draft.changed.set()
                        if len(draft.text) > LONGEST_ANSWER:
                            draft.text, draft.outcome = draft.text[:LONGEST_ANSWER], TurnOutcome.TRUNCATED
                            return
                    case AgentFile():
                        await self._keep(event, running, draft)
                    case Finished():
                        draft.outcome, draft.usage = event.outcome, event.usage
                        draft.approval, draft.error = event.approval, event.detail
        if draft.outcome is None:
            raise AgentError(TurnOutcome.ERROR, "the agent ended without saying that it had finished")

    async def _keep(self, file: AgentFile, running: Running, draft: Draft) -> None:
        """Keep a file of the agent's. One that can't be is missing from the reply, with the reason: the rest is worth
        having. The agent waits meanwhile, so that a turn holds one file at a time."""
        name, turn = plain_name(file.name or ""), running.turn
        try:
            if len(draft.files) >= MOST_FILES:
                raise NotKeptError(f"a reply has {MOST_FILES} files at most", for_good=True)
            async with asyncio.timeout(KEEP_SECONDS):
                content = await self._kept(file, running)
        except NotKeptError as error:
            reason = str(error)
        except TimeoutError:
            reason = f"it was not stored within {KEEP_SECONDS:g} s"
        except PlaceError as error:
            log.error("attachment.not_stored", reason=str(error), **_ids(turn))
            reason = "it could not be stored"
        else:
            draft.files.append((reply_file(content, name), content))
            ATTACHMENTS.labels(turn.address.platform, "stored").inc()
            ATTACHMENT_BYTES.labels(turn.address.platform).inc(content.size)
            log.info("reply.file_stored", size=content.size, mime_type=content.mime_type, **_ids(turn))
            return
        ATTACHMENTS.labels(turn.address.platform, "failed").inc()
        log.warning("reply.file_not_stored", reason=reason, **_ids(turn))
        if len(draft.missing) < MOST_FILES:
            draft.missing.append((name or kind_of(file.mime_type), reason))

    async def _kept(self, file: AgentFile, running: Running) -> Content:
        """Like an answer, a file is tried to be kept while the lease lasts, if only the database is in the way."""
        while True:
            try:
                return await self._keeper.keep(_pieces(file.data), file.mime_type)
            except StorageError:
                if not running.trusted:
                    raise
                await asyncio.sleep(COMPLETE_RETRY_SECONDS)

    async def _request(self, turn: Turn, held: _Files) -> AgentRequest:
        last = turn.messages[-1]
        owner = turn.address.conversation if turn.group else turn.user_id or last.sender_id
        taken = [] if last.is_command else list(turn.messages)
        asked = {message.seq for message in taken}
        if turn.group and taken:
            # What was said around the question, in the order in which it was said.
            taken += await messages.overheard(self._store.database, turn.conversation_id, turn.session_id, last.seq)
            taken.sort(key=lambda message: message.seq)
        taken = [message for message in taken if not message.deleted]
        files = await self._fetcher.ready(turn.conversation_id, turn.address.platform, taken)
        # While there is room: of the question before what was said around it, of the newest before the others.
        first = sorted(taken, key=lambda message: (message.seq not in asked, -message.seq))
        given = await self._given(first, files, held)
        of_messages: dict[Seq, list[AgentFile]] = {message.seq: [] for message in taken}
        for seq, file in given.values():
            of_messages[seq].append(file)
        return AgentRequest(
            session=str(turn.session_id),
            resource=turn.metadata.get("resource") or f"{turn.address.platform}:{turn.address.account}:{owner}",
            messages=[
                AgentMessage(
                    str(message.id),
                    _for_agent(message, files, given),
                    (message.sender_name or message.sender_id) if turn.group else None,
                    held.of_message(of_messages[message.seq]),
                )
                for message in taken
            ],
            context={"channel": turn.address.platform}
            | ({"user_name": last.sender_name} if last.sender_name and not turn.group else {}),
            pending_approval=decide.waiting(turn),
            decision=last.text == "/approve" if last.is_command else None,
            files_sent=held.drop,
        )

    async def _given(
        self, wanted: Sequence[PendingMessage], files: Mapping[bytes, StoredAttachment], held: _Files
    ) -> Mapping[bytes, tuple[Seq, AgentFile]]:
        """The files that the agent gets as bytes, each with the first message that has it: those of types and sizes
        that it takes, while there is room, and that come in time."""
        chosen: dict[bytes, tuple[Seq, Attachment, Content]] = {}
        room = self._settings.agent_file_max_bytes
        for message in wanted:
            for attachment in message.attachments:
                file = files.get(key(attachment))
                if file is None or file.content is None or file.status != "stored" or file.content.size > room:
                    continue
                takes = any(fnmatch(file.content.mime_type, taken) for taken in self._settings.agent_file_types)
                if takes and key(attachment) not in chosen:
                    room -= file.content.size
                    chosen[key(attachment)] = message.seq, attachment, file.content
        given: dict[bytes, tuple[Seq, AgentFile]] = {}
        try:
            async with asyncio.timeout(ROOM_SECONDS):
                await held.take_room(self._settings.agent_file_max_bytes - room)
        except TimeoutError:
            log.warning("attachment.no_room", reason=f"other turns held their files for {ROOM_SECONDS:g} s")
            return given
        try:
            async with asyncio.timeout(READING_SECONDS):
                for name, (seq, attachment, content) in chosen.items():
                    data = await self._blobs.read(content.name)
                    given[name] = seq, AgentFile(content.mime_type, data, attachment.name)
        except (PlaceError, TimeoutError) as error:
            log.error("attachment.not_read", reason=str(error) or f"it did not come within {READING_SECONDS:g} s")
        return given

    async def _obey(self, turn: Turn, draft: Draft) -> bool:
        """Do what a command asks for; False: it is the agent's to answer."""
        last = turn.messages[-1]
        if not last.is_command:
            return False
        if last.text in DECISIONS:
            refusal = decide.refusal(turn)
            if refusal is None:
                return False
            draft.text = self._texts.say(refusal)
        elif last.text == "/new":
            draft.text, draft.new_session = self._texts.say("new"), True
        elif last.text == "/stop":
            draft.text = self._texts.say("stopped")
        elif last.text == "/status":
            began, count = await sessions.active_session(self._store.database, turn.conversation_id) or (None, 0)
            draft.text = self._texts.say(
                "status",
                began=began.strftime("%Y-%m-%d %H:%M UTC") if began else "-",
                messages=count,
                agent=self._agent.name,
            )
        else:
            draft.text = self._texts.say(last.text.removeprefix("/"))
        draft.outcome, draft.notice = TurnOutcome.ANSWERED, True
        return True

    async def _completion(self, turn: Turn, draft: Draft, platform: Platform) -> Completion:
        """The words and the record for how the turn ended."""
        outcome = draft.outcome or TurnOutcome.ERROR
        way = platform.capabilities.files
        said = _said(draft, self._texts, takes_files=way != "none")
        if outcome is TurnOutcome.ANSWERED and not said.strip() and not draft.files:
            outcome = TurnOutcome.EMPTY
        failed = outcome.turn_status == "failed"
        match outcome:
            case TurnOutcome.ANSWERED | TurnOutcome.CANCELLED:
                text = said
            case TurnOutcome.TRUNCATED:
                text = f"{said}\n\n{self._texts.say('truncated')}".strip()
            case TurnOutcome.APPROVAL:
                question = decide.question(draft.approval, self._texts, buttons=platform.capabilities.buttons)
                text = f"{said}\n\n{question}".strip()
            case _:
                text = self._texts.say(outcome.value)
        notice = draft.notice or failed or outcome in (TurnOutcome.EMPTY, TurnOutcome.BLOCKED)
        # Texts of ours, which stand for an answer, have none of its files.
        files = [] if notice else draft.files
        parts, sent = len(await rendered(platform, text)), files if way == "part" else []
        metadata: dict[str, Any] = {}
        if notice:
            metadata["notice"] = turn.messages[-1].text if draft.notice else outcome.value
        if outcome is TurnOutcome.CANCELLED:
            metadata["partial"] = True
        if turn.group and turn.messages[-1].platform_message_id is not None:
            metadata["reply_to"] = turn.messages[-1].platform_message_id
        if draft.approval is not None and platform.capabilities.buttons:
            metadata["buttons"] = decide.buttons(draft.approval, self._texts)
        if sent:
            metadata["text_parts"] = parts
        left: dict[str, Any] = {"preview": None} if draft.preview else {}
        if draft.approval is not None:
            left |= decide.asked(turn, draft.approval)
        elif not draft.notice:  # commands of the bridge don't reach the agent
            left |= decide.decided(turn, failed=outcome.turn_status != "done")
        if turn.group and not turn.messages[-1].is_command and outcome.turn_status == "done":
            left["heard_seq"] = turn.messages[-1].seq
        if turn.metadata.get("follows") and not draft.notice and outcome.turn_status == "done":
            left["follows"] = None  # the agent knows what was before, as far as it is told
        return Completion(
            turn=turn,
            outcome=outcome,
            text=text,
            message_id=new_message_id() if text.strip() or files else None,
            content_type="notice" if notice else "text",
            parts=max(1, parts + len(sent)) if text.strip() or files else 0,
            error_text=failed,
            error=draft.error,
            agent_request_id=draft.request_id,
            usage=draft.usage,
            metadata=tracing.carried(metadata),
            session_metadata=left or None,
            preview=draft.preview if parts or not files else None,  # no text becomes a file
            attachments=[attachment for attachment, _ in files],
            contents=[content.id for _, content in files],
        )

    @asynccontextmanager
    async def _showing(self, platform: Platform, running: Running, draft: Draft) -> AsyncGenerator[None]:
        """Show the answer as it grows: the first text at once, then as often as the platform likes. Reading the agent
        never waits for showing. When the answer is complete, a call under way may end: its message must be known."""
        turn, ended = running.turn, asyncio.Event()

        async def show() -> None:
            while True:
                await draft.changed.wait()
                if ended.is_set() or not running.trusted:  # another process may be showing it by now
                    return
                draft.changed.clear()
                shown = await platform.show_partial(turn, draft.text, draft.preview)
                if shown.preview != draft.preview:
                    draft.preview = shown.preview
                    await turns.note(self._store.database, turn, {"preview": shown.preview})
                # Each time the whole text goes out: less often as it grows.
                with suppress(TimeoutError):
                    async with asyncio.timeout(shown.wait_seconds + len(draft.text) / SHOWN_PER_SECOND):
                        await ended.wait()
                if shown.again:
                    draft.changed.set()

        async with _beside(show()) as showing:
            try:
                yield
            finally:
                ended.set()
                draft.changed.set()
                await asyncio.wait([showing], timeout=SHOWING_SECONDS)

    async def _complete(self, running: Running, completion: Completion, new_session: bool) -> Completed | None:
        """Commit, trying for as long as the lease lasts: the answer is paid for. A commit whose answer was lost looks
        like a lost turn: then the reply tells."""
        tried = False
        while True:
            try:
                completed = await self._store.complete(completion, follow_with_new_session=new_session)
                if completed is None and tried:
                    return await turns.stored_reply(self._store.database, completion)
                return completed
            except StorageError as error:
                tried = True
                if not running.trusted:
                    raise
                log.warning("turn.not_stored_yet", reason=str(error), **_ids(completion.turn))
                await asyncio.sleep(COMPLETE_RETRY_SECONDS)

    async def _give_back(self, running: Running, platform: Platform) -> None:
        turn = running.turn
        log.info("turn.given_back", reason=running.stopped, **_ids(turn))
        TURNS.labels(self._agent.name, TurnOutcome.SUPERSEDED.value).inc()
        tracing.note(outcome=TurnOutcome.SUPERSEDED, reason=running.stopped)
        # Also a lost one: the sweep would hold it against its messages that their worker died.
        await turns.supersede(self._store.database, turn.conversation_id, running.stopped or "stopped", turn.id)
        await platform.show_end(turn, TurnOutcome.SUPERSEDED, None, None)


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]


def _said(draft: Draft, texts: Texts, *, takes_files: bool) -> str:
    """The answer, and what is to be said of files that can't be sent."""
    notes = [texts.say("file_missing", file=name, reason=reason) for name, reason in draft.missing]
    if not takes_files:
        notes += [texts.say("file_not_here", file=file.name or file.kind) for file, _ in draft.files]
    return "\n\n".join([draft.text, *notes]).strip() if notes else draft.text


def _for_agent(
    message: PendingMessage,
    files: Mapping[bytes, StoredAttachment],
    given: Container[bytes],
) -> str:
    """A message in words: what it replies to, its text, and what is attached."""
    quoted: Mapping[str, Any] = message.metadata.get("reply_to") or {}
    lines: list[str] = []
    if quoted.get("text") and (quoted.get("chosen") or not quoted.get("from_bot")):
        lines.append(f"> {_one_line(quoted.get('author') or '?')}: {_one_line(quoted['text'])}")
    if origin := message.metadata.get("forwarded_from"):
        lines.append(f"[forwarded from {_one_line(origin)}]")
    if message.text:
        lines.append(message.text)
    lines += [_file_in_words(file, files.get(key(file)), given=key(file) in given) for file in message.attachments]
    return "\n".join(lines) or str(message.metadata.get("raw_text", ""))


def _file_in_words(attachment: Attachment, file: StoredAttachment | None, *, given: bool) -> str:
    """`[image: x.png]`, and of one that the agent does not get, what there is to know of it."""
    words = f"{attachment.kind}: {_one_line(attachment.name)}" if attachment.name else attachment.kind
    if given or file is None:
        return f"[{words}]"
    if file.status == "stored" and file.content is not None:
        return f"[{words}, {file.content.mime_type}, {readable(file.content.size)}]"
    return f"[{words}, not available: {_one_line(file.error or 'it is still being fetched')}]"


def _one_line(text: object) -> str:
    """So that a name can't look like a line of its own."""
    return " ".join(str(text).split())


def _ids(turn: Turn) -> dict[str, str]:
    return {
        "turn": str(turn.id),
        "conversation": str(turn.conversation_id),
        "session": str(turn.session_id),
        "message": str(turn.messages[-1].id),
    }


@asynccontextmanager
async def _typing(platform: Platform, turn: Turn) -> AsyncGenerator[None]:
    """Show that somebody is writing, again and again where a platform forgets it."""

    async def show() -> None:
        await platform.show_typing(turn)
        while platform.capabilities.typing_seconds > 0:
            await asyncio.sleep(platform.capabilities.typing_seconds)
            await platform.show_typing(turn)

    async with _beside(show()):
        yield


@asynccontextmanager
async def _beside(work: Any) -> AsyncGenerator[asyncio.Task[None]]:
    """Run something that only shows: whatever becomes of it, the turn goes on."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("turn.not_shown", reason=type(error).__name__)
