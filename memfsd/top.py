"""memfs top: the pool, the sealed files and their owners, with faults and invalidations per second."""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

from memfsd.observer import Observer, Store
from memfsd.uapi.messages import Empty, FileReport, Kind, ListReply
from memfsd.uapi.units import PAGE_SIZE, format_size

_CLEAR = "\033[H\033[2J"
Facts = dict[str, Any]


def run(mountpoint: str, store: Store, *, interval_s: float, count: int, as_json: bool) -> int:
    """Print a view each interval_s: over the last one on a terminal, else one after the other. 0 counts: for ever."""
    for number, facts in enumerate(_samples(store, interval_s), 1):
        if as_json:
            print(json.dumps({"mount": mountpoint, **facts}), flush=True)
        else:
            clear = _CLEAR if sys.stdout.isatty() else ""
            print(clear + _view(mountpoint, facts), flush=True)
        if number == count:
            break
        time.sleep(interval_s)
    return 0


def _samples(store: Store, interval_s: float) -> Iterator[Facts]:
    before: dict[int, FileReport] = {}
    at = time.monotonic()
    while True:
        with Observer(store) as observer:  # a connection each: one that waits for its next question is ended
            reply = observer.ask(Kind.LIST, Empty(), ListReply)
        now = time.monotonic()
        elapsed = max(now - at, 1e-9) if before else interval_s
        yield _facts(reply, before, elapsed)
        before, at = {file.ino: file for file in reply.files}, now


def _facts(reply: ListReply, before: dict[int, FileReport], elapsed_s: float) -> Facts:
    files = []
    for file in reply.files:
        old = before.get(file.ino, file)
        files.append(
            {
                "inode": file.ino,
                "name": file.name,
                "owner": file.owner,
                "size": file.size_bytes,
                "frames": file.frames,
                "pending": file.pending,
                "faults_per_s": round((file.grants - old.grants) / elapsed_s, 1),
                "invalidations_per_s": round((file.invalidations - old.invalidations) / elapsed_s, 1),
            }
        )
    return {"pool": reply.states, "sealed_files": reply.file_count, "files": files}


def _view(mountpoint: str, facts: Facts) -> str:
    total = sum(facts["pool"].values())
    used = "  ".join(f"{state} {format_size(frames * PAGE_SIZE)}" for state, frames in facts["pool"].items() if frames)
    columns, rows = shutil.get_terminal_size()
    lines = [
        f"memfsd {mountpoint}: pool {format_size(total * PAGE_SIZE)}: {used}",
        f"{facts['sealed_files']} sealed files",
        f"{'INODE':>7} {'SIZE':>7} {'HELD':>8} {'PENDING':>8} {'FAULTS/s':>9} {'INVAL/s':>8}  {'NAME':16} OWNER",
    ]
    for file in facts["files"][: max(rows - 4, 1)]:
        lines.append(
            f"{file['inode']:>7} {format_size(file['size']):>7} {format_size(file['frames'] * PAGE_SIZE):>8} "
            f"{format_size(file['pending'] * PAGE_SIZE):>8} {file['faults_per_s']:>9} "
            f"{file['invalidations_per_s']:>8}  {file['name'] or '(unlinked)':16} {file['owner']}"
        )
    return "\n".join(line[:columns] for line in lines)
