"""What the store calls: this VM's half of the "function pointers" (link.Callbacks), on up threads.

A callback: begin -> zap and flush under Mmu.lock -> kick every vCPU -> acknowledge; end -> sequence moves. MOVE is a
begin that copies before it acknowledges. None of it makes a down-call.
"""

import heapq
import os
from collections.abc import Iterator

from kvmsim.memory.memory import OpenWindow
from kvmsim.store.link import StoreLink
from memfsd.common import trace
from memfsd.common.intervals import subtract
from memfsd.uapi import messages as m
from memfsd.uapi.errors import PeerLost
from memfsd.uapi.limits import ACK_DEADLINE_S, MAX_RUNS_PER_REPORT
from memfsd.uapi.proof import SECRET_BYTES
from memfsd.uapi.units import PGOFF_END, Gfn, GfnRange, Pfn, Pgoff, PgoffRange

from .alias import PRIVATE, SHARED
from .mmu.ept import MAX_GFN_EPT
from .mmu.runs import Run
from .relocator import Relocator, check
from .slots.backing import Gmem
from .slots.memslots import Segment
from .swap import Swap
from .unmapper import Unmapper
from .vm import Vm

_TAKES_AWAY = frozenset({m.Reason.PUNCH, m.Reason.TRUNCATE, m.Reason.POISON, m.Reason.REVOKE})
"""Pages that are out are holes after it, too."""
_FIRST_PAGE = Pgoff(0)
_SWAPS = frozenset({m.Reason.SWAP_OUT, m.Reason.EVICT})

_Shown = tuple[Gfn, Pgoff, int]
"""(first GFN, page of the file, pages)."""


