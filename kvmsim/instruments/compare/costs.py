"""What is done to a private page, timed: first touch, moves, swap out and in, with memory encryption and without."""

import contextlib
import errno
import itertools
import os
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from kvmsim.kvm.region import MemoryRegion
from kvmsim.machine import VirtualMachine
from kvmsim.memory.memory import OpenWindow, WindowMemory
from memfsd.common.fileioctls import move_pages
from memfsd.common.mounts import pool_of
from memfsd.common.observer import Observer
from memfsd.common.stores import store_of
from memfsd.uapi.abi import THREAD
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_SLOTS
from memfsd.uapi.messages import Kind, PageOut, PageOutReply
from memfsd.uapi.units import PAGE_SHIFT, Pgoff, format_size

from .ram import make_file

SIZE_BYTES = 4 << 20
"""Of the guest's memory."""
POOL_BYTES = 16 * SIZE_BYTES
_LARGEST_PAGE_BYTES = SIZE_BYTES // 2
_ROUNDS = 3
_NODE = 1
"""To which pages move: a new file's are on node 0."""
_NO_CIPHER = "not measured: swap and memory encryption need the package cryptography: pip install cryptography"
_names = itertools.count()


class Cost(NamedTuple):
    """page_count pages were done at once, of which one took us_each; times_touch: compared with the first touch of as
    much memory without encryption, in the same run."""

    operation: str
    encrypted: bool
    page_bytes: int
    page_count: int
    us_each: float
    times_touch: float


def costs(directory: Path, page_sizes: list[int], skipped: Callable[[str], None]) -> Iterator[Cost]:
    """Medians of a few rounds, each with a fresh file and VM, whose data is verified. Pages of 1G are left out.
    skipped: gets a line for what cannot be measured here."""
    has_cipher = find_spec("cryptography") is not None
    if not has_cipher:
        skipped(_NO_CIPHER)
    possible = _possible(directory, has_cipher, skipped)
    for page_bytes in page_sizes:
        if page_bytes > _LARGEST_PAGE_BYTES:
            continue
        operations, plain_us = set(possible), 0.0
        for encrypted in (False, True) if has_cipher else (False,):
            rounds = [_round(directory, page_bytes, operations, skipped, encrypted=encrypted) for _ in range(_ROUNDS)]
            count = SIZE_BYTES // page_bytes
            for operation in rounds[0]:
                seconds = sorted(times[operation] for times in rounds)[_ROUNDS // 2]
                us_each = seconds / count * 1e6
                plain_us = plain_us or us_each
                yield Cost(operation, encrypted, page_bytes, count, us_each, us_each / plain_us)


def _possible(directory: Path, has_cipher: bool, skipped: Callable[[str], None]) -> set[str]:
    """What this mount can do, by its attribute."""
    try:
        pool = pool_of(str(directory))
    except OSError:
        raise Refused(errno.EOPNOTSUPP, f"{directory}: not on a memfsd mount") from None
    if pool.get("abi", THREAD.name) != THREAD.name:
        why = f"pages are measured with sealed files, on abi=thread alone, and this is abi={pool['abi']}"
        raise Refused(errno.EOPNOTSUPP, f"{directory}: {why}")
    found = set[str]()
    if "," in str(pool.get("node_free", "")):
        found.add("move")
    else:
        skipped("not measured: moves, since the mount has one node: mount with nodes=2")
    if int(pool.get("swap_slots", 0)) - int(pool.get("swap_used", 0)) >= SIZE_BYTES >> PAGE_SHIFT:
        found |= {"swap"} if has_cipher else set()
    else:
        size = format_size(SIZE_BYTES)
        skipped(f"not measured: swap, since the mount has no swap file with {size} free: mount with swap=FILE")
    return found


def _round(
    directory: Path, page_bytes: int, operations: set[str], skipped: Callable[[str], None], *, encrypted: bool
) -> dict[str, float]:
    """Seconds of each operation on all pages. Swap is dropped from the operations if this mount does not swap them."""
    page_count = SIZE_BYTES >> PAGE_SHIFT
    times: dict[str, float] = {}
    with _vm(directory, page_bytes, encrypted=encrypted) as (machine, fd):
        vcpu = machine.vm.vcpu(0)

        def touch() -> None:
            _must_not_exit(machine.guest.touch(vcpu, 0, SIZE_BYTES))

        def move() -> None:
            if set(move_pages(fd, [(page, _NODE) for page in range(page_count)])) != {_NODE}:
                raise Refused(errno.EIO, f"{directory}: pages do not move to node {_NODE}")

        times["first touch"] = _timed(touch)
        data = os.urandom(SIZE_BYTES)
        _must_not_exit(machine.guest.write(vcpu, 0, data))
        if "move" in operations:
            times["move"] = _timed(move)
        if "swap" in operations:
            try:
                times["swap out"] = _timed(lambda: _swap_out(directory, os.fstat(fd).st_ino, page_count))
                times["swap in"] = _timed(touch)
            except Refused as refused:
                if refused.errno != errno.EOPNOTSUPP:
                    raise
                operations.remove("swap")
                skipped(f"not measured: swap of {format_size(page_bytes)} pages: {refused.reason}")
        if machine.guest.read(vcpu, 0, SIZE_BYTES) != data:
            raise Refused(errno.EIO, f"{directory}: the guest does not find its data again")
    return times


@contextlib.contextmanager
def _vm(directory: Path, page_bytes: int, *, encrypted: bool) -> Iterator[tuple[VirtualMachine, int]]:
    """Private memory at GPA 0, and its file."""
    path = directory / f"compare-{os.getpid()}-page{next(_names)}.mem"
    fd = make_file(path, page_bytes, SIZE_BYTES)
    try:
        machine = VirtualMachine("compare", MAX_SLOTS, open_window=_windows(encrypted))
        try:
            try:
                machine.vmm.memory.set_private_slot(MemoryRegion.private(0, 0, SIZE_BYTES), str(path))
            finally:
                path.unlink()
            yield machine, fd
        finally:
            machine.close()
    finally:
        os.close(fd)


def _windows(encrypted: bool) -> OpenWindow:
    if not encrypted:
        return WindowMemory
    from kvmsim.memory.encrypted import MemoryKey  # whose library may be missing

    return MemoryKey().open_window


def _swap_out(directory: Path, ino: int, page_count: int) -> None:
    """As memfs swapout."""
    with Observer(store_of(str(directory))) as observer:
        left, at = 0, 0
        while at >= 0:
            step = observer.ask(Kind.PAGE_OUT, PageOut(ino, Pgoff(at), Pgoff(page_count)), PageOutReply)
            left, at = left + step.page_count, step.next_pgoff
    if left != page_count:
        raise Refused(errno.EIO, f"{directory}: {left} of {page_count} pages were swapped out: {step.reason}")


def _timed(action: Callable[[], None]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def _must_not_exit(result: object) -> None:
    if result is not None:
        raise Refused(errno.EIO, f"the guest cannot go on: {result}")
