"""Traces and journals as one sequence of happenings.

A trace is read in the text form of the kernel's trace_pipe, whoever wrote it; an unknown event keeps its text.
"""

import contextlib
import heapq
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from kvmsim.instruments.journal.reader import Journals, NotAJournal, Record
from memfsd.common.journal import Message, Note
from memfsd.common.quote import quoted
from memfsd.common.traceevents import EVENTS
from memfsd.common.tracefile import is_trace
from memfsd.uapi.errors import one_line
from memfsd.uapi.limits import MAX_RECORD_BYTES

Value = int | str

LOST = "lost"
"""What is called so is no event: that so many were lost."""
_LINE = re.compile(r"\s*(.+)-(\d+)\s+(?:\([\s\d-]+\)\s+)?\[(\d+)\]\s+(?:\S+\s+)?(\d+)\.(\d{6}): (\w+): (.*)")
_LOST = re.compile(r"CPU:\d+ \[LOST (\d+) EVENTS\]")
_SIDE = re.compile(r"# side: (\w+) pid: (\d+)")


class Unreadable(Exception):
    """A file, or a line of one, that is neither of a trace nor of a journal."""


@dataclass(frozen=True, slots=True)
class Happening:
    """t: CLOCK_MONOTONIC ns. task: the vCPU (VM/ID), VM or process, as in a trace. values: by field of the event."""

    t: int
    side: str
    pid: int
    task: str
    name: str
    values: dict[str, Value] = field(default_factory=dict)

    @property
    def vm(self) -> str:
        return self.task.rpartition("/")[0] or self.task

    @property
    def vcpu(self) -> int:
        """-1: of none."""
        _, slash, number = self.task.rpartition("/")
        return int(number) if slash and number.isdigit() else -1


def happenings(paths: list[str]) -> Iterator[Happening]:
    """Merged by time. - is standard input, for a trace. Unreadable."""
    path = ""
    try:
        with contextlib.ExitStack() as files:
            sources, journals = [], []
            for path in paths:
                file = _open(path)
                if path != "-":
                    files.enter_context(file)
                first = file.readline(MAX_RECORD_BYTES)
                if is_trace(first) or not first.lstrip().startswith(b"{"):
                    sources.append(_of_trace(path, file, first))
                elif not file.seekable():
                    raise Unreadable(f"{quoted(path)}: a journal from a pipe: name its file")
                else:
                    journals.append(path)
            if journals:
                sources.append(_of_journal(record) for record in Journals(journals).records())
            yield from heapq.merge(*sources, key=lambda one: one.t)
    except NotAJournal as error:
        raise Unreadable(str(error)) from None
    except OSError as error:
        raise Unreadable(f"{quoted(error.filename or path)}: {error.strerror}") from None


def _open(path: str) -> BinaryIO:
    if path != "-":
        return open(path, "rb")
    if sys.stdin is None:
        raise Unreadable("standard input is closed: name a file, or open it")
    return cast(BinaryIO, sys.stdin.buffer)


def follow(path: str, wait: Callable[[], bool]) -> Iterator[Happening | None]:
    """One trace as it grows: None each time that nothing more is there and `wait` says to look again."""
    if path == "-":
        raise Unreadable("standard input is read once and to its end: --once does that")
    parser = _Parser(path)
    try:
        with open(path, "rb") as file:
            line = b""
            while True:
                line += file.readline(MAX_RECORD_BYTES)
                if line.endswith(b"\n"):
                    found = parser.feed(line)
                    line = b""
                    if found is not None:
                        yield found
                elif len(line) >= MAX_RECORD_BYTES:
                    raise Unreadable(f"{path}:{parser.number + 1}: a line that does not end")
                else:
                    yield None
                    if not wait():
                        return
    except OSError as error:
        raise Unreadable(f"{quoted(path)}: {error.strerror}") from None


def _of_trace(path: str, file: BinaryIO, line: bytes) -> Iterator[Happening]:
    """line: the first one, which was read already."""
    parser = _Parser(path)
    while line:
        found = parser.feed(line)
        if found is not None:
            yield found
        line = file.readline(MAX_RECORD_BYTES)
    if not parser.is_trace:
        raise Unreadable(f"{quoted(path)}: neither a trace nor a journal")


class _Parser:
    """A line that is none is torn if the file ends there, or another process began to append."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.number = 0
        self.is_trace = False
        self._side, self._pid = "kernel", -1
        self._torn = ""

    def feed(self, line: bytes) -> Happening | None:
        self.number += 1
        text = line.decode(errors="replace").rstrip("\n")
        if text.startswith("#") or not text.strip():
            self.is_trace = self.is_trace or is_trace(line)
            if is_trace(line):
                self._torn = ""
            if side := _SIDE.match(text):
                self._side, self._pid = side[1], int(side[2])
            return None
        if self._torn:
            raise Unreadable(self._torn)
        if lost := _LOST.match(text):
            return Happening(self._t, self._side, self._pid, self._side, LOST, {"count": int(lost[1])})
        match = _LINE.fullmatch(text)
        if match is None:
            self._torn = f"{self._path}:{self.number}: no line of a trace: {one_line(text[:60])}"
            if not self.is_trace:
                raise Unreadable(self._torn)
            return None
        self.is_trace = True
        task, tid, _, seconds, us, name, what = match.groups()
        self._t = int(seconds) * 1_000_000_000 + int(us) * 1000
        event = EVENTS.get(name)
        values = (event and event.parse(what)) or {"text": what}
        return Happening(self._t, self._side, self._pid if self._pid >= 0 else int(tid), task, name, values)

    _t = 0


_NOTES = {
    "installed": ("kvmsim_installed", ("gfn", "pgoff", "pfn", "pages")),
    "zapped": ("kvmsim_zapped", ("start", "end")),
    "out": ("kvmsim_kicked", ()),
    "freed": ("memfsd_freed", ()),
    "gone": ("memfsd_exited", ("pid",)),
    "cut": ("memfsd_disconnected", ("why",)),
}


def _of_journal(record: Record) -> Happening:
    entry, side = record.entry, record.process.side
    name, values = "", dict[str, Value]()
    vm = ""
    if isinstance(entry, Message):
        name = f"{side}_{'send' if entry.sent else 'receive'}"
        values = {
            "channel": entry.channel,
            "kind": entry.kind,
            "id": entry.id,
            "reply": int(entry.reply),
            "errno": entry.errno,
            "peer": entry.peer,
        }
        values |= {key: one for key, one in (entry.body or {}).items() if isinstance(one, int | str)}
    elif isinstance(entry, Note):
        name, kept = _NOTES.get(entry.what, (f"{side}_{entry.what}", ()))
        values = {key: entry.data[key] for key in kept if isinstance(entry.data.get(key), int | str)}
        if entry.what == "out" and isinstance(since := entry.data.get("since"), int):
            values["took_ns"] = entry.t - since
        elif entry.what == "freed" and isinstance(runs := entry.data.get("runs"), list):
            values["pages"] = sum(run[1] for run in runs)
    else:
        name = f"{side}_journal_{type(entry).__name__.lower()}"
    if isinstance(entry, Message | Note):
        vm = entry.vm
        values |= {"vm": vm or "-", "ino": entry.ino}
    return Happening(record.t, side, record.process.pid, vm if side == "kvmsim" and vm else side, name, values)
