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


def record_run(place: Path, run: Callable[[LocalStore, LocalVm, LocalVm], None]) -> tuple[Path, Path]:
    """A store, and one process with two VMs that have 16 pages of a file each: the journals of both."""
    store_path, vm_path = place / "store.journal", place / "vm.journal"
    with recording(store_path, "memfsd"), recording(vm_path, "kvmsim"):
        store = LocalStore(place, 64, swap_pages=32)
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
