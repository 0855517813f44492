"""P1's peer: the round trip of a blocking SEQPACKET pair between two processes on one core."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter_ns
from typing import NoReturn

from benchlib.machine import first_cpu, pin


def round_trip_us(request_bytes: int, reply_bytes: int, rounds: int = 5000, repeats: int = 5) -> float:
    """Microseconds of one round trip: the median over rounds, then over repeats.

    Both processes are plain Python with nothing between them and the system call. ValueError for an
    empty packet, which the other end could not tell from end of file.
    """
    if request_bytes < 1 or reply_bytes < 1:
        raise ValueError("an empty packet looks like end of file: give at least one byte each way")
    with pin(first_cpu()), echoing(request_bytes, reply_bytes) as median_us:
        return median(median_us(rounds) for _ in range(repeats))


@contextmanager
def echoing(request_bytes: int, reply_bytes: int) -> Iterator[Callable[[int], float]]:
    """A second process that answers, until the block ends; yields: rounds -> median microseconds of one.

    It stays on the cores of the caller. Nothing is pinned here.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        _echo(ours, theirs, request_bytes, bytes(reply_bytes))
    try:
        theirs.close()
        with ours:
            yield lambda rounds: _median_ns(ours, request_bytes, reply_bytes, rounds) / 1e3
    finally:
        os.waitpid(child, 0)


def _median_ns(ours: socket.socket, request_bytes: int, reply_bytes: int, rounds: int) -> float:
    request, reply = bytes(request_bytes), bytearray(reply_bytes)
    times = []
    for _ in range(rounds):
        start = perf_counter_ns()
        ours.send(request)
        received = ours.recv_into(reply)
        times.append(perf_counter_ns() - start)
        assert received == reply_bytes
    return median(times)


def _echo(ours: socket.socket, theirs: socket.socket, request_bytes: int, reply: bytes) -> NoReturn:
    try:
        # Only the parent may hold its end, so that its death, however it comes, is our end of file.
        ours.close()
        request = bytearray(request_bytes)
        while theirs.recv_into(request):
            theirs.send(reply)
    finally:
        os._exit(0)
