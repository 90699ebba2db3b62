"""How far a long command is: a bar on a terminal, now and then a line in a log."""

import time
from typing import TextIO

_CELLS = 30
_TERMINAL_SECONDS, _LOG_SECONDS = 0.2, 10.0


class Progress:
    """Shows what it is told, but not more often than somebody can read it."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._terminal = out.isatty()
        self._what = ""
        self._began = self._shown = 0.0

    def tell(self, what: str, done: int, total: int) -> None:
        """So many of so many."""
        now = time.monotonic()
        if what != self._what:
            self.end()
            self._what, self._began, self._shown = what, now, 0.0
        pause = _TERMINAL_SECONDS if self._terminal else _LOG_SECONDS
        if done < total and now - self._shown < pause:
            return
        self._shown = now
        share = min(1.0, done / total) if total else 1.0
        speed = done / max(now - self._began, 0.001)
        left = (total - done) / speed if speed else 0
        text = f"{what} {share:4.0%}  {done:,} of {total:,}  {speed:,.0f}/s  {_clock(left)} left"
        if self._terminal:
            bar = "#" * round(share * _CELLS)
            self._out.write(f"\r[{bar:.<{_CELLS}}] {text}\x1b[K")
        else:
            self._out.write(f"{text}\n")
        self._out.flush()

    def count(self, places: int, messages: int, noun: str = "session") -> None:
        """So many of nobody knows how many."""
        now = time.monotonic()
        if now - self._shown < (_TERMINAL_SECONDS if self._terminal else _LOG_SECONDS):
            return
        self._what, self._shown = "count", now
        end = "\x1b[K" if self._terminal else "\n"
        start = "\r" if self._terminal else ""
        self._out.write(f"{start}{counted(messages, 'message')} of {counted(places, noun)}{end}")
        self._out.flush()

    def end(self) -> None:
        """Leave the line."""
        if self._terminal and self._what:
            self._out.write("\n")


def counted(number: int, noun: str) -> str:
    """So many of a thing, in English."""
    return f"{number:,} {noun if number == 1 else f'{noun}s'}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
