"""memfs stat: of a file, or of a mount and its pool."""

import argparse
import os
import stat
from typing import Any

from memfsd.common.fields import fields
from memfsd.common.observer import Observer
from memfsd.common.quote import printable, quoted
from memfsd.common.stores import Store, store_of
from memfsd.files import stat as file_stat
from memfsd.uapi.errors import PeerLost, Refused
from memfsd.uapi.messages import Empty, Kind, ListReply
from memfsd.uapi.names import XATTR_COUNTS, XATTR_POOL

from . import arguments, usage, vms
from .facts import show

_NAMES = ("file", "mount", "socket")
"""Facts that are names of files."""


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=arguments.path, metavar="FILE|MOUNTPOINT")
    parser.set_defaults(run=_stat)


def _stat(asked: argparse.Namespace) -> int:
    store = store_of(asked.target)
    status = os.stat(asked.target)
    try:
        pool = os.getxattr(asked.target, XATTR_POOL).decode()
    except OSError:
        facts = _file_facts(asked.target, status)
    else:
        counts = os.getxattr(asked.target, XATTR_COUNTS).decode()
        facts = {"mount": asked.target, "socket": store.socket, **fields(pool), **fields(counts), **_held(store)}
    width = max(len(key) for key in facts)
    shown = {key: quoted(value) if key in _NAMES else value for key, value in facts.items()}
    shown = {key: "-" if value is None else value for key, value in shown.items()}
    show(asked, facts, "\n".join(printable(f"{key:>{width}}  {value}") for key, value in shown.items()))
    return 0


def _held(store: Store) -> dict[str, int | None]:
    """What the VMs of a mount hold that its store does not know of."""
    try:
        with Observer(store) as observer:
            found = vms.vms_of(observer.ask(Kind.LIST, Empty(), ListReply))
    except (PeerLost, Refused):  # the rest was said by the kernel
        return {"vm_shared": None, "held_twice": None}
    return {name: sum(vm[name] or 0 for vm in found) for name in ("vm_shared", "held_twice")}


def _file_facts(path: str, status: os.stat_result) -> dict[str, Any]:
    facts: dict[str, Any] = {"file": path, "inode": status.st_ino, "size": status.st_size, "blocks": status.st_blocks}
    if not stat.S_ISREG(status.st_mode):
        return facts
    about = file_stat(path)
    shown = {"seals": about.seals, "page_size": about.page_size, "numa": about.numa, "owner": about.owner}
    facts = {**facts, **shown, **about.frames}
    owner = usage.owner_of(about.owner)
    if owner is not None:
        use = usage.use_of(owner)
        facts["vm_shared"] = use and use.shared
        facts["held_twice"] = use and use.doubled.get(status.st_ino, 0)
    return facts


COMMANDS: arguments.Adders = {"stat": _add}
