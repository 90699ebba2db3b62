"""The command line: `chat-bridge serve | doctor | migrate | config | explain | dlq | backup | archive | import |
export | export-person | search | search-index | retention | hold | erase | version`."""

import asyncio
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import typer

from chat_bridge import archive, dlq, erase, person, retention, search
from chat_bridge.backup.manifest import BackupError, Manifest
from chat_bridge.backup.restore import restore, verify
from chat_bridge.backup.vault import Vault, open_vault
from chat_bridge.errors import ChatBridgeError, PlaceError
from chat_bridge.explain import told
from chat_bridge.model import ConversationId, MessageId, SessionId
from chat_bridge.production import require_safe
from chat_bridge.settings import Settings, environment, load_settings, shown
from chat_bridge.storage.blobs import Blobs, open_blobs
from chat_bridge.storage.embedded import database_url
from chat_bridge.storage.erasure import Kind as Erasable
from chat_bridge.storage.migrate import migrate, migration_sql, schema_state
from chat_bridge.storage.postgres import Database, wait_for_server
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.search import SearchFilter
from chat_bridge.storage.sessions import SessionFilter
from chat_bridge.storage.store import Store
from chat_bridge.storage.story import tell_story
from chat_bridge.telemetry import configure_logging
from chat_bridge.transfer.export import export
from chat_bridge.transfer.load import Import, Wish
from chat_bridge.transfer.progress import Progress, counted
from chat_bridge.transfer.source import Kind
from chat_bridge.upkeep.erasure import Eraser

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Any chat platform in front of any agent.",
)

dead_letters = typer.Typer(
    no_args_is_help=True, help="Dead letters: replies that were given up, messages that got no answer."
)
cli.add_typer(dead_letters, name="dlq")

backups = typer.Typer(no_args_is_help=True, help="Backups of the database; docs/operate/backup.md tells all.")
cli.add_typer(backups, name="backup")

kept = typer.Typer(no_args_is_help=True, help="How long data is kept; docs/operate/retention.md tells all.")
cli.add_typer(kept, name="retention")

on_hold = typer.Typer(no_args_is_help=True, help="Legal hold: conversations of which nothing is deleted.")
cli.add_typer(on_hold, name="hold")

erasures = typer.Typer(no_args_is_help=True, help="Delete for good, everywhere; docs/operate/erasure.md tells all.")
cli.add_typer(erasures, name="erase")

archives = typer.Typer(no_args_is_help=True, help="Old sessions in object storage; docs/operate/archive.md tells all.")
cli.add_typer(archives, name="archive")

search_index = typer.Typer(no_args_is_help=True, help="The index of search; docs/operate/search.md tells all.")
cli.add_typer(search_index, name="search-index")


def main() -> None:
    """The entry point: an expected error is one message on standard error, never a traceback."""
    try:
        cli()
    except ChatBridgeError as error:
        sys.exit(f"chat-bridge: {error}")


@cli.command()
def serve() -> None:
    """Run the bridge until Ctrl-C or SIGTERM."""
    settings = load_settings(serves=True)
    require_safe(settings)
    configure_logging(settings.log_level, settings.log_format)
    from chat_bridge.serve import serve_until_stopped  # half a second that the other commands can do without

    _run(serve_until_stopped(settings))


@cli.command("migrate")
def migrate_schema(
    check: Annotated[bool, typer.Option("--check", help="Only tell; exit 1 when something is to be done.")] = False,
    sql: Annotated[bool, typer.Option("--sql", help="Print the whole schema as SQL; needs no database.")] = False,
) -> None:
    """Bring the database's schema up to date."""
    if sql:
        print(migration_sql())
        return
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    _run(_until_signal(_migrate(settings, check)))


@cli.command()
def config() -> None:
    """Print the settings in force, secrets masked."""
    for name, value in shown(load_settings()).items():
        print(f"{name}={value}")


@cli.command()
def doctor() -> None:
    """Check what the bridge depends on, and say what to do; exit 1 when something can't work."""
    settings = load_settings(serves=True)
    configure_logging("error", settings.log_format)
    from chat_bridge.doctor import examine  # loads as much

    with asyncio.Runner(loop_factory=_new_loop) as runner:
        findings = runner.run(examine(settings))
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{finding.status:<8} {finding.subject:<{width}}  {finding.text}")
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


