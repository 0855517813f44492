"""memfs top: the pool, the sealed files and their owners, with faults and invalidations per second."""

import json
import os
import re
import shutil
import sys
import time
import unicodedata
from collections.abc import Iterator
from typing import Any

from memfsd.common.quote import quoted
from memfsd.uapi.messages import Empty, FileReport, Kind, ListReply
from memfsd.uapi.units import PAGE_SIZE, format_size

from .observer import Observer, Store

_CLEAR = "\033[H\033[2J"
_OWNER = re.compile(r"vm=(?P<vm>.*) pid=(?P<pid>\d+) uid=(?P<uid>\d+) state=(?P<state>\w+)", re.DOTALL)
"""user.memfsd.owner. A VM's name may hold anything, so that only what follows it is certain."""
Facts = dict[str, Any]


def run(mountpoint: str, store: Store, *, interval_s: float, count: int, as_json: bool) -> int:
    """Print a view each interval_s: over the last one on a terminal, else one after the other. 0 counts: forever."""
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
                "name": os.fsdecode(file.name),
                "owner": owner_of(file.owner),
                "size": file.size_bytes,
                "frames": file.frames,
                "pending": file.pending,
                "swapped": file.swapped,
                "faults_per_s": round((file.grants - old.grants) / elapsed_s, 1),
                "invalidations_per_s": round((file.invalidations - old.invalidations) / elapsed_s, 1),
                "splits": file.splits,
                "merges": file.merges,
            }
        )
    swap = {"used": reply.swap_used, "total": reply.swap_total}
    return {"pool": reply.states, "swap": swap, "sealed_files": reply.file_count, "files": files}


def owner_of(line: str) -> Facts | None:
    """What user.memfsd.owner says; None: nobody."""
    match = _OWNER.fullmatch(line)
    return match and {"vm": match["vm"], "pid": int(match["pid"]), "uid": int(match["uid"]), "state": match["state"]}


_HEAD = ("INODE", "SIZE", "HELD", "PENDING", "FAULTS/s", "INVAL/s", "STATE", "PID", "VM", "NAME")
_WIDTHS = (5, 5, 5, 7, 8, 7, -6, 5, -4)
"""The least of all columns but the last, negative for one of words: names have the rest of 80."""


def _view(mountpoint: str, facts: Facts) -> str:
    total = sum(facts["pool"].values())
    used = "  ".join(f"{state} {format_size(frames * PAGE_SIZE)}" for state, frames in facts["pool"].items() if frames)
    columns, rows = shutil.get_terminal_size()
    table = [_HEAD, *(_row(file) for file in facts["files"][: max(rows - 4, 1)])]
    widths = [max(abs(least), *(_columns(row[at]) for row in table)) for at, least in enumerate(_WIDTHS)]
    lines = [
        f"memfsd {quoted(mountpoint)}: pool {format_size(total * PAGE_SIZE)}: {used}",
        f"{facts['sealed_files']} sealed files{_swap(facts['swap'])}",
    ]
    for row in table:
        cells = [
            " " * (width - _columns(cell)) + cell if least > 0 else cell + " " * (width - _columns(cell))
            for cell, width, least in zip(row, widths, _WIDTHS, strict=False)
        ]
        lines.append(" ".join([*cells, row[-1]]))
    return "\n".join(_cut(line, columns) for line in lines)


def _swap(swap: Facts) -> str:
    if not swap["total"]:
        return ""
    return f"; swap {format_size(swap['used'] * PAGE_SIZE)} of {format_size(swap['total'] * PAGE_SIZE)}"


def _row(file: Facts) -> tuple[str, ...]:
    owner = file["owner"] or {"vm": "-", "pid": "-", "state": "-"}
    return (
        str(file["inode"]),
        *(_rounded(size) for size in (file["size"], file["frames"] * PAGE_SIZE, file["pending"] * PAGE_SIZE)),
        f"{file['faults_per_s']:.5g}",
        f"{file['invalidations_per_s']:.5g}",
        owner["state"],
        str(owner["pid"]),
        _cut(quoted(owner["vm"]), 16),
        quoted(file["name"]) if file["name"] else "(unlinked)",
    )


def _rounded(size_bytes: int) -> str:
    """Three digits and a unit, as ls -h: 1M, 63.9M, 512G."""
    size, unit = float(size_bytes), 0
    while size >= 999.5 and unit < 5:
        size, unit = size / 1024, unit + 1
    digits = f"{size:.1f}".removesuffix(".0") if size < 99.95 else f"{size:.0f}"
    return digits + "BKMGTP"[unit] if size_bytes else "0"


def _columns(text: str) -> int:
    return sum(map(_width, text))


def _width(character: str) -> int:
    return 0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")


def _cut(text: str, columns: int) -> str:
    for end, character in enumerate(text):
        columns -= _width(character)
        if columns < 0:
            return text[:end]
    return text
