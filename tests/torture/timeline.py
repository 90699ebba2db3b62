"""A picture of one conversation of a run, as SVG: faults, messages in, turns, replies out."""

from collections import Counter
from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape

from tests.torture.record import Fault, Record, Turn

WIDTH, LEFT, RIGHT = 1200, 120, 40
ROW = 16  # the height of one row of a lane
GAP = 26  # between lanes
LETTER = 6.6  # about the width of a letter
COLOURS = {"done": "#0d9488", "failed": "#dc2626", "superseded": "#d97706", "cancelled": "#64748b", "fault": "#7c3aed"}
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#475569}.lane{font-weight:600;font-size:12px}"
    ".title{font-size:14px;font-weight:600}.tick{stroke:#94a3b8;stroke-opacity:.35}.in{fill:#2563eb}.out{fill:#0d9488}"
    ".again{fill:none;stroke:#d97706;stroke-width:1.5}@media(prefers-color-scheme:dark){text{fill:#cbd5e1}}"
)

Mark = tuple[float, float, str, str]
"""From, until, label, and the SVG of its shape with {x}, {y} and {width} in it."""


def most_tormented(record: Record) -> str:
    """The conversation whose turns were taken from their workers most often."""
    taken = Counter(turn.conversation for turn in record.turns if turn.status == "superseded")
    talked = Counter(event.conversation for event in record.events)
    return max(sorted(talked), key=lambda conversation: (taken[conversation], talked[conversation]))


def draw(record: Record, conversation: str) -> str:
    """The picture."""
    turns = [turn for turn in record.turns if turn.conversation == conversation]
    lanes = {
        "faults": _faults(record.faults),
        "messages in": _messages(record, conversation),
        "turns": [_turn(turn, record.owners) for turn in turns],
        "replies out": _replies(record, conversation),
    }
    marks = [mark for lane in lanes.values() for mark in lane]
    begin, end = min(mark[0] for mark in marks), max(mark[1] for mark in marks)
    scale = (WIDTH - LEFT - RIGHT) / max(end - begin, 1.0)
    body: list[str] = []
    top = 70.0
    for name, lane in lanes.items():
        rows, shapes = _placed(lane, begin, scale, top)
        body.append(f'<text class="lane" x="12" y="{top + 12:g}">{name}</text>')
        body += shapes
        top += rows * ROW + GAP
    ticks = list(_ticks(end - begin, scale, top))
    title = f"Conversation {conversation}: {len(record.faults)} faults, {len(turns)} turns, {_story(turns)}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 16:g}" role="img" '
            f'aria-label="{escape(title)}">',
            f"<style>{STYLE}</style>",
            f'<text class="title" x="12" y="24">{escape(title)}</text>',
            *_legend(),
            *ticks,
            *body,
            "</svg>\n",
        ]
    )


def _faults(faults: Iterable[Fault]) -> list[Mark]:
    return [(fault.at, fault.until, _fault_label(fault), _bar("fault")) for fault in faults]


def _fault_label(fault: Fault) -> str:
    replica = fault.target.removeprefix("replica ")
    return f"{fault.kind} {replica}" if replica != fault.target else fault.kind.replace("PostgreSQL stopped", "PG stop")


def _messages(record: Record, conversation: str) -> list[Mark]:
    events = [event for event in record.events if event.conversation == conversation]
    shape = '<circle class="in" cx="{x}" cy="{middle}" r="4"/>'
    return [(event.first_sent, event.first_sent, event.text.partition("#")[2], shape) for event in events]


def _turn(turn: Turn, owners: dict[str, str]) -> Mark:
    owner = owners.get(turn.owner, "?").removeprefix("replica ")
    return (turn.started, turn.finished or turn.started, f"r{owner}", _bar(turn.status))


def _replies(record: Record, conversation: str) -> list[Mark]:
    marks: list[Mark] = []
    seen: set[str] = set()
    for taken in (taken for taken in record.taken if taken.conversation == conversation):
        again = taken.key in seen
        shape = '<circle class="{name}" cx="{x}" cy="{middle}" r="4"/>'.replace("{name}", "again" if again else "out")
        numbers = [word.partition("#")[2] for word in taken.text.split() if "#" in word]
        shown = "+".join(numbers) or "sorry"
        marks.append((taken.at, taken.at, f"{shown} again" if again else shown, shape))
        seen.add(taken.key)
    return marks


def _bar(colour: str) -> str:
    colour = COLOURS.get(colour, COLOURS["cancelled"])
    return f'<rect x="{{x}}" y="{{y}}" width="{{width}}" height="11" rx="2" fill="{colour}"/>'


def _placed(lane: Sequence[Mark], begin: float, scale: float, top: float) -> tuple[int, list[str]]:
    """The marks in as few rows as their labels need."""
    ends: list[float] = []
    shapes: list[str] = []
    for start, until, label, shape in sorted(lane):
        x, width = LEFT + (start - begin) * scale, max((until - start) * scale, 2.0)
        row = next((row for row, end in enumerate(ends) if end < x), len(ends))
        after = x + width + 6
        ends[row : row + 1] = [after + len(label) * LETTER + 6]
        y = top + row * ROW
        shapes.append(shape.format(x=f"{x:.1f}", y=f"{y:.1f}", middle=f"{y + 6:.1f}", width=f"{width:.1f}"))
        shapes.append(f'<text x="{after:.1f}" y="{y + 10:.1f}">{escape(label)}</text>')
    return max(len(ends), 1), shapes


def _ticks(seconds: float, scale: float, bottom: float) -> Iterable[str]:
    step = next(step for step in (1, 2, 5, 10, 20, 60, 600) if seconds / step <= 20 or step == 600)
    for second in range(0, int(seconds) + 1, step):
        x = LEFT + second * scale
        yield f'<path class="tick" d="M{x:.1f} 56V{bottom - 8:g}"/>'
        yield f'<text x="{x + 3:.1f}" y="60">{second} s</text>'


def _legend() -> Iterable[str]:
    names = {"done": "turn answered", "superseded": "taken from its worker", "failed": "turn failed", "fault": "fault"}
    x = 12.0
    for name, meaning in names.items():
        yield f'<rect x="{x:g}" y="34" width="11" height="11" rx="2" fill="{COLOURS[name]}"/>'
        yield f'<text x="{x + 16:g}" y="44">{meaning}</text>'
        x += 30 + len(meaning) * LETTER


def _story(turns: Sequence[Turn]) -> str:
    taken = sum(turn.status == "superseded" for turn in turns)
    return f"{taken} of them taken from their worker"
