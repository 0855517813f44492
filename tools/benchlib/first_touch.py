"""P2: a guest writes one byte in every 4 KiB page of its private memory, in order, against a real guest_memfd."""

from pathlib import Path
from statistics import median
from time import perf_counter

from benchlib import our_mount, real_kvm
from benchlib.figure import Figure, Part, Progress, spread
from memfsd.uapi.units import PAGE_SIZE


def measure(progress: Progress, rounds: int = 5, size_bytes: int = 1 << 30) -> Figure:
    """Ours and the peer's take turns, after one round that is not counted: a nested machine's memory gets
    faster once its host has backed it. A fresh file, pairing and VM each time."""
    reason = real_kvm.available() or ""
    ours_s, real_s, request_count = [], [], 0
    with our_mount.mounted(size_bytes) as mountpoint:
        for number in range(rounds + 1):
            progress.round(number, rounds)
            elapsed_s, request_count = _ours(Path(mountpoint, f"memory{number}"), size_bytes)
            ours_s.append(elapsed_s)
            if not reason:
                real_s.append(real_kvm.first_touch(size_bytes))
    del ours_s[:1], real_s[:1]
    page_count = size_bytes // PAGE_SIZE
    parts: dict[str, Part] = {
        "ours_s": median(ours_s),
        "ours_us_per_page": median(ours_s) / page_count * 1e6,
        "get_pfn_requests": request_count,
        "pages": page_count,
        "rounds": rounds,
    }
    value = None
    if real_s:
        ratios = [ours / real for ours, real in zip(ours_s, real_s, strict=True)]
        value = median(ratios)
        parts |= {
            "real_s": median(real_s),
            "real_us_per_page": median(real_s) / page_count * 1e6,
            **spread(ratios),
        }
    return Figure(
        what="guest's first touch of 1 GiB in order / the same on a real guest_memfd",
        unit="x",
        target=0.8,
        at_most=True,
        value=value,
        parts=parts,
        reason=reason,
    )


def _ours(path: Path, size_bytes: int) -> tuple[float, int]:
    """Seconds, and GET_PFN requests that it took."""
    our_mount.sealed_file(path, size_bytes)
    with our_mount.attached(path, size_bytes) as machine:
        (link,) = machine.kvm.pairings.links.values()
        before = link.request_count
        start = perf_counter()
        stopped = machine.guest.touch(machine.vm.vcpu(0), 0, size_bytes)
        elapsed_s = perf_counter() - start
        if stopped is not None:
            raise RuntimeError(f"the guest stopped: {stopped}")
        request_count = link.request_count - before
    path.unlink()
    return elapsed_s, request_count
