"""P11: p99 of stat(2) of a sealed file, which reaches the daemon, while the longest steps of the store run / alone.

The longest steps are those of a file of very many extents: its holes are filled, memfs check looks at it, all of it is
punched, and what was filled again goes with the file. Each is done in parts with Service.lock held.
"""

import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

from benchlib import our_mount
from benchlib.figure import Figure, Progress
from memfsd.common.linux import fallocate, punch_hole
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE


def measure(progress: Progress, rounds: int = 3, count: int = 2_000, extents: int = 20_000) -> Figure:
    """count stats alone in each of the rounds, then as many as there is time for; a file of so many extents."""
    alone_us, beside_us, longest_us, ratios, seen = [], [], [], [], 0
    size = 2 * extents << PAGE_SHIFT
    with our_mount.mounted(2 * size) as mountpoint:
        watched = our_mount.sealed_file(Path(mountpoint, "watched"), PAGE_SIZE)
        fd = os.open(watched, os.O_PATH)
        for number in range(rounds):
            progress.round(number, rounds)
            comb = _comb(Path(mountpoint, f"comb{number}"), extents)
            alone = sorted(_stat_us(fd) for _ in range(count))
            child = os.fork()
            if child == 0:
                os._exit(_long_steps(mountpoint, comb, size))
            beside = []
            while os.waitpid(child, os.WNOHANG) == (0, 0):
                beside.append(_stat_us(fd))
            beside.sort()
            seen += len(beside)
            alone_us.append(_p99(alone))
            beside_us.append(_p99(beside))
            longest_us.append(beside[-1])
            ratios.append(_p99(beside) / _p99(alone))
        os.close(fd)
    return Figure(
        what="p99 of stat while the longest steps of the store run / alone",
        unit="x",
        target=10.0,
        at_most=True,
        value=median(ratios),
        parts={
            "alone_p99_us": median(alone_us),
            "beside_p99_us": median(beside_us),
            "beside_longest_us": max(longest_us),
            "extents": extents,
            "stats_beside": seen,
            "rounds": rounds,
        },
    )


def _comb(path: Path, extents: int) -> Path:
    """A sealed file of which every second page is allocated."""
    our_mount.sealed_file(path, 2 * extents << PAGE_SHIFT)
    with our_mount.write_only(path) as fd:
        for page in range(0, 2 * extents, 2):
            fallocate(fd, 0, page << PAGE_SHIFT, PAGE_SIZE)
    return path


def _long_steps(mountpoint: Path, comb: Path, size: int) -> int:
    try:
        check = [str(Path(sys.executable).with_name("memfs")), "check", str(mountpoint)]
        with our_mount.write_only(comb) as fd:
            fallocate(fd, 0, 0, size)
            subprocess.run(check, stdout=subprocess.DEVNULL, check=True)
            punch_hole(fd, 0, size)
            fallocate(fd, 0, 0, size)
        comb.unlink()
    except (OSError, subprocess.SubprocessError) as error:
        print(f"bench: P11: {error}", file=sys.stderr)
        return 1
    return 0


def _stat_us(fd: int) -> float:
    start = perf_counter()
    os.fstat(fd)
    return (perf_counter() - start) * 1e6


def _p99(ordered: list[float]) -> float:
    return ordered[len(ordered) * 99 // 100]
