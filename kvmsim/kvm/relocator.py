"""MOVE: private pages go to other frames, as TDH.MEM.PAGE.RELOCATE and SNP_PAGE_MOVE do it.

block -> (every vCPU out) -> copy -> acknowledged ... END: show. Meanwhile the pages are blocked, in their old frames
and then in the new ones, so that whoever takes them away on this side finds them where they are.
"""

from errno import EINVAL
from typing import NamedTuple

from kvmsim.store.link import StoreLink
from memfsd.common import trace
from memfsd.common.intervals import subtract
from memfsd.uapi import messages as m
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import ORDER_2M, Gfn, GfnRange, HostPfn, Pfn, Pgoff, PgoffRange

from .alias import PRIVATE, SHARED
from .mmu.ept import ACCESSED
from .mmu.runs import Run, inside
from .slots.memslots import Memslot
from .vm import Vm

_LEAF = 1 << ORDER_2M


class Piece(NamedTuple):
    """Pages of one MOVE that are contiguous in the file, in the guest, and in both frames. known: those of them that
    were mapped or blocked."""

    gfn: Gfn
    pgoff: Pgoff
    source: Pfn
    target: Pfn
    page_count: int
    known: list[Run]

    def pages(self) -> "list[Piece]":
        """One by one."""
        return [
            Piece(gfn, self.pgoff + at, self.source + at, self.target + at, 1, inside(self.known, gfn, gfn + 1))
            for at, gfn in enumerate(map(Gfn, range(self.gfn, self.gfn + self.page_count)))
        ]


class Relocator:
    """Of one VM."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.hidden: dict[StoreLink, list[GfnRange]] = {}
        """What was mapped before the MOVE whose END is due. Guarded by Mmu.lock."""

    def block(self, link: StoreLink, moves: list[tuple[int, int, int, int]]) -> list[Piece]:
        """Unmap what this VM shows of these pages. With Mmu.lock held, in a bracket."""
        mmu, pieces = self._vm.mmu, list[Piece]()
        hidden = self.hidden[link] = []
        for pgoff, source, target, count in moves:
            for slot, low, high in self._vm.slots[PRIVATE].of_file(link, Pgoff(pgoff), Pgoff(pgoff + count)):
                hidden += [(gfn, gfn + pages) for gfn, _, pages in mmu.epts[PRIVATE].runs(low, high)]
                first, known = slot.pgoff_of(low), mmu.block(low, high)
                ahead = first - pgoff
                mmu.blocked.claim(low, HostPfn(link.base + target + ahead), high - low)  # before anything is copied
                pieces.append(Piece(low, first, Pfn(source + ahead), Pfn(target + ahead), high - low, known))
        return pieces

    def copy(self, link: StoreLink, pieces: list[Piece]) -> list[PgoffRange]:
        """Out of every vCPU's reach: contents to the new frames. What has moved: of a piece with a page that cannot,
        the others."""
        moved: list[PgoffRange] = []
        for piece in pieces:
            if self._copy(link, piece):
                moved.append((piece.pgoff, piece.pgoff + piece.page_count))
                link.memory.forget(piece.source, piece.page_count)
            else:
                link.memory.forget(piece.target, piece.page_count)
                if piece.page_count > 1:
                    moved += self.copy(link, piece.pages())
        return moved

    def _copy(self, link: StoreLink, piece: Piece) -> bool:
        delta = link.base + piece.source - int(piece.gfn)
        if any(pfn - gfn != delta for gfn, pfn, _ in piece.known):
            return False  # the store takes it for another page
        try:
            link.memory.move(piece.source, piece.target, piece.page_count)
        except OSError:
            return False
        return self._relocate(link, piece)

    def _relocate(self, link: StoreLink, piece: Piece) -> bool:
        """False when some of the pages were taken away meanwhile, and perhaps destroyed where they were."""
        blocked, end = self._vm.mmu.blocked, piece.gfn + piece.page_count
        delta = piece.target - int(piece.source)
        with self._vm.mmu.lock:
            if blocked.runs(piece.gfn, end) != piece.known:
                return False
            for (gfn, pfn, count), is_touched in blocked.take(piece.gfn, end):
                blocked.add((gfn, pfn + delta, count), [(gfn, gfn + count)] if is_touched else [])
            link.memory.moved(piece.source, piece.target, piece.page_count)
        return True

    def show(self, link: StoreLink) -> None:
        """Map what was mapped before, where it is now, if it is still wanted and no bracket is open there; else a fault
        does. With Mmu.lock held, after the MOVE's own bracket."""
        mmu = self._vm.mmu
        brackets = [(mmu.range_start, mmu.range_end)] if mmu.in_progress else []
        for low, high in self.hidden.pop(link, []):
            for slot, start, end in self._vm.slots[PRIVATE].visible(low, high):
                if slot.backing.gmem is link:
                    for first, stop in subtract(start, end, [*brackets, *self._covered(start, end)]):
                        self._map(link, slot, first, stop)

    def _covered(self, start: Gfn, end: Gfn) -> list[GfnRange]:
        """What an ordinary slot lies over."""
        if not self._vm.rules.overlay:
            return []
        return [(low, high) for _, low, high in self._vm.slots[SHARED].visible(start, end)]

    def _map(self, link: StoreLink, slot: Memslot, start: Gfn, end: Gfn) -> None:
        blocked = self._vm.mmu.blocked
        for run, is_touched in blocked.take(start, end):
            gfn, pfn, count = run
            try:
                self._map_run(slot, run, is_touched)
            except Refused:  # no table is left
                blocked.add(run, [(gfn, gfn + count)] if is_touched else [])
                continue
            if trace.vm is not None:
                frame = Pfn(pfn - link.base)
                trace.vm.installed(self._vm.name, link.ino, link.conn, gfn, slot.pgoff_of(gfn), frame, count)

    def _map_run(self, slot: Memslot, run: Run, is_touched: bool) -> None:
        """In leaves as large as the slot and the alignment of both sides allow, up to 2 MiB."""
        ept = self._vm.mmu.epts[PRIVATE]
        gfn, pfn, count = run
        end = gfn + count
        while gfn < end:
            left = end - gfn
            if slot.max_order >= ORDER_2M and left >= _LEAF and not (gfn | HostPfn(pfn)) % _LEAF:
                ept.map_large(gfn, pfn, ORDER_2M, writable=slot.writable, accessed=is_touched)
                pages = _LEAF
            else:
                pages = min(left, _LEAF - gfn % _LEAF)
                ept.map_run(gfn, pfn, pages, writable=slot.writable)
                if is_touched:
                    ept.mark_range(gfn, gfn + pages, ACCESSED)
            gfn, pfn = gfn + pages, pfn + pages


def check(move: m.Move, frame_count: int) -> list[tuple[int, int, int, int]]:
    """Its moves. EINVAL (Refused): they are not in order and in the range, or not in the window."""
    at = move.start
    for pgoff, source, target, count in move.moves:
        if pgoff < at or max(source, target) + count > frame_count:
            raise Refused(EINVAL, f"the move of {count} pages at {pgoff:#x} is out of order, or out of the window")
        at = pgoff + count
    if at > move.end:
        raise Refused(EINVAL, f"the moves end at page {at:#x}, after the range of MOVE, which ends at {move.end:#x}")
    return move.moves
