"""Runs: merged where both sides go on, parted where one does not."""

import numpy as np
import pytest

from kvmsim.kvm.mmu.eptentry import PFN_SHIFT
from kvmsim.kvm.mmu.runs import Run, append_leaves, append_run, clip, inside
from memfsd.uapi.units import Gfn, HostPfn


@pytest.mark.parametrize(
    ("more", "merged"),
    [
        ((12, 102, 3), [(10, 100, 5)]),
        ((12, 103, 3), [(10, 100, 2), (12, 103, 3)]),
        ((13, 102, 3), [(10, 100, 2), (13, 102, 3)]),
    ],
    ids=["goes on", "other frames", "a gap"],
)
def test_a_run_that_goes_on_on_both_sides_is_one(more: Run, merged: list[Run]) -> None:
    runs: list[Run] = [(Gfn(10), HostPfn(100), 2)]
    append_run(runs, *more)
    assert runs == merged


def leaves(places: list[int], pfns: dict[int, int], size: int, gfn: int = 0) -> list[Run]:
    entries = np.zeros(16, dtype=np.uint64)
    for place, pfn in pfns.items():
        entries[place] = pfn << PFN_SHIFT | 0x37
    runs: list[Run] = []
    append_leaves(runs, Gfn(gfn), np.array(places, dtype=np.int64), entries, size)
    return runs


def test_leaves_of_a_table_become_runs() -> None:
    assert leaves([1, 2, 3, 5, 6], {1: 7, 2: 8, 3: 20, 5: 22, 6: 23}, 1, gfn=0x100) == [
        (0x101, 7, 2),
        (0x103, 20, 1),
        (0x105, 22, 2),
    ]
    assert leaves([], {}, 1) == []


def test_large_leaves_go_on_when_their_frames_are_a_leaf_apart() -> None:
    assert leaves([0, 1], {0: 512, 1: 1024}, 512) == [(0, 512, 1024)]
    assert leaves([0, 1], {0: 512, 1: 513}, 512) == [(0, 512, 512), (512, 513, 512)]


def test_leaves_join_the_run_before_them() -> None:
    runs: list[Run] = [(Gfn(0), HostPfn(10), 4)]
    entries = np.array([14 << PFN_SHIFT | 0x37], dtype=np.uint64)
    append_leaves(runs, Gfn(4), np.array([0], dtype=np.int64), entries, 1)
    assert runs == [(0, 10, 5)]


@pytest.mark.parametrize(
    ("start", "end", "part"),
    [(0, 99, (10, 100, 5)), (11, 99, (11, 101, 4)), (0, 12, (10, 100, 2)), (12, 13, (12, 102, 1))],
)
def test_the_part_of_a_run_in_a_range(start: int, end: int, part: Run) -> None:
    run = (Gfn(10), HostPfn(100), 5)
    assert clip(run, Gfn(start), Gfn(end)) == part
    assert inside([(Gfn(0), HostPfn(0), 0), run], Gfn(start), Gfn(end))[-1:] == [part]


def test_what_only_touches_a_range_is_not_inside() -> None:
    assert inside([(Gfn(10), HostPfn(100), 5), (Gfn(20), HostPfn(7), 5)], Gfn(15), Gfn(20)) == []
