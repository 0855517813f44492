"""T1: ordinary files in blocks of 128 KiB, against the smallest pyfuse3 filesystem that keeps its data in a memfd.

Both daemons and the client run on one core, and take turns in each round.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

from benchlib import minimal_fuse, our_mount
from benchlib.figure import Figure, Part, Progress
from benchlib.machine import first_cpu, pin

BLOCK_BYTES = 128 << 10
Phase = Callable[[int, bytes, int], None]


def measure(progress: Progress, rounds: int = 40, count: int = 64) -> Figure:
    """count blocks in each phase of each of the rounds, after one that is not counted."""
    phases: dict[str, Phase] = {
        "write": _write,
        "overwrite": _write,
        "uncached_read": _read_uncached,
        "cached_read": _read,
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in phases}
    block = os.urandom(BLOCK_BYTES)
    with _files(2 * count * BLOCK_BYTES) as (ours, theirs):
        for number in range(rounds + 1):
            progress.round(number, rounds)
            for name, phase in phases.items():
                # Who comes second finds the processor's caches filled by the other: take turns in that, too.
                first, second = (ours, theirs) if number % 2 else (theirs, ours)
                taken = {fd: _time(phase, fd, block, count) for fd in (first, second)}
                times[name].append((taken[ours], taken[theirs]))
            os.ftruncate(ours, 0)
            os.ftruncate(theirs, 0)
    parts: dict[str, Part] = {}
    ratios = []
    for name, pairs in times.items():
        ratios.append(median(theirs / ours for ours, theirs in pairs[1:]))
        size_mb = count * BLOCK_BYTES / 1e6
        parts[f"{name}_ratio"] = ratios[-1]
        parts[f"{name}_mb_per_s"] = size_mb / median(ours for ours, _ in pairs[1:])
        parts[f"minimal_{name}_mb_per_s"] = size_mb / median(theirs for _, theirs in pairs[1:])
    return Figure(
        what="ordinary files in 128 KiB blocks / smallest pyfuse3 filesystem with a memfd, the lowest of four",
        unit="x",
        target=0.9,
        at_most=False,
        value=min(ratios),
        parts={**parts, "rounds": rounds, "blocks_per_round": count},
    )


@contextmanager
def _files(pool_bytes: int) -> Iterator[tuple[int, int]]:
    """A new file on memfsd and the minimal filesystem's one, open read-write."""
    with ExitStack() as stack:
        stack.enter_context(pin(first_cpu()))
        ours = Path(stack.enter_context(our_mount.mounted(pool_bytes)), "file")
        theirs = stack.enter_context(minimal_fuse.mounted(memfd=True)).file
        fds = []
        for path in (ours, theirs):
            fds.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            stack.callback(os.close, fds[-1])
        yield fds[0], fds[1]


def _time(phase: Phase, fd: int, block: bytes, count: int) -> float:
    start = perf_counter()
    phase(fd, block, count)
    return perf_counter() - start


def _write(fd: int, block: bytes, count: int) -> None:
    for number in range(count):
        os.pwrite(fd, block, number * BLOCK_BYTES)


def _read(fd: int, block: bytes, count: int) -> None:
    for number in range(count):
        if len(os.pread(fd, BLOCK_BYTES, number * BLOCK_BYTES)) != BLOCK_BYTES:
            raise RuntimeError("the file is shorter than what was written")


def _read_uncached(fd: int, block: bytes, count: int) -> None:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    _read(fd, block, count)
