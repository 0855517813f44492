"""memfs vms: the VMs that hold files of a mount, and where their monitors listen."""

import argparse
import json
from typing import Any

from memfsd.common.observer import Observer
from memfsd.common.quote import quoted
from memfsd.common.stores import store_of
from memfsd.uapi.messages import Empty, Kind, ListReply
from memfsd.uapi.units import PAGE_SIZE, format_size

from . import arguments
from .usage import Usage, file_facts, monitor_of

_HEAD = ("PID", "UID", "STATE", "FILES", "HELD", "PUNCHED", "LEAKED", "SHARED", "TWICE", "VM", "MONITOR")
_NUMBERS = 9
"""Columns before those of names."""


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=arguments.path, metavar="MOUNTPOINT")
    parser.set_defaults(run=_vms)


def _vms(asked: argparse.Namespace) -> int:
    with Observer(store_of(asked.target)) as observer:
        reply = observer.ask(Kind.LIST, Empty(), ListReply)
    vms = vms_of(reply)
    left_out = reply.file_count - len(reply.files)
    if asked.json:
        print(json.dumps({"mount": asked.target, "vms": vms, "files_left_out": left_out}))
        return 0
    rows = [_HEAD, *(_row(vm) for vm in vms)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_HEAD))]
    for row in rows:
        left = (f"{cell:>{width}}" for cell, width in zip(row[:_NUMBERS], widths, strict=False))
        print(*left, f"{row[_NUMBERS]:{widths[_NUMBERS]}}", row[-1])
    if left_out > 0:
        print(f"{left_out} more sealed files were not looked at")
    return 0


def vms_of(reply: ListReply) -> list[dict[str, Any]]:
    """Those that live, by pid and name. vm_shared and held_twice are None where the VM does not say."""
    vms = Usage().by_vm([file_facts(file) for file in reply.files])
    return [{**vm, "monitor": monitor_of(vm["pid"], vm["uid"])} for vm in vms]


def _row(vm: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(vm["pid"]),
        str(vm["uid"]),
        vm["state"],
        str(len(vm["files"])),
        *(_size(vm[name]) for name in ("frames", "punched", "leaked", "vm_shared", "held_twice")),
        quoted(vm["vm"]),
        quoted(vm["monitor"]) if vm["monitor"] else "-",
    )


def _size(pages: int | None) -> str:
    return "-" if pages is None else format_size(pages * PAGE_SIZE)


COMMANDS: arguments.Adders = {"vms": _add}
