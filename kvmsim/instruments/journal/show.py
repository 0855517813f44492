"""The exchange as a diagram: a lifeline for each process, an arrow for each message, a star for each note."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Any, NamedTuple

from memfsd.common.journal import End, Message, Note
from memfsd.common.quote import quoted
from memfsd.uapi.errors import errno_name, one_line
from memfsd.uapi.messages import Kind, Reason, Role

from .reader import Journals, Process, Record

_COLUMN = 30
_MARGIN = 13
_MAX_LIFELINES = 12
_MAX_UNDERWAY = 4096
"""Messages that were sent and whose receipt may come yet; it comes soon, or its receiver kept no journal."""
_NAMED: dict[str, type[IntEnum]] = {"role": Role, "reason": Reason, "operations": Kind}
_PAGES = frozenset(("gfn", "pfn", "pgoff", "start", "end", "cursor", "next_cursor", "next_pgoff"))


class Lifeline(NamedTuple):
    """A process; a kvmsim has one for each VM."""

    side: str
    pid: int
    vm: str

    def __str__(self) -> str:
        if self == OTHERS:
            return self.vm
        return (
            f"memfsd {self.pid}"
            if self.side == "memfsd"
            else f"{quoted(self.vm[:300]) if self.vm else 'kvmsim'} {self.pid}"
        )


OTHERS = Lifeline("kvmsim", 0, "others")
"""One lifeline for all that ask and are gone again (memfs check, memfs map), and for VMs beyond the last column."""


class Wanted(NamedTuple):
    """What is to be shown: empty, or -1, is all."""

    vm: str = ""
    ino: int = -1
    kinds: frozenset[str] = frozenset()
    """Of messages or notes, in upper case."""

    def __call__(self, event: "Event") -> bool:
        entry = event.record.entry
        if isinstance(entry, End):
            return self == _ALL
        assert isinstance(entry, Message | Note)
        kind = entry.kind if isinstance(entry, Message) else entry.what
        return (
            self.vm in ("", entry.vm) and self.ino in (-1, entry.ino) and (not self.kinds or kind.upper() in self.kinds)
        )


class Event(NamedTuple):
    """A message from one lifeline to another, or (target None) a note."""

    record: Record
    source: Lifeline
    target: Lifeline | None
    label: str
    detail: str


_ALL = Wanted()


def events(paths: list[str], wanted: Wanted = _ALL) -> Iterator[Event]:
    """Each message once, where it was sent; where its receipt was recorded if its sender kept no journal."""
    return (event for event in events_of(Journals(paths).records()) if wanted(event))


def events_of(records: Iterable[Record]) -> Iterator[Event]:
    """The same of records as they come."""
    observers: set[tuple[Process, int]] = set()
    sent: Counter[tuple[Any, ...]] = Counter()
    recent: deque[tuple[Any, ...]] = deque()
    last: dict[Process, Lifeline] = {}
    for record in records:
        entry, process = record.entry, record.process
        if isinstance(entry, Message):
            if entry.kind == Kind.HELLO.name and (entry.body or {}).get("role") == Role.OBSERVER:
                observers.add((process, entry.conn))
            here = Lifeline(process.side, process.pid, "" if process.side == "memfsd" else entry.vm)
            other_side = "kvmsim" if process.side == "memfsd" else "memfsd"
            there = Lifeline(other_side, entry.peer, "" if other_side == "memfsd" else entry.vm)
            if (process, entry.conn) in observers:
                there = OTHERS
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
            detail = _fields(entry.body or {}) or one_line(entry.raw)
            detail = f"pid={entry.peer} {detail}".rstrip() if there == OTHERS else detail
            yield Event(record, source, target, _label(entry), detail)
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


def diagram(paths: list[str], wanted: Wanted = _ALL) -> Iterator[str]:
    """Lines of text. The lifelines are found first, so the files are read twice."""
    lifelines: dict[Lifeline, int] = {}
    for event in events(paths, wanted):
        _notice(lifelines, event)
    yield _heading(_columns(lifelines))
    yield from _drawn(events(paths, wanted), lifelines)


def growing_diagram(events: Iterable[Event]) -> Iterator[str]:
    """The same as the events come: a heading again with each new lifeline."""
    return _drawn(events, {})


def _drawn(events: Iterable[Event], lifelines: dict[Lifeline, int]) -> Iterator[str]:
    columns = _columns(lifelines)
    start = None
    for event in events:
        if _notice(lifelines, event):
            columns = _columns(lifelines)
            yield _heading(columns)
        start = event.record.t if start is None else start
        row = [" "] * _width(columns)
        for at in columns.values():
            row[at] = "|"
        _draw(row, columns, event)
        _write(row, 0, f"{(event.record.t - start) / 1e6:10.3f}")
        yield f"{''.join(row)}  {event.detail}".rstrip()


def _notice(lifelines: dict[Lifeline, int], event: Event) -> bool:
    """Is there a lifeline that was not?"""
    before = len(lifelines)
    for line in (event.source, event.target):
        if line is not None and line not in lifelines:
            lifelines.setdefault(line if len(lifelines) < _MAX_LIFELINES else OTHERS, len(lifelines))
    return len(lifelines) > before


def _columns(lifelines: dict[Lifeline, int]) -> dict[Lifeline, int]:
    """Where each is drawn: stores first, the others last."""
    lines = sorted(lifelines, key=lambda line: (line.side != "memfsd", line == OTHERS, lifelines[line]))
    return {line: _MARGIN + _COLUMN * index + 8 for index, line in enumerate(lines)}


def _width(columns: dict[Lifeline, int]) -> int:
    return _MARGIN + _COLUMN * max(len(columns) - 1, 0) + 17


def _heading(columns: dict[Lifeline, int]) -> str:
    heads = [" "] * (_width(columns) + _COLUMN)
    for line, at in columns.items():
        _write(heads, at - len(str(line)) // 2, str(line))
    return f"{'ms':>10}   {''.join(heads)[_MARGIN:]}".rstrip()


def _draw(row: list[str], columns: dict[Lifeline, int], event: Event) -> None:
    others = columns.get(OTHERS)
    source = columns.get(event.source, others)
    target = columns.get(event.target, others) if event.target is not None else None
    if source is None or source == target or (event.target is not None and target is None):
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


def _name(numbers: type[IntEnum], value: Any) -> Any:
    """Of a number, or of each in a list; the number itself where it has none."""
    if isinstance(value, list):
        return ",".join(str(_name(numbers, one)) for one in value) or "none"
    return numbers(value).name if isinstance(value, int) and value in set(numbers) else value


def _value(name: str, value: Any) -> str:
    if name in ("token", "nonce", "proof", "secret"):
        return "..."
    if name in _PAGES and isinstance(value, int) and value >= 0:
        return hex(value)
    if name in _NAMED:
        value = _name(_NAMED[name], value)
    text = quoted(value[:300]) if name == "vm" and isinstance(value, str) else one_line(str(value))
    return text if len(text) <= 60 else text[:57] + "..."
