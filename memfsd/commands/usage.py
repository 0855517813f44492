"""What VMs say of their memory, through their monitors: shared, and held twice. A store knows nothing of either."""

import contextlib
import os
import re
import stat
import time
from typing import NamedTuple

from memfsd.common.qmp import Client, Facts, QmpError
from memfsd.common.rundir import MONITORS
from memfsd.uapi.errors import PeerLost
from memfsd.uapi.messages import FileReport
from memfsd.uapi.units import PAGE_SIZE

_PATIENCE_S = 1.0
_LEFT_ALONE_S = 10.0
ENDED = "ended"
_SUMS = ("frames", "private", "pending", "populated", "punched", "leaked")
"""Pages, over the files of a VM."""
Vm = tuple[int, str]
"""Pid and name."""
_OWNER = re.compile(r"vm=(?P<vm>.*) pid=(?P<pid>\d+) uid=(?P<uid>\d+) state=(?P<state>\w+)", re.DOTALL)
"""user.memfsd.owner. A VM's name may hold anything, so that only what follows it is certain."""


class Use(NamedTuple):
    """Of one VM, in pages. doubled: by inode."""

    shared: int
    doubled: dict[int, int]


def owner_of(line: str) -> Facts | None:
    """What user.memfsd.owner says; None: nobody."""
    match = _OWNER.fullmatch(line)
    return match and {"vm": match["vm"], "pid": int(match["pid"]), "uid": int(match["uid"]), "state": match["state"]}


def file_facts(file: FileReport) -> Facts:
    return {
        "inode": file.ino,
        "name": os.fsdecode(file.name),
        "owner": owner_of(file.owner),
        "size": file.size_bytes,
        "frames": file.frames,
        "private": file.frames - file.pending,
        "pending": file.pending,
        "quarantined": file.quarantined,
        "populated": file.populated,
        "punched": file.punched,
        "leaked": file.leaked,
        "swapped": file.swapped,
        "splits": file.splits,
        "merges": file.merges,
    }


def monitor_of(pid: int, uid: int) -> str | None:
    """The socket of that name that its user made and somebody listens on; None when there is none, or we may not look.

    A killed process leaves its socket, and another may have its pid.
    """
    for path in MONITORS.places_of(pid, uid):
        with contextlib.suppress(OSError):
            status = os.lstat(path)
            if stat.S_ISSOCK(status.st_mode) and status.st_uid == uid and MONITORS.is_live(path):
                return path
    return None


def use_of(owner: Facts | None, patience_s: float = _PATIENCE_S) -> Use | None:
    """Of the VM that has a file, as its monitor says; None: it has ended, has no monitor, or does not answer in time.
    A VM is not trusted: what is no count of pages is no answer."""
    if owner is None or owner["state"] == ENDED:
        return None
    path = monitor_of(owner["pid"], owner["uid"])
    if path is None:
        return None
    try:
        with Client(path, patience_s, owner["uid"]) as client:
            answer = client.ask("query-memory", {"vm": owner["vm"]})
        shared = _pages(answer["shared"])
        return Use(shared, {_pages(file["inode"], 1): _pages(file["doubled"]) for file in answer["files"]})
    except (PeerLost, QmpError, KeyError, TypeError, ValueError):
        return None


class Usage:
    """Asks the VMs of a mount again and again. One that did not answer is left alone for a while."""

    def __init__(self) -> None:
        self._silent: dict[Vm, float] = {}

    def by_vm(self, files: list[Facts]) -> list[Facts]:
        """The VMs that live, with sums over their files and what they say; each file gets its `held_twice`."""
        found: dict[Vm, Facts] = {}
        uses: dict[Vm, Use | None] = {}
        for file in files:
            owner, file["held_twice"] = file["owner"], None
            if owner is None or owner["state"] == ENDED:
                continue
            key = owner["pid"], owner["vm"]
            if key not in found:
                found[key] = {**owner, **dict.fromkeys(_SUMS, 0), "files": []}
                uses[key] = self._ask(key, owner)
            vm, use = found[key], uses[key]
            vm["files"].append(file["inode"])
            for name in _SUMS:
                vm[name] += file[name]
            file["held_twice"] = use and use.doubled.get(file["inode"], 0)
        for key, vm in found.items():
            use = uses[key]
            vm["vm_shared"] = use and use.shared
            vm["held_twice"] = use and sum(use.doubled.values())
        return [found[key] for key in sorted(found)]

    def _ask(self, key: Vm, owner: Facts) -> Use | None:
        now = time.monotonic()
        if self._silent.get(key, now) > now:
            return None
        use = use_of(owner)
        if use is None:
            self._silent[key] = time.monotonic() + _LEFT_ALONE_S
        return use


def _pages(value: object, unit: int = PAGE_SIZE) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError
    return value // unit
