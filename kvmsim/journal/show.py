"""The exchange as a diagram: a lifeline for each process, an arrow for each message, a star for each note."""

from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from memfsd.uapi.errors import errno_name, one_line
from memfsd.uapi.journal import End, Message, Note

from .reader import Journals, Process, Record

_COLUMN = 30
_MARGIN = 13
_MAX_LIFELINES = 12
_MAX_UNDERWAY = 4096
"""Messages that were sent and whose receipt may come yet; it comes soon, or its receiver kept no journal."""
_PAGES = frozenset(("gfn", "pfn", "pgoff", "start", "end", "cursor", "next_cursor", "next_pgoff"))


class Lifeline(NamedTuple):
    """A process; a kvmsim has one for each VM."""

    side: str
    pid: int
    vm: str

    def __str__(self) -> str:
        return f"memfsd {self.pid}" if self.side == "memfsd" else f"{one_line(self.vm) or 'kvmsim'} {self.pid}"


class Event(NamedTuple):
    """A message from one lifeline to another, or (target None) a note."""

    record: Record
    source: Lifeline
    target: Lifeline | None
    label: str
    detail: str


def events(paths: list[str]) -> Iterator[Event]:
    """Each message once, where it was sent; where its receipt was recorded if its sender kept no journal."""
    sent: Counter[tuple[Any, ...]] = Counter()
    recent: deque[tuple[Any, ...]] = deque()
    last: dict[Process, Lifeline] = {}
    for record in Journals(paths).records():
        entry, process = record.entry, record.process
        if isinstance(entry, Message):
            here = Lifeline(process.side, process.pid, "" if process.side == "memfsd" else entry.vm)
            other_side = "kvmsim" if process.side == "memfsd" else "memfsd"
            there = Lifeline(other_side, entry.peer, "" if other_side == "memfsd" else entry.vm)
            last[process] = here
            source, target = (here, there) if entry.sent else (there, here)
            key = (source, target, entry.channel, entry.kind, entry.id, entry.reply, entry.errno, repr(entry.body))
            if entry.sent:
                sent[key] += 1
                recent.append(key)
                if len(recent) > _MAX_UNDERWAY:
                    _forget(sent, recent.popleft())
            elif _forget(sent, key):
                continue
            yield Event(record, source, target, _label(entry), _fields(entry.body or {}) or one_line(entry.raw))
        elif isinstance(entry, Note):
            here = Lifeline(process.side, process.pid, "" if process.side == "memfsd" else entry.vm)
            data = dict(entry.data)
            if entry.ino >= 0:
                data = {"ino": entry.ino, **data}
            yield Event(record, here, None, one_line(entry.what), _fields(data))
        elif isinstance(entry, End):
            here = last.get(process, Lifeline(process.side, process.pid, ""))
            yield Event(record, here, None, "journal ends", one_line(entry.why))


def _forget(sent: Counter[tuple[Any, ...]], key: tuple[Any, ...]) -> bool:
    """One of these less; False if there is none."""
    if not sent[key]:
        del sent[key]
        return False
    sent[key] -= 1
    if not sent[key]:
        del sent[key]
    return True


def diagram(paths: list[str]) -> Iterator[str]:
    """Lines of text. The lifelines are found first, so the files are read twice."""
    lifelines: dict[Lifeline, int] = {}
    for event in events(paths):
        for line in (event.source, event.target):
            if line is not None and line not in lifelines and len(lifelines) < _MAX_LIFELINES:
                lifelines[line] = len(lifelines)
    stores = sorted(lifelines, key=lambda line: (line.side != "memfsd", lifelines[line]))
    columns = {line: _MARGIN + _COLUMN * index + 8 for index, line in enumerate(stores)}
    width = _MARGIN + _COLUMN * max(len(stores) - 1, 0) + 17
    heads = [" "] * (width + _COLUMN)
    for line, at in columns.items():
        _write(heads, at - len(str(line)) // 2, str(line))
    yield f"{'ms':>10}   {''.join(heads)[_MARGIN:]}".rstrip()
    start = None
    for event in events(paths):
        start = event.record.t if start is None else start
        row = [" "] * width
        for at in columns.values():
            row[at] = "|"
        _draw(row, columns, event)
        _write(row, 0, f"{(event.record.t - start) / 1e6:10.3f}")
        yield f"{''.join(row)}  {event.detail}".rstrip()


def _draw(row: list[str], columns: dict[Lifeline, int], event: Event) -> None:
    source = columns.get(event.source)
    target = columns.get(event.target) if event.target is not None else None
    if source is None or (event.target is not None and target is None):
        return
    if target is None:
        row[source] = "*"
        _write(row, source + 2, event.label)
        return
    low, high = min(source, target) + 1, max(source, target)
    row[low:high] = "-" * (high - low)
    row[target - 1 if source < target else target + 1] = ">" if source < target else "<"
    label = f" {event.label} "
    _write(row, (low + high - len(label)) // 2, label)


def _write(row: list[str], at: int, text: str) -> None:
    for index, character in enumerate(text, max(at, 0)):
        if index < len(row):
            row[index] = character


def _label(message: Message) -> str:
    if not message.kind:
        return "(not a packet)"
    if not message.reply:
        return one_line(f"{message.kind} {message.id}")
    return one_line(f"{message.kind} {message.id} {errno_name(message.errno) if message.errno else 'ok'}")


def _fields(data: dict[str, Any]) -> str:
    return " ".join(f"{one_line(name)}={_value(name, value)}" for name, value in data.items())


def _value(name: str, value: Any) -> str:
    if name in ("token", "nonce", "proof"):
        return "..."
    if name in _PAGES and isinstance(value, int) and value >= 0:
        return hex(value)
    text = one_line(str(value))
    return text if len(text) <= 60 else text[:57] + "..."
