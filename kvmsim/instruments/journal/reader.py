"""Journals of several processes as one sequence, in the order of their times.

A file holds the runs of one or more processes: it was appended to, or put together with cat. Each run begins with its
opening and is in the order of its times; the runs of all files are merged.
"""

import contextlib
import heapq
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple, cast

import msgspec

from memfsd.common.journal import FORMAT_VERSION, End, Entry, Opening, decode_entry
from memfsd.common.quote import quoted
from memfsd.uapi.errors import one_line
from memfsd.uapi.limits import MAX_JOURNAL_BYTES, MAX_RECORD_BYTES

_SIDES = ("memfsd", "kvmsim")
_CHUNK_BYTES = 1 << 20
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class NotAJournal(Exception):
    """A file, or a line of one, that cannot be read as a journal."""


class Process(NamedTuple):
    """One run of one process. number distinguishes runs."""

    number: int
    side: str
    pid: int


class Record(NamedTuple):
    """where: FILE:LINE. An Opening is the first record of its process."""

    t: int
    where: str
    process: Process
    entry: Entry


class _Run(NamedTuple):
    """Lines of a file from an opening, with its number and offset, to the next one, or to the end of the file."""

    path: str
    file: BinaryIO
    opening: Opening
    number: int
    offset: int
    end: int
    is_last: bool

    @property
    def where(self) -> str:
        return f"{self.path}:{self.number}"


@dataclass
class Journals:
    """incomplete: where a crash cut a line off, a journal ended at its limit, or a process did without its last record:
    what follows is not known.
    """

    paths: list[str]
    incomplete: list[str] = field(default_factory=list)

    def records(self) -> Iterator[Record]:
        """NotAJournal at the first line that is none, and when a file cannot be read."""
        try:
            with contextlib.ExitStack() as files:
                runs = [run for path in self.paths for run in _runs(path, files.enter_context(_opened(path)))]
                runs.sort(key=lambda run: run.opening.t)
                _refuse_twins(runs)
                yield from heapq.merge(*map(self._read, runs, itertools.count(1)), key=lambda record: record.t)
        except OSError as error:
            raise NotAJournal(
                f"{', '.join(map(quoted, [error.filename] if error.filename else self.paths))}: {error.strerror}"
            ) from None

    def _read(self, run: _Run, process_number: int) -> Iterator[Record]:
        """A line that is no record is a torn one if the file ends within it, or another process began to append."""
        process = Process(process_number, run.opening.side, run.opening.pid)
        where, t, torn, is_ended = "", run.opening.t, "", False
        for where, line in _lines(run):
            if torn:
                raise NotAJournal(torn)
            try:
                entry = decode_entry(line)
            except _UNDECODABLE as error:
                torn = _no_record(where, error)
                if run.is_last and line.endswith(b"\n"):
                    raise NotAJournal(torn) from None
                continue
            if entry.t < t:
                raise NotAJournal(f"{where}: its time is before that of the record above it, of the same process")
            t = entry.t
            if isinstance(entry, End):
                is_ended = True
                if entry.why != "closed":
                    self.incomplete.append(f"{where}: {one_line(entry.why)}")
            yield Record(t, where, process, entry)
        if torn:
            self.incomplete.append(torn)
        elif not is_ended:
            self.incomplete.append(f"{where}: no record 'end' follows: the process was killed, or runs on")


def _open(path: str) -> BinaryIO:
    """- is standard input."""
    if path != "-":
        return open(path, "rb")
    if sys.stdin is None:
        raise NotAJournal("standard input is closed: name a file, or open it")
    return cast(BinaryIO, sys.stdin.buffer)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """For reading at any place: what comes from a pipe is copied."""
    file = _open(path)
    try:
        if not file.seekable():
            file = _copied(path, file)
        file.seek(0)
        yield file
    finally:
        if file.fileno() > 2:
            file.close()


_copies: dict[tuple[int, int], int] = {}
"""fds of what came from pipes, by device and inode: it comes once, and a diagram reads it twice."""


