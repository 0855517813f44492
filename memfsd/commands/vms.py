"""memfs vms: the VMs that hold files of a mount, and where their monitors listen."""

import contextlib
import json
import os
import stat
from typing import Any

from memfsd.common.quote import quoted
from memfsd.common.rundir import MONITORS
from memfsd.uapi.messages import Empty, Kind, ListReply
from memfsd.uapi.units import PAGE_SIZE, format_size

from .observer import Observer, Store
from .top import owner_of

_HEAD = ("PID", "UID", "STATE", "FILES", "HELD", "VM", "MONITOR")
_NUMBERS = 5
"""Columns before those of names."""
_ENDED = "ended"


def run(mountpoint: str, store: Store, *, as_json: bool) -> int:
    with Observer(store) as observer:
        reply = observer.ask(Kind.LIST, Empty(), ListReply)
    vms = _vms(reply)
    left_out = reply.file_count - len(reply.files)
    if as_json:
        print(json.dumps({"mount": mountpoint, "vms": vms, "files_left_out": left_out}))
        return 0
    rows = [_HEAD, *(_row(vm) for vm in vms)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_HEAD))]
    for row in rows:
        left = (f"{cell:>{width}}" for cell, width in zip(row[:_NUMBERS], widths, strict=False))
        print(*left, f"{row[_NUMBERS]:{widths[_NUMBERS]}}", row[-1])
    if left_out > 0:
        print(f"{left_out} smaller sealed files were not looked at")
    return 0


def _vms(reply: ListReply) -> list[dict[str, Any]]:
    """Those that live, by pid and name."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for file in reply.files:
        owner = owner_of(file.owner)
        if owner is None or owner["state"] == _ENDED:
            continue
        vm = found.setdefault(
            (owner["pid"], owner["vm"]),
            {**owner, "files": [], "frames": 0, "monitor": _monitor_of(owner["pid"], owner["uid"])},
        )
        vm["files"].append(file.ino)
        vm["frames"] += file.frames
    return [found[key] for key in sorted(found)]


def _monitor_of(pid: int, uid: int) -> str | None:
    """The socket of that name that its user made and somebody listens on; None when there is none, or we may not look.

    A killed process leaves its socket, and another may have its pid.
    """
    for path in MONITORS.places_of(pid, uid):
        with contextlib.suppress(OSError):
            status = os.lstat(path)
            if stat.S_ISSOCK(status.st_mode) and status.st_uid == uid and MONITORS.is_live(path):
                return path
    return None


def _row(vm: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(vm["pid"]),
        str(vm["uid"]),
        vm["state"],
        str(len(vm["files"])),
        format_size(vm["frames"] * PAGE_SIZE),
        quoted(vm["vm"]),
        quoted(vm["monitor"]) if vm["monitor"] else "-",
    )
