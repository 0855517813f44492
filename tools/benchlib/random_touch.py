"""P10: a guest writes one byte in every page of 256 MiB that were allocated before, in random order, against a real
guest_memfd."""

from pathlib import Path
from statistics import median
from time import perf_counter

from benchlib import our_mount, real_kvm
from benchlib.figure import Figure, Part, Progress, spread
from memfsd.common.linux import fallocate
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE


def measure(progress: Progress, rounds: int = 5, size_bytes: int = 256 << 20) -> Figure:
    """Ours and the peer's take turns, after one round that is not counted; the same order of pages in both."""
    reason = real_kvm.available() or ""
    gpas = [page << PAGE_SHIFT for page in real_kvm.scattered(size_bytes // PAGE_SIZE)]
    ours_s, real_s, asked, found = [], [], 0, 0
    with our_mount.mounted(size_bytes) as mountpoint:
        for number in range(rounds + 1):
            progress.round(number, rounds)
            elapsed_s, asked, found = _ours(Path(mountpoint, f"memory{number}"), size_bytes, gpas)
            ours_s.append(elapsed_s)
            if not reason:
                real_s.append(real_kvm.random_touch(size_bytes))
    del ours_s[:1], real_s[:1]
    parts: dict[str, Part] = {
        "ours_s": median(ours_s),
        "ours_us_per_page": median(ours_s) / len(gpas) * 1e6,
        "get_pfn_requests": asked,
        "page_map_runs": found,
        "pages": len(gpas),
        "rounds": rounds,
    }
    value = None
    if real_s:
        ratios = [ours / real for ours, real in zip(ours_s, real_s, strict=True)]
        value = median(ratios)
        parts |= {
            "real_us_per_page": median(real_s) / len(gpas) * 1e6,
            **spread(ratios),
        }
    return Figure(
        what="first touch of 256 MiB in random order, after fallocate / the same on a real guest_memfd",
        unit="x",
        target=2.0,
        at_most=True,
        value=value,
        parts=parts,
        reason=reason,
    )


def _ours(path: Path, size_bytes: int, gpas: list[int]) -> tuple[float, int, int]:
    """Seconds, and requests and runs of the page map that it took."""
    our_mount.sealed_file(path, size_bytes)
    with our_mount.write_only(path) as fd:
        fallocate(fd, 0, 0, size_bytes)
    with our_mount.attached(path, size_bytes) as machine:
        (link,) = machine.kvm.pairings.links.values()
        asked, found, vcpu, write = link.request_count, link.found_count, machine.vm.vcpu(0), machine.guest.write
        start = perf_counter()
        for gpa in gpas:
            if write(vcpu, gpa, b"x") is not None:
                raise RuntimeError(f"the guest stopped at {gpa:#x}")
        elapsed_s = perf_counter() - start
        asked, found = link.request_count - asked, link.found_count - found
    path.unlink()
    return elapsed_s, asked, found
