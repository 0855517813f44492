"""Journals of several processes as one sequence, in the order of their times."""

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import msgspec

from memfsd.uapi.journal import FORMAT_VERSION, End, Entry, Message, Note, Opening, decode_entry
from memfsd.uapi.limits import MAX_RECORD_BYTES


class NotAJournal(Exception):
    """A file, or a line of one, that can not be read as a journal."""


class Process(NamedTuple):
    """One run of one process: a journal that was appended to holds several. number tells them apart."""

    number: int
    side: str
    pid: int


class Record(NamedTuple):
    """where: FILE:LINE."""

    t: int
    where: str
    process: Process
    entry: Message | Note | End


@dataclass
class Journals:
    """torn: where a crash cut a line off, or a journal ended at its limit: what follows is not known."""

    paths: list[str]
    torn: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def records(self) -> Iterator[Record]:
        """NotAJournal at the first line that is none; OSError when a file can not be read."""
        return heapq.merge(*map(self._read, self.paths), key=lambda record: record.t)

    def _read(self, path: str) -> Iterator[Record]:
        with open(path, "rb") as file:
            process: Process | None = None
            for number, entry in self._entries(path, file):
                where = f"{path}:{number}"
                if isinstance(entry, Opening):
                    if entry.version != FORMAT_VERSION:
                        raise NotAJournal(f"{where}: format {entry.version}, and {FORMAT_VERSION} is known here")
                    process = Process(next(self._numbers), entry.side, entry.pid)
                elif process is None:
                    raise NotAJournal(f"{where}: a journal begins with a record of type 'journal'")
                else:
                    if isinstance(entry, End) and entry.why != "closed":
                        self.torn.append(f"{where}: {entry.why}")
                    yield Record(entry.t, where, process, entry)
            if process is None:
                raise NotAJournal(f"{path}: no record: this is no journal")

    def _entries(self, path: str, file: BinaryIO) -> Iterator[tuple[int, Entry]]:
        """A line that is no record is a torn one if the file ends there, or another process began to append."""
        torn = ""
        for number in itertools.count(1):
            line = file.readline(MAX_RECORD_BYTES)
            if not line:
                break
            if line == b"\n":
                continue
            try:
                entry = decode_entry(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                if torn or number == 1:
                    raise NotAJournal(torn or f"{path}:{number}: no record of a journal: {error}") from None
                torn = f"{path}:{number}: no record of a journal: {error}"
                continue
            if torn:
                if not isinstance(entry, Opening):
                    raise NotAJournal(torn)
                self.torn.append(torn)
                torn = ""
            yield number, entry
        if torn:
            self.torn.append(torn)
