"""P5: requests that reach the daemon, a second, against the smallest possible pyfuse3 filesystem.

Both daemons and the client run on one core, and take turns.
"""

from pathlib import Path
from statistics import median

from benchlib import minimal_fuse, our_mount
from benchlib.figure import Figure, Progress
from benchlib.machine import first_cpu, pin
from benchlib.minimal_fuse import getattr_rate, rejected_write_rate
from memfsd.uapi.units import PAGE_SIZE


def measure(progress: Progress, starts: int = 7, rounds: int = 8, count: int = 300) -> Figure:
    """count requests of each kind to each daemon in each of the rounds, after one that is not counted.

    Both daemons are restarted several times: where a process comes to lie in memory is worth ten per cent.
    """
    stat_pairs, write_pairs = [], []
    for start in range(starts):
        with pin(first_cpu()), our_mount.mounted(1 << 20) as mountpoint, minimal_fuse.mounted() as minimal:
            file = our_mount.sealed_file(Path(mountpoint, "memory"), PAGE_SIZE)
            for number in range(rounds + 1):
                progress.round(start * rounds + number, starts * rounds)
                # Who comes second finds the processor's caches filled by the other: take turns in that, too.
                order = (file, minimal.file) if number % 2 else (minimal.file, file)
                stats = {path: getattr_rate(path, count, 1) for path in order}
                writes = {path: rejected_write_rate(path, count, 1) for path in order}
                if number > 0:
                    stat_pairs.append((stats[file], stats[minimal.file]))
                    write_pairs.append((writes[file], writes[minimal.file]))
    stat_ratio, write_ratio = _ratio(stat_pairs), _ratio(write_pairs)
    return Figure(
        what="getattr and rejected write a second / smallest pyfuse3 filesystem, the lower of the two",
        unit="x",
        target=0.9,
        at_most=False,
        value=min(stat_ratio, write_ratio),
        parts={
            "getattr_ratio": stat_ratio,
            "getattr_per_s": median(ours for ours, _ in stat_pairs),
            "minimal_getattr_per_s": median(theirs for _, theirs in stat_pairs),
            "rejected_write_ratio": write_ratio,
            "rejected_write_per_s": median(ours for ours, _ in write_pairs),
            "minimal_rejected_write_per_s": median(theirs for _, theirs in write_pairs),
            "starts": starts,
            "rounds_per_start": rounds,
            "requests_per_round": count,
        },
    )


def _ratio(pairs: list[tuple[float, float]]) -> float:
    return median(ours / theirs for ours, theirs in pairs)