@cli.command()
def explain(message: Annotated[UUID, typer.Argument(help="The id of a message, inbound or outbound.")]) -> None:
    """Tell a message's story."""
    _run(_explain(load_settings(), MessageId(message)))


Ids = Annotated[list[UUID] | None, typer.Argument(metavar="ID...", help="The ids that `dlq list` shows.")]
OfPlatform = Annotated[str | None, typer.Option("--platform", help="Only of this platform.")]
All = Annotated[bool, typer.Option("--all", help="All of them; with --platform, all of that one.")]


@dead_letters.command("list")
def list_dead_letters(
    platform: OfPlatform = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List them, newest first."""
    _run(_dlq(lambda store: dlq.show_list(store, platform, limit, as_json=as_json)))


@dead_letters.command("show")
def show_dead_letter(message: Annotated[UUID, typer.Argument(metavar="ID")]) -> None:
    """Tell one's whole story, with its text."""
    _run(_dlq(lambda store: dlq.show_one(store, MessageId(message))))


@dead_letters.command("retry")
def retry_dead_letters(ids: Ids = None, platform: OfPlatform = None, everything: All = False) -> None:
    """Send replies again; have failed messages answered after all."""
    _run(_dlq(lambda store: dlq.handle(store, "retry", ids, platform, everything=everything)))


@dead_letters.command("purge")
def purge_dead_letters(ids: Ids = None, platform: OfPlatform = None, everything: All = False) -> None:
    """Lay them aside for good; `explain` still tells their story."""
    _run(_dlq(lambda store: dlq.handle(store, "purge", ids, platform, everything=everything)))


OfBackup = Annotated[
    str | None, typer.Argument(metavar="ID", help="As `backup list` shows it; the newest one, if not given.")
]


@backups.command("create")
def create_backup() -> None:
    """Make a backup now; the bridge may run meanwhile."""
    _run(_until_signal(_create_backup(load_settings())))


@backups.command("list")
def list_backups() -> None:
    """List the backups that are whole, newest first."""
    _run(_list_backups(open_vault(load_settings())))


@backups.command("verify")
def verify_backup(backup: OfBackup = None) -> None:
    """Restore one into a scratch database on the same server, compare every table, and drop it."""
    _run(_until_signal(_verify_backup(load_settings(), backup)))


@backups.command("restore")
def restore_backup(
    backup: Annotated[str, typer.Argument(metavar="ID", help="As `backup list` shows it, or: newest.")],
    replace: Annotated[bool, typer.Option("--replace", help="Give up the rows that are there.")] = False,
) -> None:
    """Restore one into the database of the settings, while no bridge runs on it."""
    _run(_until_signal(_restore_backup(load_settings(), None if backup == "newest" else backup, replace)))


@backups.command("prune")
def prune_backups(
    keep: Annotated[
        int | None, typer.Option(min=1, help="So many stay, the newest; BACKUP_KEEP, if not given.")
    ] = None,
    older_than_days: Annotated[
        int | None, typer.Option("--older-than-days", min=1, help="Remove by age instead; the newest stays always.")
    ] = None,
) -> None:
    """Remove old backups, and what killed processes left half made."""
    _run(_prune_backups(load_settings(), keep, older_than_days))


@archives.command("run")
def run_archive() -> None:
    """Archive now what ARCHIVE_AFTER_DAYS says; the bridge may run meanwhile."""
    settings, progress = load_settings(), Progress(sys.stderr)
    configure_logging("warning", settings.log_format)
    _run(_until_signal(_archive(lambda store, blobs: archive.run(store, blobs, settings, progress))))


@archives.command("list")
def list_archives() -> None:
    """List the archives, oldest first."""
    _run(_archive(lambda store, _: archive.show_list(store)))


@archives.command("verify")
def verify_archives(
    wanted: Annotated[UUID | None, typer.Argument(metavar="ID", help="As `list` shows it; all, if not given.")] = None,
) -> None:
    """Read them, and compare checksums and counts."""
    _run(_archive(lambda store, blobs: archive.verify(store, blobs, wanted)))


@archives.command("restore")
def restore_archived(
    session: Annotated[UUID | None, typer.Argument(metavar="SESSION", help="The id of a session.")] = None,
    whole: Annotated[UUID | None, typer.Option("--archive", help="All sessions of this archive instead.")] = None,
) -> None:
    """Bring a session back into the tables, closed as it was."""
    _run(_archive(lambda store, blobs: archive.restore(store, blobs, session, whole)))


ImportFile = Annotated[Path, typer.Argument(metavar="FILE")]
OfMapping = Annotated[
    str | None,
    typer.Option("--mapping", help="openai-agents, mastra, langchain, bridge, or a TOML file of your own."),
]
OfSource = Annotated[
    str | None, typer.Option("--source", help="A name for this source, the same at each run; the file's, if not given.")
]
IntoPlatform = Annotated[str | None, typer.Option("--platform", help="The platform of rows that name none.")]
IntoAccount = Annotated[str | None, typer.Option("--account", help="The account of rows that name none.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Store nothing, tell what would be; needs no database.")]
ReportFolder = Annotated[
    Path | None,
    typer.Option("--report", help="A folder for the report and the rejected rows; a new one, if not given."),
]


@cli.command("import")
def import_file(
    kind: Annotated[Kind, typer.Argument(metavar="KIND")],
    file: ImportFile,
    mapping: OfMapping = None,
    source: OfSource = None,
    platform: IntoPlatform = None,
    account: IntoAccount = None,
    dry_run: DryRun = False,
    report: ReportFolder = None,
) -> None:
    """Bring in the conversations of another program, from a file of KIND sqlite (another program may be writing to it),
    jsonl (one JSON object a line, as `export` writes) or csv (its first line names the columns); docs/operate/import.md
    tells all."""
    _import(kind, file, mapping, source, platform, account, dry_run, report)


@cli.command("export")
def export_sessions(
    form: Annotated[Literal["jsonl", "markdown", "html", "parquet"], typer.Argument(metavar="FORMAT")],
    output: Annotated[Path | None, typer.Option("--output", help="A new file; standard output, if not given.")] = None,
    platform: OfPlatform = None,
    conversation: Annotated[str | None, typer.Option("--conversation", help="The platform's id of it.")] = None,
    conversation_id: Annotated[UUID | None, typer.Option("--conversation-id", help="Our id of it.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="The platform's id of who began it.")] = None,
    status: Annotated[Literal["active", "closed", "archived"] | None, typer.Option("--status")] = None,
    active_since: Annotated[datetime | None, typer.Option("--active-since", help="With a message since then.")] = None,
) -> None:
    """Write sessions with their messages, newest session first: jsonl, markdown, html or parquet."""
    if active_since is not None and active_since.tzinfo is None:
        active_since = active_since.replace(tzinfo=UTC)
    wanted = SessionFilter(
        platform=platform,
        conversation=conversation,
        conversation_id=ConversationId(conversation_id) if conversation_id else None,
        user_id=user,
        status=status,
        active_since=active_since,
    )
    _run(_export(load_settings(), wanted, form, output))


@cli.command("export-person")
def export_person(
    platform: Annotated[str, typer.Argument(metavar="PLATFORM")],
    user: Annotated[str, typer.Argument(metavar="USER", help="The platform's id of the person.")],
    output: Annotated[Path, typer.Option("--output", help="A new file, such as ada.zip.")],
    account: Annotated[str | None, typer.Option("--account", help="Only on this account.")] = None,
) -> None:
    """Write all that is kept of a person into a ZIP: what they wrote, the answers, their files and their name."""
    of = {"platform": platform, "user": user} | ({"account": account} if account else {})
    settings = load_settings()
    configure_logging("error", settings.log_format)
    _run(_with_eraser(settings, partial(_export_person, of=of, output=output)))


@cli.command("search")
def search_messages(
    query: Annotated[str, typer.Argument(help="""All of these: word, prefix*, "a phrase", and -not this.""")],
    platform: OfPlatform = None,
    account: Annotated[str | None, typer.Option("--account", help="Only of this account.")] = None,
    conversation: Annotated[str | None, typer.Option("--conversation", help="The platform's id of it.")] = None,
    conversation_id: Annotated[UUID | None, typer.Option("--conversation-id", help="Our id of it.")] = None,
    session: Annotated[UUID | None, typer.Option("--session", help="The id of a session.")] = None,
    person: Annotated[
        str | None, typer.Option("--person", help="Who wrote it: the platform's id, the user name or the name.")
    ] = None,
    direction: Annotated[Literal["inbound", "outbound"] | None, typer.Option("--direction")] = None,
    since: Annotated[datetime | None, typer.Option("--since", help="Stored then or later; UTC.")] = None,
    until: Annotated[datetime | None, typer.Option("--until", help="Stored before then; UTC.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Search messages; the newest come first."""
    wanted = SearchFilter(
        platform=platform,
        account=account,
        conversation=conversation,
        conversation_id=ConversationId(conversation_id) if conversation_id else None,
        session_id=SessionId(session) if session else None,
        person=person,
        direction=direction,
        since=_in_utc(since),
        until=_in_utc(until),
    )
    _run(
        _on_database(load_settings(), lambda database, _: search.show(database, query, wanted, limit, as_json=as_json))
    )


def _in_utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


@search_index.command("on")
def switch_search_on(
    language: Annotated[
        str, typer.Option("--language", help="PostgreSQL's name of a language; simple: words as they are.")
    ] = "simple",
) -> None:
    """Build the index, or another one for another language, while the bridge runs."""
    settings = load_settings()
    _run(
        _until_signal(_on_database(settings, lambda database, dsn: search.switch_on(database, dsn, language, settings)))
    )


@search_index.command("off")
def switch_search_off() -> None:
    """Drop the index."""
    settings = load_settings()
    _run(_until_signal(_on_database(settings, lambda database, dsn: search.switch_off(database, dsn, settings))))


@search_index.command("status")
def show_search_index() -> None:
    """Tell whether search is on, and how far a build is."""
    _run(_on_database(load_settings(), lambda database, _: search.show_status(database)))


@kept.command("plan")
def plan_retention() -> None:
    """Tell what the policies would delete now, and delete nothing."""
    settings = load_settings()
    _run(_on_database(settings, lambda database, _: retention.show_plan(database, settings)))


@kept.command("run")
def run_retention() -> None:
    """Delete what the policies keep no longer; `serve` does so each hour by itself."""
    settings = load_settings()
    _run(_until_signal(_on_database(settings, lambda database, _: retention.run_now(database, settings))))


OfConversation = Annotated[UUID, typer.Argument(metavar="CONVERSATION_ID", help="Our id of it, as `export` shows it.")]


@on_hold.command("add")
def add_hold(
    conversation: OfConversation, reason: Annotated[str, typer.Option("--reason", help="Why; others will read it.")]
) -> None:
    """Keep all of a conversation, until the hold is lifted."""
    where = ConversationId(conversation)
    _run(_on_database(load_settings(), lambda database, _: retention.add_hold(database, where, reason)))


@on_hold.command("lift")
def lift_hold(conversation: OfConversation) -> None:
    """Let the policies have it again."""
    where = ConversationId(conversation)
    _run(_on_database(load_settings(), lambda database, _: retention.lift_hold(database, where)))


@on_hold.command("list")
def list_holds() -> None:
    """List them, the oldest first."""
    _run(_on_database(load_settings(), lambda database, _: retention.list_holds(database)))


Sure = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@erasures.command("user")
def erase_user(
    platform: Annotated[str, typer.Argument(metavar="PLATFORM")],
    user: Annotated[str, typer.Argument(metavar="USER", help="The platform's id of the person.")],
    account: Annotated[str | None, typer.Option("--account", help="Only on this account.")] = None,
    sure: Sure = False,
) -> None:
    """Erase a person: what they wrote, the answers to it, their files and their name."""
    of = {"platform": platform, "user": user} | ({"account": account} if account else {})
    _erase("user", of, sure)


@erasures.command("conversation")
def erase_conversation(conversation: OfConversation, sure: Sure = False) -> None:
    """Erase a conversation with all its sessions."""
    _erase("conversation", {"conversation": str(conversation)}, sure)


@erasures.command("session")
def erase_session(
    session: Annotated[UUID, typer.Argument(metavar="SESSION_ID", help="As `export` shows it.")], sure: Sure = False
) -> None:
    """Erase one session of a conversation."""
    _erase("session", {"session": str(session)}, sure)


@erasures.command("show")
def show_erasure(erasure: Annotated[UUID, typer.Argument(metavar="ID")]) -> None:
    """Print the receipt of an erasure."""
    _run(_on_database(load_settings(), lambda database, _: erase.show(database, erasure)))


@erasures.command("reapply")
def reapply_erasures() -> None:
    """After a restore that `chat-bridge backup restore` did not do: erase again what was erased since that backup."""
    settings = load_settings()
    configure_logging("error", settings.log_format)
    _run(_until_signal(_with_eraser(settings, erase.reapply)))


@cli.command("version")
def show_version() -> None:
    """Print the version."""
    print(version("agoric-chat-bridge"))


def _run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(work)


def _new_loop() -> asyncio.AbstractEventLoop:
    with suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


async def _migrate(settings: Settings, check: bool) -> None:
    require_safe(settings)
    if settings.database_url is not None:
        await wait_for_server(settings.database_url.get_secret_value(), settings.database_wait_seconds)
    async with database_url(settings, beside=True) as dsn:
        state = await schema_state(dsn) if check else await migrate(dsn)
    if check:
        state.require_usable()
    print(state.summary)


async def _explain(settings: Settings, message: MessageId) -> None:
    async with (
        database_url(settings, beside=True) as dsn,
        Database.open(dsn, pgbouncer=settings.database_pgbouncer) as database,
    ):
        story = await tell_story(database, message)
    if story is None:
        raise ChatBridgeError(
            f"there is no message {message}; `chat-bridge archive restore` brings back those of an archived session"
        )
    print("\n".join(told(story)))


def _import(
    kind: Kind,
    file: Path,
    mapping: str | None,
    source: str | None,
    platform: str | None,
    account: str | None,
    dry_run: bool,
    folder: Path | None,
) -> None:
    values = {name: value for name, value in (("platform", platform), ("account", account)) if value}
    if folder is None:
        folder = Path(f"chat-bridge-import-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    wish = Wish(kind, file, folder, mapping, source, values)
    _run(_import_file(wish, None if dry_run else load_settings()))


async def _import_file(wish: Wish, settings: Settings | None) -> None:
    """Import; without settings, only look."""
    progress = Progress(sys.stderr)
    work = Import(wish, progress.tell)
    try:
        if settings is None:
            report = await work.run(None)
        else:
            async with (
                database_url(settings, beside=True) as dsn,
                Database.open(dsn, pool_size=1, pgbouncer=settings.database_pgbouncer) as database,
            ):
                (await schema_state(dsn)).require_usable()
                report = await work.run(database)
    finally:
        progress.end()
    print("\n".join([*report.lines(), f"  the report is in {wish.folder}"]))
    if not report.complete:
        raise ChatBridgeError(
            f"not every row is in: {wish.folder / 'rejects.jsonl'} and report.json tell which and why"
        )


async def _export(settings: Settings, wanted: SessionFilter, form: str, output: Path | None) -> None:
    progress = Progress(sys.stderr)
    async with (
        database_url(settings, beside=True) as dsn,
        Database.open(dsn, pool_size=1, pgbouncer=settings.database_pgbouncer) as database,
    ):
        (await schema_state(dsn)).require_usable()
        blobs = open_blobs(settings.attachment_bucket, settings.data_dir, environment())
        sessions, messages = await export(database, blobs, wanted, form, output, progress.count)
    progress.end()
    print(f"{counted(messages, 'message')} of {counted(sessions, 'session')} written", file=sys.stderr)


async def _dlq(work: Callable[[Store], Awaitable[None]]) -> None:
    settings = load_settings()
    async with (
        database_url(settings, beside=True) as dsn,
        Database.open(dsn, pgbouncer=settings.database_pgbouncer) as database,
    ):
        (await schema_state(dsn)).require_usable()
        await work(Store(database, owner="dlq"))


async def _archive(work: Callable[[Store, Blobs], Awaitable[None]]) -> None:
    settings = load_settings()
    async with (
        database_url(settings, beside=True) as dsn,
        Database.open(dsn, pool_size=2, pgbouncer=settings.database_pgbouncer) as database,
    ):
        (await schema_state(dsn)).require_usable()
        blobs = open_blobs(settings.attachment_bucket, settings.data_dir, environment())
        await work(Store(database, owner="archive"), blobs)


async def _on_database(settings: Settings, work: Callable[[Database, str], Awaitable[None]]) -> None:
    async with (
        database_url(settings, beside=True) as dsn,
        Database.open(dsn, pool_size=1, pgbouncer=settings.database_pgbouncer) as database,
    ):
        (await schema_state(dsn)).require_usable()
        await work(database, dsn)


async def _export_person(eraser: Eraser, of: Mapping[str, str], output: Path) -> None:
    progress = Progress(sys.stderr)
    done = await person.export_person(eraser, of, output, progress.count)
    progress.end()
    print(
        f"{counted(done.messages, 'message')} of {counted(done.sessions, 'session')} and {counted(done.files, 'file')} "
        "written"
    )
    print("\n".join(f"not there: {each}" for each in done.missing), end="\n" if done.missing else "")


def _erase(kind: Erasable, of: Mapping[str, str], sure: bool) -> None:
    settings = load_settings()
    configure_logging("error", settings.log_format)
    work = partial(erase.erase, kind=kind, of=of, sure=sure, backups=settings.backup_to)
    _run(_until_signal(_with_eraser(settings, work)))


async def _with_eraser(settings: Settings, work: Callable[[Eraser], Awaitable[None]]) -> None:
    from chat_bridge.service import make_agent  # loads all that a bridge needs

    redis_url = settings.redis_url.get_secret_value() if settings.redis_url else None
    agent = make_agent(settings)
    try:
        async with (
            database_url(settings, beside=True) as dsn,
            Database.open(dsn, pgbouncer=settings.database_pgbouncer) as database,
            Hot.open(redis_url) as hot,
        ):
            (await schema_state(dsn)).require_usable()
            blobs = open_blobs(settings.attachment_bucket, settings.data_dir, environment())
            await work(Eraser(Store(database, owner="erase"), hot, blobs, agent))
    finally:
        await agent.aclose()


async def _until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Do what has to be undone when it stops in the middle: `docker stop` and a closed ssh end it as Ctrl-C does. The
    first process of a container would not hear SIGTERM at all."""
    task, got = asyncio.current_task(), list[str]()
    assert task is not None

    def stop(number: signal.Signals) -> None:
        if not got:  # once: the undoing is to come to its end
            task.cancel()
        got.append(number.name)

    main = threading.current_thread() is threading.main_thread()  # no other thread hears of signals
    for number in (signal.SIGTERM, signal.SIGHUP):
        if main and signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        await work
    except asyncio.CancelledError:
        if not got:
            raise
        raise ChatBridgeError(f"stopped by {got[0]}") from None


async def _create_backup(settings: Settings) -> None:
    vault = open_vault(settings)
    async with database_url(settings, beside=True) as dsn:
        manifest = await vault.create(dsn)
    print(f"{_as_line(manifest)}\nmade; `chat-bridge backup verify` tries whether it can be restored")


async def _list_backups(vault: Vault) -> None:
    there = await vault.whole()
    for backup in there:
        try:
            print(_as_line(await vault.manifest(backup)))
        except (BackupError, PlaceError) as error:
            print(f"{backup}  {error}")
    if not there:
        print("there is no backup")


async def _verify_backup(settings: Settings, backup: str | None) -> None:
    vault = open_vault(settings)
    manifest = await vault.find(backup)
    async with database_url(settings, beside=True) as dsn:
        await verify(vault, manifest, dsn)
    tables = counted(len(manifest.tables), "table")
    print(f"{_as_line(manifest)}\ngood: {tables} restored, rows counted and compared")


async def _restore_backup(settings: Settings, backup: str | None, replace: bool) -> None:
    vault = open_vault(settings)
    manifest = await vault.find(backup)
    async with database_url(settings) as dsn:
        await restore(vault, manifest, dsn, replace=replace)
        print(f"{_as_line(manifest)}\nrestored")
        await migrate(dsn)  # a backup of before may not know of erasures
        try:
            await _with_eraser(settings, erase.reapply)
        except PlaceError as error:
            raise ChatBridgeError(
                f"{error}; so what was erased since the backup is there again. `chat-bridge erase reapply` erases it "
                "once more, and so does `chat-bridge serve` when it has begun"
            ) from error
    print("`chat-bridge serve` goes on from here")


async def _prune_backups(settings: Settings, keep: int | None, days: int | None) -> None:
    if keep is not None and days is not None:
        raise BackupError("--keep and --older-than-days exclude each other")
    vault = open_vault(settings)
    if days is None:
        gone = await vault.prune(keep=settings.backup_keep if keep is None else keep)
    else:
        gone = await vault.prune(older_than=timedelta(days=days))
    print("\n".join([*gone, f"{len(gone)} removed"]))


def _as_line(manifest: Manifest) -> str:
    encrypted = "encrypted" if manifest.dump.encryption else "not encrypted"
    megabytes = manifest.dump.bytes / 1e6
    messages = counted(manifest.tables["messages"].rows, "message")
    return f"{manifest.id}  {messages}  {megabytes:,.1f} MB  schema {manifest.revision}  {encrypted}"
