"""memfs poison: the memory of a page fails."""

import argparse
import errno
import os
import random
import stat
from collections.abc import Iterator
from typing import NamedTuple

from memfsd.common.arguments import whole
from memfsd.common.observer import Observer
from memfsd.common.quote import quoted
from memfsd.common.stores import Store, store_of
from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.messages import Empty, Kind, ListReply, Map, MapReply, MemoryFailure, MemoryFailureReply
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, PGOFF_END, format_size

from . import arguments
from .facts import show

_seed = whole(0, (1 << 64) - 1, "is not a seed: choose 0 to 2^64 - 1")
_WITH_FRAME = (FrameState.SHARED, FrameState.PRIVATE, FrameState.PENDING)


class Poisoned(NamedTuple):
    """Which frames are out of service, and whose they were."""

    ino: int
    offset: int
    pfn: int
    frame_count: int


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=arguments.path, metavar="FILE|MOUNTPOINT")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("offset", type=arguments.size, nargs="?", metavar="OFFSET", help="in the file")
    where.add_argument("--random", action="store_true", help="a page by lot, of FILE or of all sealed files")
    parser.add_argument("--seed", type=_seed, metavar="N", help="of the lot: the same page of the same pages again")
    parser.set_defaults(run=_poison)


def _poison(asked: argparse.Namespace) -> int:
    store = store_of(asked.target)
    if asked.random:
        gone = _poison_any(asked.target, store, asked.seed)
    else:
        gone = _poison_at(asked.target, store, asked.offset)
    facts = {"target": asked.target, "inode": gone.ino, "offset": gone.offset, "pfn": gone.pfn}
    size = format_size(gone.frame_count * PAGE_SIZE)
    text = f"frame {gone.pfn:#x} ({size}) of inode {gone.ino} at {gone.offset:#x} is out of service"
    show(asked, {**facts, "frames": gone.frame_count}, f"{quoted(asked.target)}: {text}")
    return 0


def _poison_at(path: str, store: Store, offset: int) -> Poisoned:
    """The frame of the page at this byte offset."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise Refused(number, f"{quoted(path)}: only regular files have pages: name one, or choose --random")
    if offset >> PAGE_SHIFT >= PGOFF_END:
        raise Refused(errno.EINVAL, f"offset {offset} is past the end of every file")
    with Observer(store) as observer:
        return _fail(observer, status.st_ino, offset >> PAGE_SHIFT)


def _poison_any(path: str, store: Store, seed: int | None) -> Poisoned:
    """A page by lot: of this file, or, when it is no regular file, of all sealed files of the mount. ENXIO: none has a
    frame. The same seed takes the same one of the same pages."""
    status = os.stat(path)
    with Observer(store) as observer:
        if stat.S_ISREG(status.st_mode):
            inodes = [status.st_ino]
        else:
            listed = observer.ask(Kind.LIST, Empty(), ListReply)
            inodes = sorted(file.ino for file in listed.files if file.frames)
        runs = [(ino, *run) for ino in inodes for run in _runs(observer, ino)]
        number = sum(count for _, _, count in runs)
        if not number:
            raise Refused(errno.ENXIO, f"{quoted(path)}: no page of a sealed file has a frame that could fail")
        at = random.Random(seed).randrange(number)
        for ino, pgoff, count in runs:
            if at < count:
                return _fail(observer, ino, pgoff + at)
            at -= count
    raise AssertionError("it is one of them")


def _fail(observer: Observer, ino: int, pgoff: int) -> Poisoned:
    reply = observer.ask(Kind.MEMORY_FAILURE, MemoryFailure(ino, pgoff), MemoryFailureReply)
    return Poisoned(ino, pgoff << PAGE_SHIFT, reply.pfn, reply.page_count)


def _runs(observer: Observer, ino: int) -> Iterator[tuple[int, int]]:
    """Pages with frames: (first page, pages)."""
    pgoff = 0
    while pgoff >= 0:
        reply = observer.ask(Kind.MAP, Map(ino, pgoff), MapReply)
        for first, _, count, _, state, *_ in reply.runs:
            if state in _WITH_FRAME:
                yield first, count
        pgoff = reply.next_pgoff


COMMANDS: arguments.Adders = {"poison": _add}
