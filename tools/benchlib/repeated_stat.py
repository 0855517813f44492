"""P5b: stat(2) of an unchanged ordinary file, against tmpfs: the kernel answers both from its caches."""

import os
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from benchlib import our_mount
from benchlib.figure import Figure, Progress
from benchlib.machine import first_cpu, pin

_TMPFS = "/dev/shm"


def measure(progress: Progress, rounds: int = 15, count: int = 10_000) -> Figure:
    """count stats on each side in each of the rounds, after one that is not counted."""
    pairs = []
    with pin(first_cpu()), our_mount.mounted(1 << 20) as mountpoint, tempfile.TemporaryDirectory(dir=_TMPFS) as tmpfs:
        ours, theirs = Path(mountpoint, "file"), Path(tmpfs, "file")
        for path in (ours, theirs):
            path.write_bytes(b"unchanged")
        for number in range(rounds + 1):
            progress.round(number, rounds)
            pairs.append((_stat_ns(ours, count), _stat_ns(theirs, count)))
    del pairs[0]
    return Figure(
        what="repeated stat of an unchanged ordinary file / the same on tmpfs",
        unit="x",
        target=3.0,
        at_most=True,
        value=median(ours / theirs for ours, theirs in pairs),
        parts={
            "stat_ns": median(ours for ours, _ in pairs),
            "tmpfs_stat_ns": median(theirs for _, theirs in pairs),
            "rounds": rounds,
            "stats_per_round": count,
        },
    )


def _stat_ns(path: Path, count: int) -> float:
    name = os.fspath(path)
    start = perf_counter()
    for _ in range(count):
        os.stat(name)
    return (perf_counter() - start) / count * 1e9