class Notifier:
    """Invalidations by the store, and its questions."""

    def __init__(self, vm: Vm, unmapper: Unmapper, open_window: OpenWindow, operations: frozenset[m.Kind]) -> None:
        self._vm = vm
        self.open_window = open_window
        self._unmapper = unmapper
        self._swap = Swap(vm)
        self._relocator = Relocator(vm)
        self.operations = operations
        self.abi = vm.abi
        self.secret = os.urandom(SECRET_BYTES)
        self._open: dict[StoreLink, GfnRange] = {}
        """GFN range of each link's open invalidation. Guarded by Mmu.lock."""
        self.changing: dict[Gmem, PgoffRange] = {}
        """File pages [start, end) of the slot that is being made or deleted: the store may not know yet what is shown,
        or what is not. Guarded by Mmu.lock."""

    def on_begin(self, link: StoreLink, begin: m.InvalidateBegin) -> list[PgoffRange]:
        """What is kept. ENOMEM (Refused), and nothing was done: a leaf over an edge of the range cannot be split."""
        mmu = self._vm.mmu
        kept: list[PgoffRange] = []
        taken: list[Run] = []
        with mmu.lock:
            ranges = self._shown(link, begin.start, begin.end)
            if begin.reason is m.Reason.PUNCH and (begin.start | begin.end) & (1 << link.order) - 1:
                # kvm_split_cross_boundary_leafs(): all that has to be split is, or nothing is done.
                mmu.split_leaves([(gfn, Gfn(gfn + count)) for gfn, _, count in ranges])
            if self._vm.exports.by_gfn and begin.reason in _TAKES_AWAY:
                self._vm.exports.forget(link, Pgoff(begin.start), Pgoff(begin.end))
            if not ranges:
                return []
            self._open_bracket(link, ranges)
            for gfn, pgoff, count in ranges:
                if begin.reason is m.Reason.RECLAIM:
                    touched = mmu.zap_untouched(gfn, gfn + count, shared=self._shared(link, pgoff, pgoff + count))
                    kept += [(pgoff + start - gfn, pgoff + end - gfn) for start, end in touched]
                elif begin.reason in _SWAPS:
                    kept += self._block(gfn, pgoff, count, only_idle=begin.reason is m.Reason.EVICT)
                else:
                    for alias in self._vm.rules.zapped:
                        runs = mmu.zap(gfn, gfn + count, private=bool(alias))
                        taken += [run for run in runs if link.base <= run[1] < link.base + link.frame_count]
        self._unmapper.kick_all()
        # Without Mmu.lock: until the acknowledgement the frames are nobody else's.
        for _, pfn, count in taken:
            link.memory.forget(pfn - link.base, count)
        if trace.vm is not None:
            shown = [(gfn, gfn + count) for gfn, _, count in ranges]
            trace.vm.taken_back(self._vm.name, link.ino, Pgoff(begin.start), Pgoff(begin.end), begin.reason.name, shown)
        return _at_most(kept, MAX_RUNS_PER_REPORT)

    def _block(self, gfn: Gfn, pgoff: Pgoff, count: int, *, only_idle: bool) -> list[PgoffRange]:
        """Pages that may leave are blocked; the others: in use, or not known here, as nothing of them was mapped."""
        mmu, end = self._vm.mmu, Gfn(gfn + count)
        if only_idle:
            mmu.age(gfn, end)
        else:
            mmu.block(gfn, end)
        leaving = [(run[0], run[0] + run[2]) for run in mmu.exportable(gfn, end)]
        return [(pgoff + low - gfn, pgoff + high - gfn) for low, high in subtract(gfn, end, leaving)]

    def on_swap_out(self, link: StoreLink, pages: list[tuple[Pgoff, Pfn]]) -> tuple[list[bytes], list[Pgoff]]:
        return self._swap.out(link, pages)

    def on_swap_in(self, link: StoreLink, pgoff: Pgoff, pfn: Pfn, blobs: list[bytes]) -> None:
        self._swap.bring_in(link, pgoff, pfn, blobs)

    def on_move(self, link: StoreLink, move: m.Move) -> list[PgoffRange]:
        moves = check(move, link.frame_count)
        with self._vm.mmu.lock:
            ranges = self._shown(link, move.start, move.end)
            if ranges:
                self._open_bracket(link, ranges)
            pieces = self._relocator.block(link, moves)
        self._unmapper.kick_all()
        moved = self._relocator.copy(link, pieces)
        return [
            (Pgoff(low), Pgoff(high))
            for pgoff, _, _, count in moves
            for low, high in subtract(pgoff, pgoff + count, moved)
        ]

    def _shown(self, link: StoreLink, start: int, end: int) -> list[_Shown]:
        """What this VM shows of file pages [start, end), once no slot is being deleted. With Mmu.lock held."""
        if not self._vm.mmu.invalidation_ended.wait_for(lambda: not self._unmapper.is_deleting, ACK_DEADLINE_S):
            raise PeerLost("a memslot of this VM was not deleted in time")
        return self._gfn_ranges(link, Pgoff(start), Pgoff(end))

    def _open_bracket(self, link: StoreLink, ranges: list[_Shown]) -> None:
        """Around all of them. With Mmu.lock held."""
        low, high = min(gfn for gfn, _, _ in ranges), max(gfn + count for gfn, _, count in ranges)
        if trace.vm is not None:
            trace.vm.store_invalidates(self._vm.name, low, high)
        self._vm.mmu.invalidate_begin(low, high)
        self._open[link] = low, high

    def on_end(self, link: StoreLink, end: m.InvalidateEnd) -> None:
        with self._vm.mmu.lock:
            if self._open.pop(link, None) is not None:
                self._vm.mmu.invalidate_end()
            if link in self._relocator.hidden:
                self._relocator.show(link)
        link.seq = end.seq

    def on_report(self, link: StoreLink, cursor: Gfn) -> m.ReportReply:
        slots: list[tuple[int, int, int, int]] = []
        mappings: list[tuple[int, int, int]] = []
        stop = MAX_GFN_EPT
        with self._vm.mmu.lock:
            changing = self.changing.get(link, (0, 0))
            for slot, start, end in self.segments(link):
                if end <= cursor:
                    continue
                if len(slots) >= MAX_RUNS_PER_REPORT:
                    stop = start
                    break
                start = max(start, cursor)
                slots.append((slot.id, start, slot.pgoff_of(start), end - start))
            # Also what no slot shows: it may not be there.
            for gfn, pfn, count in self._runs(min(cursor, stop), stop):
                if not link.base <= pfn < link.base + link.frame_count:
                    continue
                if len(mappings) >= MAX_RUNS_PER_REPORT:
                    stop = gfn
                    break
                mappings.append((gfn, pfn - link.base, count))
        slots = [slot for slot in slots if slot[1] < stop]
        return m.ReportReply(slots, mappings, link.seq, changing, stop if stop < MAX_GFN_EPT else -1)

    def on_lost(self, link: StoreLink, why: str) -> None:
        mmu = self._vm.mmu
        with mmu.lock:
            self._relocator.hidden.pop(link, None)
            if self._open.pop(link, None) is not None:
                mmu.invalidate_end()
            self._vm.exports.drop(link)
            segments = [(start, end) for _, start, end in self.segments(link)]
            shared = self._shared(link)
        self._unmapper.zap(segments, private=True)
        self._unmapper.zap(shared, private=False)

    def segments(self, link: StoreLink) -> list[Segment]:
        """Visible segments of the link's slots, by GFN."""
        return sorted(self._vm.slots[PRIVATE].of_file(link), key=lambda segment: segment[1])

    def _shared(self, link: StoreLink, start: Pgoff = _FIRST_PAGE, end: Pgoff = PGOFF_END) -> list[GfnRange]:
        """Where shared leaves map the window's frames for file pages [start, end). With Mmu.lock held."""
        return [(low, high) for _, low, high in self._vm.slots[SHARED].of_file(link, start, end)]

    def _runs(self, start: Gfn, end: Gfn) -> Iterator[Run]:
        """What is mapped of [start, end) in an alias that may show a window, by GFN. With Mmu.lock held."""
        return heapq.merge(*(self._vm.mmu.epts[alias].runs(start, end) for alias in self._vm.rules.zapped))

    def _gfn_ranges(self, link: StoreLink, start: Pgoff, end: Pgoff) -> list[tuple[Gfn, Pgoff, int]]:
        """Where file pages [start, end) show: (gfn, pgoff, pages); nothing if a store that lies says end <= start."""
        if end <= start:
            return []
        return [
            (low, slot.pgoff_of(low), high - low)
            for slot, low, high in self._vm.slots[PRIVATE].of_file(link, start, end)
        ]


def _at_most(ranges: list[PgoffRange], count: int) -> list[PgoffRange]:
    """Keeping too much is safe, so the last range may widen to cover what does not fit in a packet."""
    if len(ranges) <= count:
        return ranges
    return [*ranges[: count - 1], (ranges[count - 1][0], ranges[-1][1])]
