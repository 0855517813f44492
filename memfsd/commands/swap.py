"""memfs swapout and memfs swapoff: asked in steps, each of which ends in time."""

import argparse
import errno
import json
import os
import stat

from memfsd.common.quote import quoted
from memfsd.uapi.errors import Refused
from memfsd.uapi.messages import Empty, Kind, PageOut, PageOutReply, SwapOffReply
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, PGOFF_END, Pgoff, format_size

from .observer import Observer, store_of


def swap_out(asked: argparse.Namespace) -> int:
    store, status = store_of(asked.target), os.stat(asked.target)
    if not stat.S_ISREG(status.st_mode):
        raise Refused(errno.EINVAL, f"{quoted(asked.target)}: only files have pages that can be swapped out: name one")
    length = asked.length if asked.length is not None else max(status.st_size - asked.offset, 0)
    if (asked.offset | length) % PAGE_SIZE or (asked.length is not None and not length):
        raise Refused(
            errno.EINVAL, f"offset {asked.offset} and length {length} must be multiples of {PAGE_SIZE}, and not empty"
        )
    at, end = asked.offset >> PAGE_SHIFT, min(asked.offset + length >> PAGE_SHIFT, PGOFF_END - 1)
    page_count = 0
    with Observer(store) as observer:
        while 0 <= at < end:
            step = observer.ask(Kind.PAGE_OUT, PageOut(status.st_ino, Pgoff(at), Pgoff(end)), PageOutReply)
            page_count += step.page_count
            at = step.next_pgoff
    if asked.json:
        print(json.dumps({"file": asked.target, "swapped_out": page_count}))
    else:
        print(f"{quoted(asked.target)}: {format_size(page_count * PAGE_SIZE)} swapped out")
    return 0


def swap_off(asked: argparse.Namespace) -> int:
    page_count, left = 0, 1
    with Observer(store_of(asked.target)) as observer:
        while left:
            step = observer.ask(Kind.SWAP_OFF, Empty(), SwapOffReply)
            page_count, left = page_count + step.page_count, step.left
    if asked.json:
        print(json.dumps({"mount": asked.target, "swapped_in": page_count}))
    else:
        print(f"{quoted(asked.target)}: swap is off, {format_size(page_count * PAGE_SIZE)} came back")
    return 0