def _copied(path: str, pipe: BinaryIO) -> BinaryIO:
    status = os.fstat(pipe.fileno())
    key = status.st_dev, status.st_ino
    if key not in _copies:
        with tempfile.TemporaryFile() as copy:
            for chunk in iter(lambda: pipe.read(_CHUNK_BYTES), b""):
                copy.write(chunk)
                if copy.tell() > MAX_JOURNAL_BYTES:
                    raise NotAJournal(
                        f"{quoted(path)}: more than {MAX_JOURNAL_BYTES} bytes come from this pipe: give a file"
                    )
            copy.flush()
            _copies[key] = os.dup(copy.fileno())
    if pipe.fileno() > 2:
        pipe.close()
    return os.fdopen(os.dup(_copies[key]), "rb")


def follow(path: str, wait: Callable[[], None]) -> Iterator[Record]:
    """The records of one journal, and those that are appended to it: `wait` is called when there is none yet. A pipe
    ends, a file does not. NotAJournal as `Journals`."""
    try:
        with _open(path) as file:
            numbers, line = itertools.count(1), b""
            number = 0
            process: Process | None = None
            while True:
                more = file.readline(MAX_RECORD_BYTES)
                line += more
                if not line.endswith(b"\n"):
                    if not more and not file.seekable():
                        return
                    if len(line) >= MAX_RECORD_BYTES:
                        raise NotAJournal(f"{path}:{number + 1}: no record of a journal: the line does not end")
                    wait()
                    continue
                number += 1
                where = f"{path}:{number}"
                opening = _opening(where, line, is_first=process is None)
                if opening is not None:
                    process = Process(next(numbers), opening.side, opening.pid)
                assert process is not None, "the first line is an opening, or no journal"
                try:
                    entry = opening or decode_entry(line)
                except _UNDECODABLE as error:
                    raise NotAJournal(_no_record(where, error)) from None
                yield Record(entry.t, where, process, entry)
                line = b""
    except OSError as error:
        raise NotAJournal(f"{quoted(error.filename or path)}: {error.strerror}") from None


def _runs(path: str, file: BinaryIO) -> list[_Run]:
    starts: list[tuple[Opening, int, int]] = []
    end = 0
    for number in itertools.count(1):
        line = file.readline(MAX_RECORD_BYTES)
        if not line:
            break
        # Every line is decoded later; here only what may be an opening.
        if b'"journal"' in line or (not starts and line != b"\n"):
            opening = _opening(f"{path}:{number}", line, is_first=not starts)
            if opening is not None:
                starts.append((opening, number, end))
        end += len(line)
    if not starts:
        raise NotAJournal(f"{quoted(path)}: no record: this is no journal")
    ends = [offset for _, _, offset in starts[1:]] + [end]
    return [
        _Run(path, file, opening, number, offset, stop, stop == end)
        for (opening, number, offset), stop in zip(starts, ends, strict=True)
    ]


def _opening(where: str, line: bytes, *, is_first: bool) -> Opening | None:
    """What a line opens, if it does; the first one of a file must."""
    try:
        entry = decode_entry(line)
    except _UNDECODABLE as error:
        if is_first:
            raise NotAJournal(_no_record(where, error)) from None
        return None
    if not isinstance(entry, Opening):
        if is_first:
            raise NotAJournal(f"{where}: a journal begins with a record of type 'journal'")
        return None
    if entry.version != FORMAT_VERSION:
        raise NotAJournal(f"{where}: format {entry.version}, and {FORMAT_VERSION} is known here")
    if entry.side not in _SIDES:
        raise NotAJournal(f"{where}: side '{one_line(entry.side)}' is neither memfsd nor kvmsim")
    return entry


def _refuse_twins(runs: list[_Run]) -> None:
    """What is recorded once must not count twice: no process begins two journals in one nanosecond."""
    seen: dict[tuple[int, str, int], _Run] = {}
    for run in runs:
        key = run.opening.t, run.opening.side, run.opening.pid
        if key in seen:
            raise NotAJournal(f"{seen[key].where} and {run.where} are the same run: give each journal once")
        seen[key] = run


def _lines(run: _Run) -> Iterator[tuple[str, bytes]]:
    """With their places; empty ones are left out. Runs of one file share its file object."""
    offset = run.offset
    for number in itertools.count(run.number):
        if offset >= run.end:
            return
        if run.file.tell() != offset:
            run.file.seek(offset)
        line = run.file.readline(min(MAX_RECORD_BYTES, run.end - offset))
        if not line:
            return
        offset += len(line)
        if line != b"\n":
            yield f"{run.path}:{number}", line


def _no_record(where: str, error: Exception) -> str:
    return f"{where}: no record of a journal: {one_line(str(error))}"
