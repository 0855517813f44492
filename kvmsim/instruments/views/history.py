"""What journals say of a run, put together: slots, page states, invalidations with their parts, exits, memory.

Times are seconds since the first record.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kvmsim.instruments.journal.reader import Journals, Process, Record
from memfsd.common.journal import Message, Note
from memfsd.common.quote import quoted
from memfsd.uapi.messages import Reason
from memfsd.uapi.units import PAGE_SIZE

_MOST_ROWS = 200
"""Of each table."""
_REASONS: dict[object, str] = {int(reason): reason.name.lower() for reason in Reason}


@dataclass(slots=True)
class Band:
    """GPAs [low, high) that a slot showed from start to end."""

    vm: str
    slot: int
    private: bool
    low: int
    high: int
    start: float
    end: float = -1.0


@dataclass(slots=True)
class Invalidation:
    """Of file pages; the parts are in microseconds, None where no journal has them, and where nothing is flushed."""

    at: float
    vm: str
    ino: int
    start: int
    pages: int
    reason: str
    zap_us: float | None = None
    flush_us: float | None = None
    kick_us: float | None = None
    ack_us: float | None = None
    free_us: float | None = None
    marks: dict[str, int] = field(default_factory=dict)
    """Times in ns; "flushing" is how long all flushes took."""


@dataclass(slots=True)
class History:
    """curves: by name, (seconds, bytes) or (seconds, pages)."""

    paths: list[str]
    processes: list[Process] = field(default_factory=list)
    seconds: float = 0.0
    record_count: int = 0
    bands: list[Band] = field(default_factory=list)
    invalidations: list[Invalidation] = field(default_factory=list)
    exits: dict[str, Counter[str]] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    destroyed: list[tuple[float, int]] = field(default_factory=list)
    converted: Counter[str] = field(default_factory=Counter)
    errors: list[tuple[float, str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def begin(self) -> float:
        """When the first slot came: what was before is nothing to look at."""
        return min((band.start for band in self.bands), default=0.0)

    @property
    def destroyed_bytes(self) -> int:
        return sum(pages for _, pages in self.destroyed) * PAGE_SIZE


def history(paths: list[str]) -> History:
    """NotAJournal, as Journals. What a crash tore is a warning."""
    journals = Journals(paths)
    teller = _Teller(History(paths))
    for record in journals.records():
        teller.feed(record)
    found = teller.finish()
    found.warnings = [*journals.incomplete, *found.warnings]
    return found


class _Teller:
    def __init__(self, found: History) -> None:
        self._found = found
        self._begin = -1
        self._processes: set[Process] = set()
        self._open: dict[tuple[str, int], Invalidation] = {}
        """By VM and inode: at most one bracket is open."""
        self._bands: dict[tuple[str, bool, int], list[Band]] = {}
        self._states: Counter[str] = Counter()

    def feed(self, record: Record) -> None:
        if self._begin < 0:
            self._begin = record.t
        found, entry = self._found, record.entry
        found.record_count += 1
        found.seconds = max(found.seconds, self._at(record.t))
        self._processes.add(record.process)
        if isinstance(entry, Message):
            self._message(record.process.side, entry)
        elif isinstance(entry, Note):
            handle = getattr(self, f"_{entry.what}", None)
            if handle is not None:
                handle(entry)

    def finish(self) -> History:
        found = self._found
        found.processes = sorted(self._processes)
        for bands in self._bands.values():
            self._close(bands, found.seconds)
        for open_ in self._open.values():
            where = f"inode {open_.ino} at {open_.at:.6f} s"
            found.warnings.append(f"an invalidation was never ended: {where}, {open_.reason} of {open_.pages} pages")
        doubled = max((value for _, value in found.curves.get("held twice", [])), default=0)
        if doubled:
            found.warnings.append(f"{int(doubled)} bytes were held twice, private and shared, at the worst")
        return found

    def _at(self, t: int) -> float:
        return (t - self._begin) / 1e9

    # -- messages

    def _message(self, side: str, message: Message) -> None:
        body = message.body or {}
        if message.kind == "GET_PFN" and message.reply and not message.errno and side == "kvmsim":
            self._count(message.t, "granted", body.get("page_count", 0))
        if message.kind not in ("INVALIDATE_BEGIN", "INVALIDATE_END"):
            return
        begins, name = message.kind == "INVALIDATE_BEGIN", "reply" if message.reply else "call"
        key = message.vm, message.ino
        if begins and not message.reply and key not in self._open:
            start, end = int(body.get("start", 0)), int(body.get("end", 0))
            reason = _REASONS.get(body.get("reason", -1), "?")
            bracket = Invalidation(self._at(message.t), message.vm, message.ino, start, end - start, reason)
            self._open[key] = bracket
            self._found.invalidations.append(bracket)
        found = self._open.get(key)
        if found is None:
            return
        found.marks.setdefault(f"{side} {'begin' if begins else 'end'} {name}", message.t)
        if not begins and (message.reply or (side == "kvmsim" and name == "call")):
            _measure(self._open.pop(key))

    # -- notes, by what they are of

    def _zapped(self, note: Note) -> None:
        kept = sum(high - low for low, high in note.data.get("kept", []))
        self._count(note.t, "mapped", kept - (note.data["end"] - note.data["start"]))
        for (vm, _), found in self._open.items():
            if vm == note.vm and "out" not in found.marks:
                found.marks["zapped"] = note.t
                if "flush" in note.data:
                    found.marks["flushing"] = found.marks.get("flushing", 0) + note.t - int(note.data["flush"])

    def _out(self, note: Note) -> None:
        for (vm, _), found in self._open.items():
            if vm == note.vm:
                found.marks.setdefault("out", note.t)

    def _freed(self, note: Note) -> None:
        self._count(note.t, "freed", sum(run[1] for run in note.data["runs"]))
        for (_, ino), found in self._open.items():
            if ino == note.ino:
                found.marks["freed"] = note.t

    def _installed(self, note: Note) -> None:
        self._count(note.t, "mapped", note.data["pages"])

    def _slot(self, note: Note) -> None:
        key = note.vm, bool(note.data["private"]), int(note.data["slot"])
        self._close(self._bands.pop(key, []), self._at(note.t))
        self._bands[key] = [
            Band(note.vm, key[2], key[1], low * PAGE_SIZE, high * PAGE_SIZE, self._at(note.t))
            for low, high in note.data["segments"]
        ]

    def _close(self, bands: list[Band], at: float) -> None:
        for band in bands:
            band.end = at
        self._found.bands += bands

    def _exit(self, note: Note) -> None:
        self._found.exits.setdefault(note.vm, Counter())[str(note.data["reason"])] += 1

    def _memory_error(self, note: Note) -> None:
        data = note.data
        what = f"{'private' if data.get('private') else 'shared'} at {int(data.get('gpa', 0)):#x}"
        if len(self._found.errors) < _MOST_ROWS:
            self._found.errors.append((self._at(note.t), note.vm, f"{what}: {data.get('why') or 'nobody repairs it'}"))

    def _destroyed(self, note: Note) -> None:
        self._found.destroyed.append((self._at(note.t), int(note.data["pages"])))

    def _converted(self, note: Note) -> None:
        self._found.converted["to private" if note.data["private"] else "to shared"] += (
            note.data["end"] - note.data["start"]
        )
        for name, curve in (("shared", "shared"), ("doubled", "held twice")):
            if name in note.data:
                point = self._at(note.t), float(note.data[name] * PAGE_SIZE)
                self._found.curves.setdefault(curve, []).append(point)

    def _cut(self, note: Note) -> None:
        self._found.warnings.append(f"VM {quoted(note.vm)} was cut off from inode {note.ino}: {note.data.get('why')}")

    def _gone(self, note: Note) -> None:
        if not note.data.get("said_bye"):
            self._found.warnings.append(f"VM {quoted(note.vm)} ended without a word, with inode {note.ino}")

    def _unsent(self, note: Note) -> None:
        self._found.warnings.append(f"a message to the other side could not be sent: {note.data.get('why')}")

    def _count(self, t: int, name: str, pages: int) -> None:
        self._states[name] = max(self._states[name] + pages, 0)
        self._found.curves.setdefault(name, []).append((self._at(t), float(self._states[name] * PAGE_SIZE)))


def _measure(found: Invalidation) -> None:
    """By the journal of the VM, of the store, or both, whose clock is the same."""
    marks = found.marks
    begin = marks.get("kvmsim begin call", marks.get("memfsd begin call"))
    acknowledged = marks.get("kvmsim begin reply", marks.get("memfsd begin reply"))
    flushing = marks.get("flushing")
    found.flush_us = None if flushing is None else flushing / 1000
    unmapped = _between(begin, marks.get("zapped"))
    found.zap_us = unmapped if unmapped is None or found.flush_us is None else unmapped - found.flush_us
    found.kick_us = _between(marks.get("zapped"), marks.get("out"))
    found.ack_us = _between(marks.get("out", begin), marks.get("memfsd begin reply", acknowledged))
    found.free_us = _between(marks.get("memfsd begin reply"), marks.get("memfsd end call"))


def _between(start: int | None, end: int | None) -> float | None:
    return None if start is None or end is None or end < start else (end - start) / 1000


def rows(found: History) -> Iterator[dict[str, Any]]:
    """Invalidations for a table, the longest first where there are too many."""
    parts = ("zap_us", "flush_us", "kick_us", "ack_us", "free_us")
    chosen = found.invalidations
    if len(chosen) > _MOST_ROWS:
        chosen = sorted(chosen, key=lambda one: -sum(getattr(one, part) or 0 for part in parts))[:_MOST_ROWS]
    for one in chosen:
        yield {
            "at": f"{one.at:.6f}",
            "vm": quoted(one.vm) if one.vm else "-",
            "ino": one.ino,
            "range": f"{one.start:#x} +{one.pages}",
            "reason": one.reason,
            **{part: getattr(one, part) for part in parts},
        }
