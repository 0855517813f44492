"""memfs move."""

import argparse
import errno
import json
import os
from collections import Counter
from collections.abc import Iterator

from memfsd.common.observer import Observer
from memfsd.common.quote import quoted
from memfsd.common.stores import store_of
from memfsd.numa import fmove_pages
from memfsd.uapi.errors import Refused, errno_name
from memfsd.uapi.messages import Kind, Map, MapReply
from memfsd.uapi.names import XATTR_PAGE_SIZE
from memfsd.uapi.units import ORDER_1G, PAGE_SHIFT, PAGE_SIZE, PGOFF_END, Pgoff

from . import arguments

_AT_ONCE = 4096
_WHY = {
    errno.EBUSY: "they are not guest private memory, not bound, or of a VM whose KVM does not move them now",
    errno.ENOMEM: "the node has no room: see memfs numastat",
    errno.ENODEV: "there is no such node, or it is offline: see memfs numastat",
}


def _add(parser: argparse.ArgumentParser) -> None:
    arguments.add_rest(parser)
    parser.add_argument("target", type=arguments.path, metavar="FILE")
    parser.add_argument("node", type=arguments.node, metavar="NODE")
    parser.set_defaults(run=_move)


def _move(asked: argparse.Namespace) -> int:
    """1 when a page has not moved."""
    if asked.offset % PAGE_SIZE:
        raise Refused(errno.EINVAL, f"offset {asked.offset} is within a page: give a multiple of {PAGE_SIZE}")
    first = Pgoff(asked.offset >> PAGE_SHIFT)
    end = Pgoff(PGOFF_END) if asked.length is None else first + -(-asked.length // PAGE_SIZE)
    moved, failed = 0, Counter[int]()
    store_of(asked.target)
    fd = os.open(asked.target, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a fifo has no reader to wait for
    try:
        for pages in _held(asked.target, first, end):
            before = fmove_pages(fd, pages)
            after = fmove_pages(fd, pages, [asked.node] * len(pages))
            failed.update(-status for status in after if status < 0 and status != -errno.ENOENT)
            moved += sum(was != now == asked.node for was, now in zip(before, after, strict=True))
    finally:
        os.close(fd)
    if asked.json:
        stayed = {errno_name(number): count for number, count in failed.items()}
        print(json.dumps({"file": asked.target, "node": asked.node, "moved": moved, "stayed": stayed}))
    else:
        print(f"{quoted(asked.target)}: {moved} pages moved to node {asked.node}")
        for number, count in failed.items():
            why = _WHY.get(number, os.strerror(number))
            if number == errno.EBUSY and int(os.getxattr(asked.target, XATTR_PAGE_SIZE)) == PAGE_SIZE << ORDER_1G:
                why = f"pages of 1G move in parts only: mount with split=on; or {why}"
            print(f"{quoted(asked.target)}: {count} pages stay where they are ({errno_name(number)}): {why}")
    return 1 if failed else 0


def _held(path: str, first: Pgoff, end: Pgoff) -> Iterator[list[Pgoff]]:
    """The pages in a range of the file that have frames, some at a time."""
    for low, high in _runs(path, first, end):
        for at in range(low, high, _AT_ONCE):
            yield [*map(Pgoff, range(at, min(at + _AT_ONCE, high)))]


def _runs(path: str, first: Pgoff, end: Pgoff) -> list[tuple[int, int]]:
    ino, at, found = os.stat(path).st_ino, int(first), list[tuple[int, int]]()
    with Observer(store_of(path)) as observer:
        while 0 <= at < end:
            reply = observer.ask(Kind.MAP, Map(ino, Pgoff(at)), MapReply)
            for start, _, count, *_ in reply.runs:
                low = found.pop()[0] if found and found[-1][1] == start else start
                found.append((low, start + count))
            at = reply.next_pgoff
    return [(max(low, first), min(high, end)) for low, high in found if low < end and first < high]


COMMANDS: arguments.Adders = {"move": _add}
