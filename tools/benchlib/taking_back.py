"""P4: a punch of private memory that the guest has touched, until it is free, against a real guest_memfd."""

import os
from pathlib import Path
from statistics import median
from time import perf_counter

from benchlib import our_mount, real_kvm
from benchlib.figure import Figure, Part, Progress, spread
from memfsd.common.linux import punch_hole
from memfsd.uapi.units import PAGE_SIZE


def measure(progress: Progress, rounds: int = 5, size_bytes: int = 1 << 30) -> Figure:
    """Ours and the peer's take turns, after one round that is not counted.

    The peer's memory is mapped by its guest and by its process, as ours is: kvmsim's guest reaches it through a mapping
    of the window, so that both calls have page table entries of a process to take away.
    """
    reason = real_kvm.available() or ""
    ours_s, real_s = [], []
    with our_mount.mounted(size_bytes) as mountpoint:
        for number in range(rounds + 1):
            progress.round(number, rounds)
            ours_s.append(_ours(Path(mountpoint, f"memory{number}"), size_bytes))
            if not reason:
                real_s.append(real_kvm.punch(size_bytes, host_mapped=True))
    del ours_s[:1], real_s[:1]
    parts: dict[str, Part] = {"ours_s": median(ours_s), "rounds": rounds, "pages": size_bytes // PAGE_SIZE}
    value = None
    if real_s:
        ratios = [ours / real for ours, real in zip(ours_s, real_s, strict=True)]
        value = median(ratios)
        parts |= {"real_s": median(real_s), **spread(ratios)}
    return Figure(
        what="punch of 1 GiB that the guest has touched, acknowledged and freed / of a real, mapped guest_memfd",
        unit="x",
        target=0.6,
        at_most=True,
        value=value,
        parts=parts,
        reason=reason,
    )


def _ours(path: Path, size_bytes: int) -> float:
    """Seconds of the system call, which returns when the VM has acknowledged and the frames are free."""
    our_mount.sealed_file(path, size_bytes)
    with our_mount.attached(path, size_bytes) as machine:
        stopped = machine.guest.touch(machine.vm.vcpu(0), 0, size_bytes)
        if stopped is not None:
            raise RuntimeError(f"the guest stopped: {stopped}")
        fd = os.open(path, os.O_WRONLY)
        try:
            start = perf_counter()
            punch_hole(fd, 0, size_bytes)
            elapsed_s = perf_counter() - start
            if os.fstat(fd).st_blocks:
                raise RuntimeError("the file holds memory after a punch of all of it")
        finally:
            os.close(fd)
    path.unlink()
    return elapsed_s
