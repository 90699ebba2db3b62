"""What `chat-bridge doctor` tells of a bot: its token, how updates come, groups, and the clock."""

import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from chat_bridge.platforms.contract import Finding
from chat_bridge.platforms.telegram.api import REFUSED, BotApi, BotApiError, fields, refuses_token
from chat_bridge.platforms.telegram.parse import ALLOWED_UPDATES

CHECK_SECONDS = 10.0
CLOCK_SECONDS = 30.0
RECENT_SECONDS = 3600.0
MANY_WAITING = 100


async def check(
    api: BotApi, webhook_url: str | None, *, polls: bool, may_remove_webhook: bool, wants_all: bool
) -> Sequence[Finding]:
    """Look at everything; change nothing."""
    try:
        me = fields(await api.call("getMe", {}, seconds=CHECK_SECONDS))
        webhook = fields(await api.call("getWebhookInfo", {}, seconds=CHECK_SECONDS))
    except BotApiError as error:
        if refuses_token(error):
            return [Finding("telegram token", "problem", f"{REFUSED}.")]
        text = f"{error}. Look at the network, and at TELEGRAM_API_BASE_URL."
        return [Finding("telegram connection", "problem", text)]
    url = str(webhook.get("url") or "")
    return [
        Finding("telegram token", "ok", f"It belongs to the bot @{me.get('username')} (id {me.get('id')})."),
        _check_polling(url, may_remove_webhook) if polls else _check_webhook(url, webhook_url),
        *_check_waiting(webhook),
        *(() if polls else _check_flow(webhook, webhook_url)),
        _check_groups(me, wants_all),
        *_check_clock(api.clock_ahead),
    ]


def host_of(url: str) -> str:
    """Paths and queries of webhooks often hold secrets."""
    return urlsplit(url).hostname or "an unreadable address"


def _check_polling(url: str, may_remove_webhook: bool) -> Finding:
    if not url:
        return Finding("telegram updates", "ok", "They are fetched by polling.")
    if may_remove_webhook:
        text = f"A webhook is set ({host_of(url)}); the bridge removes it at its start."
        return Finding("telegram updates", "warning", text)
    text = (
        f"A webhook is set ({host_of(url)}), so polling can't work. Set TELEGRAM_POLLING=true to remove it, or "
        "TELEGRAM_WEBHOOK_URL to take it over."
    )
    return Finding("telegram updates", "problem", text)


def _check_webhook(url: str, ours: str | None) -> Finding:
    if url and url == ours:
        return Finding("telegram updates", "ok", f"They are sent to our webhook at {host_of(url)}.")
    where = f"They go elsewhere ({host_of(url)})" if url else "No webhook is set"
    return Finding("telegram updates", "problem", f"{where}. Start the bridge: it sets TELEGRAM_WEBHOOK_URL.")


def _check_waiting(webhook: Mapping[str, Any]) -> Sequence[Finding]:
    if not (waiting := webhook.get("pending_update_count")):
        return ()
    text = f"{waiting} wait at Telegram; it keeps them for a day."
    if waiting >= MANY_WAITING:
        return (Finding("telegram updates", "warning", f"{text} Is the bridge running, and can Telegram reach it?"),)
    return (Finding("telegram updates", "ok", text),)


def _check_flow(webhook: Mapping[str, Any], ours: str | None) -> Sequence[Finding]:
    """What failed lately, and which kinds of updates come."""
    findings: list[Finding] = []
    age = time.time() - float(webhook.get("last_error_date") or 0)
    if age < RECENT_SECONDS:
        said = f"{_ago(age)}, Telegram could not deliver: {webhook.get('last_error_message')}."
        hint = "See that TELEGRAM_WEBHOOK_URL leads to the bridge."
        findings.append(Finding("telegram updates", "warning", f"{said} {hint}"))
    missing = sorted(set(ALLOWED_UPDATES) - set(webhook.get("allowed_updates") or ()))
    if webhook.get("url") == ours and missing:
        text = f"Telegram does not send {', '.join(missing)}. Restart the bridge: it asks for them."
        findings.append(Finding("telegram updates", "warning", text))
    return findings


def _check_groups(me: Mapping[str, Any], wants_all: bool) -> Finding:
    if wants_all and not me.get("can_read_all_group_messages"):
        text = (
            "TELEGRAM_GROUPS=always, but Telegram shows it only what is meant for it (privacy mode): /setprivacy in "
            "@BotFather, Disable; then remove it from each group and add it again."
        )
        return Finding("telegram groups", "warning", text)
    if me.get("can_join_groups") is False:
        text = "It can't be added to groups. To change that: /setjoingroups in @BotFather."
    elif me.get("can_read_all_group_messages"):
        text = "It sees every message; it answers those that address it. To change that: /setprivacy in @BotFather."
    else:
        text = (
            "It sees only what Telegram takes as meant for it, such as commands and replies to it (privacy mode). To "
            "let it see all: /setprivacy in @BotFather, then remove it from each group and add it again."
        )
    return Finding("telegram groups", "ok", text)


def _check_clock(ahead: float | None) -> Sequence[Finding]:
    if ahead is None:
        return ()
    if abs(ahead) <= CLOCK_SECONDS:
        return (Finding("telegram clock", "ok", "It agrees with Telegram's."),)
    behind = "behind" if ahead > 0 else "ahead of"
    text = f"It is {abs(round(ahead))} s {behind} Telegram's. Switch on time synchronisation (NTP) on this machine."
    return (Finding("telegram clock", "warning", text),)


def _ago(seconds: float) -> str:
    return f"{round(seconds / 60)} minutes ago" if seconds >= 90 else "A moment ago"
