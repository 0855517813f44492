"""Lists of runs: pages that are contiguous in GFNs and in frames, merged as they are found."""

import numpy as np
from numpy.typing import NDArray

from memfsd.uapi.units import Gfn, HostPfn

from .eptentry import PFN_SHIFT, Words

Run = tuple[Gfn, HostPfn, int]
"""(gfn, pfn, page_count): contiguous on both sides."""


def append_run(runs: list[Run], gfn: Gfn, pfn: HostPfn, count: int) -> None:
    if runs:
        last_gfn, last_pfn, last_count = runs[-1]
        if last_gfn + last_count == gfn and last_pfn + last_count == pfn:
            runs[-1] = (last_gfn, last_pfn, last_count + count)
            return
    runs.append((gfn, pfn, count))


def append_leaves(runs: list[Run], gfn: Gfn, present: NDArray[np.int64], entries: Words, size: int) -> None:
    """Append the leaves, of `size` pages each, at these places of a span that begins at gfn."""
    if not present.size:
        return
    pfns = (entries[present] >> np.uint64(PFN_SHIFT)).astype(np.int64)
    breaks = (present[1:] != present[:-1] + 1) | (pfns[1:] != pfns[:-1] + size)
    starts = np.concatenate(([0], breaks.nonzero()[0] + 1))
    counts = np.diff(starts, append=present.size) * size
    found = zip((present[starts] * size + gfn).tolist(), pfns[starts].tolist(), counts.tolist(), strict=True)
    append_run(runs, *next(found))
    runs.extend(found)


def clip(run: Run, start: Gfn, end: Gfn) -> Run:
    """The part of a run inside [start, end), which it meets."""
    gfn, pfn, count = run
    low, high = max(gfn, start), min(gfn + count, end)
    assert low < high, (run, start, end)
    return low, pfn + low - gfn, high - low


def inside(runs: list[Run], start: Gfn, end: Gfn) -> list[Run]:
    """What of these runs lies in GFNs [start, end)."""
    return [clip(run, start, end) for run in runs if run[0] < end and start < run[0] + run[2]]
