"""memfs top: the pool, the sealed files and their VMs, with faults and invalidations per second."""

import argparse
import contextlib
import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

from memfsd.common import fullscreen
from memfsd.common.arguments import count, seconds
from memfsd.common.observer import Observer
from memfsd.common.stores import Store, store_of
from memfsd.uapi.errors import Refused
from memfsd.uapi.messages import Empty, FileReport, Kind, ListReply
from memfsd.uapi.names import XATTR_NUMASTAT

from . import arguments, top_view
from .usage import Usage, file_facts

Facts = dict[str, Any]


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=arguments.path, metavar="MOUNTPOINT")
    delay = seconds("is not a delay")
    parser.add_argument("-d", "--delay", type=delay, default=1.0, metavar="SECONDS", help="between views (default 1)")
    parser.add_argument("-n", "--count", type=count, default=0, metavar="N", help="stop after N views (default: never)")
    parser.add_argument("--once", dest="count", action="store_const", const=1, help="one view")
    parser.set_defaults(run=_top)


def _top(asked: argparse.Namespace) -> int:
    samples = Samples(asked.target, store_of(asked.target), asked.delay)
    with contextlib.suppress(KeyboardInterrupt):  # how it is meant to end
        _show(samples, asked.delay, asked.count, as_json=asked.json)
    return 0


def _show(samples: "Samples", interval_s: float, count: int, *, as_json: bool) -> None:
    """A view each interval_s: on a full screen, or one after the other. 0 counts: forever."""
    if not as_json and count != 1 and fullscreen.is_possible():

        def look() -> fullscreen.Draw:
            facts = samples.take()
            return lambda columns, rows: top_view.view(facts, columns, rows)

        fullscreen.show(look, interval_s, count)
    else:
        _print(samples.take, interval_s, count, as_json=as_json)


def _print(take: Callable[[], Facts], interval_s: float, count: int, *, as_json: bool) -> None:
    number = 0
    while True:
        facts = take()
        if as_json:
            print(json.dumps(facts), flush=True)
        else:
            columns, rows = shutil.get_terminal_size()
            for line in top_view.view(facts, columns, rows):
                print(top_view.plain(line, columns))
            sys.stdout.flush()
        number += 1
        if number == count:
            return
        time.sleep(interval_s)


class Samples:
    """What a mount's store and its VMs say, and what changed since it was asked last."""

    def __init__(self, mountpoint: str, store: Store, interval_s: float) -> None:
        self._mountpoint, self._store, self._interval_s = mountpoint, store, interval_s
        self._usage = Usage()
        self._before: dict[int, FileReport] = {}
        self._at = time.monotonic()

    def take(self) -> Facts:
        with Observer(self._store) as observer:  # a connection each: one that waits for its next question is ended
            reply = observer.ask(Kind.LIST, Empty(), ListReply)
        now = time.monotonic()
        elapsed_s = max(now - self._at, 1e-9) if self._before else self._interval_s
        files = [self._file(file, elapsed_s) for file in reply.files]
        self._before, self._at = {file.ino: file for file in reply.files}, now
        return {
            "mount": self._mountpoint,
            "pool": reply.states,
            "nodes": _nodes(self._mountpoint),
            "swap": {"used": reply.swap_used, "total": reply.swap_total},
            "sealed_files": reply.file_count,
            "files": files,
            "vms": self._usage.by_vm(files),
        }

    def _file(self, file: FileReport, elapsed_s: float) -> Facts:
        old = self._before.get(file.ino, file)
        return {
            **file_facts(file),
            "faults_per_s": round((file.grants - old.grants) / elapsed_s, 1),
            "invalidations_per_s": round((file.invalidations - old.invalidations) / elapsed_s, 1),
        }


def _nodes(path: str) -> list[Facts]:
    """Frames of each NUMA node; none where the path is not the root of the mount."""
    try:
        text = os.getxattr(path, XATTR_NUMASTAT).decode()
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return []
        raise Refused(error.errno or errno.EIO, f"{path}: {error.strerror}") from None
    lines = [dict(word.split("=", 1) for word in line.split()) for line in text.splitlines()]
    return [{"total": int(line["total"]), "free": int(line["free"])} for line in lines if "node" in line]


COMMANDS: arguments.Adders = {"top": _add}
