"""What can be made to go wrong. A fault is for a method (or `file`), maybe for one chat, for its next `times` calls.

before doing: `too_many_requests` (retry_after), `server_error`, `hang`, `reset`, `html`, `forbidden`, `bad_request`
    (description), `migrate` (to), `entities`, `slow` (seconds; then as usual)
after doing: `lost_answer` (500), `hang_after`, `reset_after`, `html_after`, `truncated`
of a file: `larger` and `shorter` (other bytes than said), `redirect` (to), `wrong_type` (content_type), `expired`,
    `stall` (hangs in the middle), `slow` (seconds; before its second half), and `hang`, `reset`, `html`,
    `too_many_requests`, `server_error`, `truncated`
of a webhook's request: `wrong_secret`, `no_secret`
of updates: `duplicate`, `twice_at_once`, `swap`
"""

from dataclasses import asdict, dataclass, field
from typing import Any

BEFORE = {
    *("too_many_requests", "server_error", "hang", "reset", "html"),
    *("forbidden", "bad_request", "migrate", "entities", "slow"),
}
AFTER = {"lost_answer", "hang_after", "reset_after", "html_after", "truncated"}
OF_FILES = {
    *("larger", "shorter", "redirect", "wrong_type", "expired", "stall", "slow"),
    *("hang", "reset", "html", "too_many_requests", "server_error", "truncated"),
}
OF_WEBHOOKS = {"wrong_secret", "no_secret"}
OF_UPDATES = {"duplicate", "twice_at_once", "swap"}


@dataclass
class Fault:
    """One fault, for calls of `method` (`*` for all)."""

    method: str
    kind: str
    times: int = 1
    chat: int | None = None
    more: dict[str, Any] = field(default_factory=dict)


class Faults:
    """The faults that are still to come."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, method: str, kind: str, times: int = 1, chat: int | None = None, **more: Any) -> None:
        """Plan a fault. Raises ValueError for one that the method can't have."""
        known = {"file": OF_FILES, "webhook": OF_WEBHOOKS}.get(method, BEFORE | AFTER)
        if kind not in known:
            raise ValueError(f"{method} has no fault {kind!r}, only {', '.join(sorted(known))}")
        self._faults.append(Fault(method.lower(), kind, times, chat, more))

    def take(self, method: str, chat: Any = None) -> Fault | None:
        """The fault of this call, if it has one."""
        for fault in self._faults:
            if fault.method in (method.lower(), "*") and fault.chat in (None, chat):
                fault.times -= 1
                if fault.times <= 0:
                    self._faults.remove(fault)
                return fault
        return None

    def clear(self) -> None:
        """Everything works again."""
        self._faults.clear()

    def json(self) -> list[dict[str, Any]]:
        """What is still to come."""
        return [asdict(fault) for fault in self._faults]
