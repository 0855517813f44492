"""Runs of both sides with a journal each, and journals as lists that a test may edit."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memfsd.common import trace
from memfsd.common.journal import Recording
from memfsd.common.journalfile import open_journal, start_journal

from .both_sides import LocalStore, LocalVm, page

Line = dict[str, Any]


def never(text: str) -> None:
    raise AssertionError(f"a warning: {text}")


@contextmanager
def recording(path: Path, side: str, warn: Callable[[str], None] = never, **limit: int) -> Iterator[Recording]:
    """What this process does on one side, memfsd or kvmsim, until the end."""
    fd = open_journal(str(path))
    journal = start_journal(fd, side, time.monotonic_ns, warn, **limit)
    try:
        with trace.observed(store=journal) if side == "memfsd" else trace.observed(vm=journal):
            yield journal
        journal.close()
    finally:
        os.close(fd)


def record_run(place: Path, run: Callable[[LocalStore, LocalVm, LocalVm], None], nodes: int = 1) -> tuple[Path, Path]:
    """A store, and one process with two VMs that have 16 pages of a file each: the journals of both."""
    store_path, vm_path = place / "store.journal", place / "vm.journal"
    with recording(store_path, "memfsd"), recording(vm_path, "kvmsim"):
        store = LocalStore(place, 64, swap_pages=32, nodes=nodes)
        try:
            vms = []
            for name in ("one", "two"):
                store.create(name, 16)
                local = store.vm(name)
                local.private_slot(0, page(16), page(16), name)
                vms.append(local)
            run(store, vms[0], vms[1])
        finally:
            store.close()
    return store_path, vm_path


def read_lines(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, lines: list[Line]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


class Journal:
    """One recorded journal, to be edited."""

    def __init__(self, path: Path) -> None:
        self.lines = read_lines(path)

    def at(self, kind: str, *, reply: bool | None = None, nth: int = 0, ino: int | None = None) -> int:
        """Index of the nth message of a kind, or of the nth note of that name."""
        found = [
            index
            for index, line in enumerate(self.lines)
            if (line.get("kind") == kind and reply in (None, line["reply"])) or line.get("what") == kind
            if ino is None or line["ino"] == ino
        ]
        return found[nth]

    def line(self, kind: str, **how: int) -> Line:
        return self.lines[self.at(kind, **how)]  # type: ignore[arg-type]

    def drop(self, *indices: int) -> None:
        for index in sorted(indices, reverse=True):
            del self.lines[index]

    def drop_all(self, *kinds: str) -> None:
        self.lines = [line for line in self.lines if line.get("kind", line.get("what")) not in kinds]

    def move(self, index: int, before: int) -> None:
        """With its time."""
        line = self.lines.pop(index)
        line["t"] = self.lines[before - (before > index)]["t"]
        self.lines.insert(before - (before > index), line)

    def copy(self, index: int, before: int, **changes: object) -> None:
        line = json.loads(json.dumps(self.lines[index])) | changes
        line["t"] = self.lines[before]["t"]
        self.lines.insert(before, line)
