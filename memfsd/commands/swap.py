"""memfs swapout and memfs swapoff: asked in steps, each of which ends in time."""

import argparse
import errno
import json
import os
import stat
from collections import Counter
from dataclasses import dataclass, field

from memfsd.common.observer import Observer
from memfsd.common.quote import quoted
from memfsd.common.stores import store_of
from memfsd.uapi.errors import Refused
from memfsd.uapi.messages import Kind, PageOut, PageOutReply, SwapOff, SwapOffReply
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, PGOFF_END, Pgoff, format_size

from . import arguments

_MAX_NAMED = 4
"""Files that one line names."""


def _add_swap_out(parser: argparse.ArgumentParser) -> None:
    arguments.add_rest(parser)
    parser.add_argument("target", type=arguments.path, metavar="FILE")
    parser.set_defaults(run=_swap_out)


def _add_swap_off(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=arguments.path, metavar="MOUNTPOINT")
    parser.set_defaults(run=_swap_off)


def _swap_out(asked: argparse.Namespace) -> int:
    """Refused at the end when a page could not leave, with what did."""
    store, status = store_of(asked.target), os.stat(asked.target)
    if not stat.S_ISREG(status.st_mode):
        raise Refused(errno.EINVAL, f"{quoted(asked.target)}: only files have pages that can be swapped out: name one")
    length = asked.length if asked.length is not None else max(status.st_size - asked.offset, PAGE_SIZE)
    if (asked.offset | length) % PAGE_SIZE or (asked.length is not None and not length):
        raise Refused(
            errno.EINVAL, f"offset {asked.offset} and length {length} must be multiples of {PAGE_SIZE}, and not empty"
        )
    at, end = asked.offset >> PAGE_SHIFT, min(asked.offset + length >> PAGE_SHIFT, PGOFF_END - 1)
    if at >= end:
        raise Refused(errno.EINVAL, f"offset {asked.offset} is past the end of every file")
    page_count, stayed, number, why = 0, 0, 0, ""
    with Observer(store) as observer:
        while 0 <= at < end:
            try:
                step = observer.ask(Kind.PAGE_OUT, PageOut(status.st_ino, Pgoff(at), Pgoff(end)), PageOutReply)
            except Refused as refused:
                if not page_count:
                    raise
                number, why = refused.errno, refused.reason
                break
            page_count, stayed, at = page_count + step.page_count, stayed + step.stayed, step.next_pgoff
            if step.errno and not why:
                number, why = step.errno, step.reason
    done = f"{quoted(asked.target)}: {format_size(page_count * PAGE_SIZE)} swapped out"
    if asked.json:
        print(json.dumps({"file": asked.target, "swapped_out": page_count, "stayed": stayed}))
    elif not why:
        print(done)
    if why:
        others = f"{_pages(stayed)} could not leave" if stayed else "the rest could not leave"
        raise Refused(number, f"{done}, {others}: {why}")
    return 0


def _swap_off(asked: argparse.Namespace) -> int:
    """Refused at the end when a page could not come back, with what did."""
    page_count = 0
    with Observer(store_of(asked.target)) as observer:
        came, left, stay = 1, 1, _Stay()
        while came and left > stay.counts.total():  # what was on its way out has left meanwhile
            came, left, stay = _bring_back(observer)
            page_count += came
    if asked.json:
        print(json.dumps({"mount": asked.target, "swapped_in": page_count, "stayed": stay.counts.total()}))
    size = format_size(page_count * PAGE_SIZE)
    if stay.errno:
        whose = [f"{_pages(count)} of {file}" for file, count in stay.counts.most_common(_MAX_NAMED)]
        more = [f"{len(stay.counts) - _MAX_NAMED} more files"] if len(stay.counts) > _MAX_NAMED else []
        raise Refused(
            stay.errno,
            f"{quoted(asked.target)}: swap is off, {size} came back, but not {', '.join(whose + more)}: {stay.reason}."
            " Punch them, or end the VM",
        )
    if not asked.json:
        print(f"{quoted(asked.target)}: swap is off, {size} came back")
    return 0


@dataclass
class _Stay:
    """Pages that cannot come back, by file and VM, and why the first cannot."""

    counts: Counter[str] = field(default_factory=Counter)
    errno: int = 0
    reason: str = ""


def _bring_back(observer: Observer) -> tuple[int, int, _Stay]:
    """All that is out, once: pages that came, pages that are still out, and those that cannot come."""
    came, left, stay, ino, pgoff = 0, 0, _Stay(), 0, 0
    while pgoff >= 0:
        step = observer.ask(Kind.SWAP_OFF, SwapOff(ino, Pgoff(pgoff)), SwapOffReply)
        came, left, ino, pgoff = came + step.page_count, step.left, step.next_ino, step.next_pgoff
        if step.errno:
            name = quoted(step.name) if step.name else "a file without a name"
            stay.counts[f"{name} (VM {quoted(step.vm)})" if step.vm else name] += step.stayed
            if not stay.errno:
                stay.errno, stay.reason = step.errno, step.reason
    return came, left, stay


def _pages(count: int) -> str:
    return f"{count} page{'' if count == 1 else 's'}"


COMMANDS: arguments.Adders = {"swapout": _add_swap_out, "swapoff": _add_swap_off}
