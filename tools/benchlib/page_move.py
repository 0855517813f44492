"""M1: a page of 4 KiB moves to another node, against a copy of it and a raw SEQPACKET round trip, all on one core.

The store and the VM answer from separate processes: who asks waits in ioctl(2) with Python's lock held.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import TypeVar

from benchlib import our_mount, raw_socket
from benchlib.figure import Figure, Progress, spread
from benchlib.machine import first_cpu, pin
from memfsd.numa import fmove_pages
from memfsd.uapi.framing import encode_reply, encode_request
from memfsd.uapi.messages import Kind, Move, MoveReply
from memfsd.uapi.units import PAGE_SIZE, Pgoff

T = TypeVar("T")

_NODES = (1, 0)
"""There and back."""


def measure(progress: Progress, rounds: int = 5, count: int = 400, bulk: int = 512) -> Figure:
    """In each round, after one that is not counted: six moves of `bulk` pages, count moves of one, four copies of
    each page, count round trips. The pages hold data, and no vCPU is in the guest. count is at most twice `bulk`."""
    size_bytes = bulk * PAGE_SIZE
    measured = []
    with pin(first_cpu()), our_mount.mounted(4 * size_bytes, "nodes=2") as mountpoint:
        path = our_mount.sealed_file(mountpoint / "memory", size_bytes)
        with our_mount.attached(path, size_bytes) as machine:
            data, vcpu = os.urandom(size_bytes), machine.vm.vcpu(0)
            stopped = machine.guest.write(vcpu, 0, data)
            if stopped is not None:
                raise RuntimeError(f"the guest stopped: {stopped}")
            for number in range(rounds + 1):
                progress.round(number, rounds)
                measured.append(_in_another_process(path, count, bulk))
            if machine.guest.read(vcpu, 0, size_bytes) != data:
                raise RuntimeError("pages that moved hold something else")
    del measured[:1]
    one_us, bulk_us, copy_us, raw_us = (list(column) for column in zip(*measured, strict=True))
    peers_us = [copy + raw for copy, raw in zip(copy_us, raw_us, strict=True)]
    ratios = [ours / peer for ours, peer in zip(one_us, peers_us, strict=True)]
    return Figure(
        what="a page of 4 KiB moves to another node / memcpy of it and a raw SEQPACKET round trip, one core",
        unit="x",
        target=None,
        at_most=True,
        value=median(ratios),
        parts={
            "move_us": median(one_us),
            "bulk_us_per_page": median(bulk_us),
            "bulk_ratio_per_page": median(ours / peer for ours, peer in zip(bulk_us, peers_us, strict=True)),
            "bulk_pages": bulk,
            "memcpy_us": median(copy_us),
            "raw_round_trip_us": median(raw_us),
            **spread(ratios),
            "rounds": rounds,
        },
    )


def _in_another_process(path: Path, count: int, bulk: int) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchlib.page_move", str(path), str(count), str(bulk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return [float(word) for word in done.stdout.split()]


def _round(path: Path, count: int, bulk: int) -> None:
    """Prints microseconds: of one page, of each in a bulk, of a copy, of a round trip."""
    some = 1 << 16
    move = Move(Pgoff(some), Pgoff(some + 1), some, [(some, some, some, 1)])
    request_bytes = len(encode_request(some, Kind.MOVE, move))
    reply_bytes = len(encode_reply(some, Kind.MOVE, MoveReply([])))
    source, target = memoryview(os.urandom(bulk * PAGE_SIZE)), memoryview(bytearray(os.urandom(bulk * PAGE_SIZE)))

    def copy(page: int) -> None:
        at = page * PAGE_SIZE
        target[at : at + PAGE_SIZE] = source[at : at + PAGE_SIZE]

    def move_one(page_and_node: tuple[int, int]) -> None:
        page, node = page_and_node
        _move(fd, [page], node)

    fd = os.open(path, os.O_WRONLY)
    try:
        in_bulk = _median_us(lambda node: _move(fd, range(bulk), node), _NODES * 3) / bulk
        one = _median_us(move_one, [(page, node) for node in _NODES for page in range(count // 2)])
    finally:
        os.close(fd)
    with raw_socket.echoing(request_bytes, reply_bytes) as round_trip_us:
        print(one, in_bulk, _median_us(copy, [*range(bulk)] * 4), round_trip_us(count))


def _move(fd: int, pages: Sequence[int], node: int) -> None:
    if set(fmove_pages(fd, pages, [node] * len(pages))) != {node}:
        raise RuntimeError(f"pages did not move to node {node}")


def _median_us(action: Callable[[T], None], operands: Iterable[T]) -> float:
    times = []
    for operand in operands:
        start = perf_counter_ns()
        action(operand)
        times.append(perf_counter_ns() - start)
    return median(times) / 1e3


if __name__ == "__main__":
    _round(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
