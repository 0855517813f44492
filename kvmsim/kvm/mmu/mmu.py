"""Both EPTs, the invalidation sequence, and the staleness test of the fault path.

As KVM (virt/kvm/kvm_main.c): BEGIN counts in_progress up and widens one merged range; END moves the sequence,
then counts down. A fault snapshots the sequence before it looks anything up, and is retried when, at the
time of mapping, the sequence has moved or an open invalidation covers what it would map.
"""

from collections.abc import Sequence

import msgspec

from kvmsim.kvm.alias import PRIVATE, SHARED, Alias
from kvmsim.kvm.slots.memslots import Memslot
from memfsd.common import sync, trace
from memfsd.common.intervals import IntervalSet, subtract
from memfsd.uapi.units import Gfn, GfnRange, HostPfn, Pfn, Pgoff

from .blocked import BlockedPages
from .ept import Ept
from .eptentry import MAX_GFN_EPT
from .runs import Run, clip, inside
from .tlb import RANGED_FLUSH_PAGES, Tlb, Translation, tlb_key


class PageFault(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A fault under way: `limit` pages of one segment from gfn may be mapped, if `seq` still holds.

    order: of the largest leaf that slot and open invalidations allow around gfn. `limit` ends where a larger one might
    begin, and all of it lies in one table of the leaf's level.

    A Struct because each fault makes one: a frozen dataclass takes ten times as long.
    """

    gfn: Gfn
    private: bool
    slot: Memslot
    pgoff: Pgoff
    limit: int
    writable: bool
    seq: int
    order: int


class Mmu:
    """`lock` guards everything here and the VM's memslots; every method wants it held."""

    def __init__(self, vm: str = "") -> None:
        """vm: its name, for traces."""
        self._vm = vm
        self.lock = sync.lock("Mmu.lock")
        self.invalidation_ended = sync.condition("Mmu.ended", self.lock)
        """Notified at each END: faults that met an open invalidation go on."""
        self.epts = (Ept(), Ept())
        """By address space: shared, private."""
        self.tlbs: list[Tlb[Translation]] = []
        """Of all vCPUs: filled and flushed with `lock` held."""
        self.blocked = BlockedPages()
        """Private pages that were unmapped and keep their contents: those under an overlay."""
        self.invalidate_seq = 0
        self.in_progress = 0
        self.range_start = Gfn(0)
        self.range_end = Gfn(0)
        self.fault_count = 0
        self.retry_count = 0
        self.zapped_count = 0
        self.remote_tlb_flush_count = 0
        self.remote_tlb_flush_request_count = 0

    def invalidate_begin(self, start: Gfn, end: Gfn) -> None:
        """Open a bracket on GFNs [start, end): nothing in it is mapped until its END (R7)."""
        if trace.vm is not None:
            trace.vm.bracket_opened(start, end)
        assert start < end
        self.in_progress += 1
        if self.in_progress == 1:
            self.range_start, self.range_end = start, end
        else:
            self.range_start, self.range_end = min(self.range_start, start), max(self.range_end, end)

    def invalidate_end(self) -> None:
        if trace.vm is not None:
            trace.vm.bracket_closed()
        self.invalidate_seq += 1
        self.in_progress -= 1
        assert self.in_progress >= 0, "END without BEGIN"
        self.invalidation_ended.notify_all()

    def is_stale(self, page_fault: PageFault, count: int) -> bool:
        """mmu_invalidate_retry_gfn(), for the run that would be mapped, of either alias."""
        if page_fault.seq != self.invalidate_seq:
            return True
        return self.in_progress > 0 and page_fault.gfn < self.range_end and self.range_start < page_fault.gfn + count

    def clear_of_brackets(self, gfn: Gfn, start: Gfn, end: Gfn) -> GfnRange:
        """The part of [start, end) around gfn that no open invalidation covers; all of it when gfn is covered."""
        if self.in_progress:
            if gfn < self.range_start:
                end = min(end, self.range_start)
            elif gfn >= self.range_end:
                start = max(start, self.range_end)
        return start, end

    @trace.hot(
        trace.Side.VM,
        before=(
            trace.Instrument.install_begun,
            lambda to, _, page_fault, pfn, count: to.install_begun(page_fault.gfn, pfn, count),
        ),
        after=(
            trace.Instrument.installed,
            lambda to, is_mapped, mmu, page_fault, pfn, count: (
                mmu.trace_installed(to, page_fault, pfn, min(count, page_fault.limit)) if is_mapped else None
            ),
        ),
    )
    def install(self, page_fault: PageFault, pfn: HostPfn, count: int) -> bool:
        """Map the run, its first page as accessed; False when the fault is stale and the fault must be retried.

        ENOMEM (Refused) when the EPT has no table left.
        """
        gfn = page_fault.gfn
        if count > page_fault.limit:
            count = page_fault.limit
        # As a rule nothing is open and nothing has moved: then it needs no call to know.
        if (self.in_progress or page_fault.seq != self.invalidate_seq) and self.is_stale(page_fault, count):
            self.retry_count += 1
            return False
        ept = self.epts[page_fault.private]
        if self.blocked:
            self.blocked.claim(gfn, pfn, count)
        if count == 1:
            ept.map_page(gfn, pfn, writable=page_fault.writable, uncached=page_fault.slot.uncached)
        else:
            uncached = page_fault.slot.uncached
            ept.map_run(gfn, pfn, count, writable=page_fault.writable, accessed=1, uncached=uncached)
        self.fault_count += 1
        return True

    def install_large(self, page_fault: PageFault, pfn: HostPfn, count: int, order: int) -> bool:
        """`install` in whole leaves of this order, of a run that begins at the leaf around the fault's page."""
        if trace.vm is not None:
            trace.vm.install_large_begun(page_fault.gfn, pfn, count, order)
        assert 0 < order <= page_fault.order
        ahead = page_fault.gfn & (1 << order) - 1
        run = msgspec.structs.replace(page_fault, gfn=page_fault.gfn - ahead, limit=page_fault.limit + ahead)
        count = min(count, run.limit) >> order << order
        assert count
        if self.is_stale(run, count):
            self.retry_count += 1
            return False
        if self.blocked:
            self.blocked.claim(run.gfn, pfn, count)
        for at in range(0, count, 1 << order):
            self.epts[run.private].map_large(
                run.gfn + at, pfn + at, order, writable=run.writable, accessed=not at, uncached=run.slot.uncached
            )
        self.fault_count += 1
        if trace.vm is not None:
            self.trace_installed(trace.vm, page_fault, pfn, count, ahead)
        return True

    def trace_installed(
        self, to: trace.Instrument, page_fault: PageFault, pfn: HostPfn, page_count: int, ahead: int = 0
    ) -> None:
        """The run begins `ahead` pages before the fault's."""
        gmem, base = page_fault.slot.backing.gmem, page_fault.slot.backing.base
        if gmem is not None:
            gfn, pgoff = page_fault.gfn - ahead, page_fault.pgoff - ahead
            to.installed(self._vm, gmem.ino, gmem.conn, gfn, pgoff, Pfn(pfn - base), page_count)

    def split_leaves(self, ranges: list[GfnRange]) -> None:
        """No private leaf reaches over an edge of these ranges from now on; no translation changes. ENOMEM (Refused),
        and nothing was split, when there are not tables enough."""
        self.epts[PRIVATE].split_at([edge for range_ in ranges for edge in range_])

    def zap(self, start: Gfn, end: Gfn, *, private: bool) -> list[Run]:
        """Remove leaves of [start, end), also from the TLBs; runs (gfn, pfn, pages) that it held, blocked ones too.

        An access that found its translation before may still use it: frames are reused only after a kick.
        """
        runs = self._unmap(start, end, private)
        if not private or not self.blocked:
            return runs
        mapped = IntervalSet((gfn, gfn + count) for gfn, _, count in runs)
        for run, _ in self.blocked.take(start, end):
            # What came back from under an overlay is blocked no more, but still known.
            at = run[0]
            for low, high in [*mapped.within(at, at + run[2]), (run[0] + run[2], end)]:
                if at < low:
                    runs.append(clip(run, at, low))
                at = high
        return runs

    def _unmap(self, start: Gfn, end: Gfn, private: bool) -> list[Run]:
        if trace.vm is not None:
            trace.vm.zap_begun(start, end, private)
        removed = self.epts[private].zap(start, end)
        page_count = sum(count for _, _, count in removed)
        self.zapped_count += page_count
        if trace.vm is not None:
            trace.vm.flush_begun(self._vm)
        self._flush(removed, page_count, private)
        if trace.vm is not None and private:
            trace.vm.zapped(self._vm, start, end, [])
        # More than was asked for goes when a large leaf cannot be split. Those pages are the slot's as before: private
        # ones keep their contents, and lose them when the slot or the store loses the pages.
        runs = inside(removed, start, end)
        if private and sum(count for _, _, count in runs) != page_count:
            for run in [*inside(removed, Gfn(0), start), *inside(removed, end, MAX_GFN_EPT)]:
                self.blocked.add(run, [(run[0], Gfn(run[0] + run[2]))])
        return runs

    def protect(self, start: Gfn, end: Gfn) -> None:
        """The next write to a shared page of [start, end) faults."""
        self.epts[SHARED].protect(start, end)
        self._flush([(start, 0, end - start)], end - start, private=False)

    def block(self, start: Gfn, end: Gfn) -> list[Run]:
        """A zap of private leaves whose pages keep their contents, as TDH.MEM.RANGE.BLOCK; all that is blocked now."""
        touched = self.epts[PRIVATE].touched(start, end)
        for run in self._unmap(start, end, True):
            self.blocked.add(run, touched)
        return self.blocked.runs(start, end)

    def age(self, start: Gfn, end: Gfn) -> None:
        """EVICT: private pages that no vCPU has used since the last time are blocked. The others stay, and it is
        forgotten that they were used."""
        ept = self.epts[PRIVATE]
        used = ept.accessed(start, end)
        ept.age(start, end)
        self._flush([(low, 0, high - low) for low, high in used], sum(high - low for low, high in used), private=True)
        for low, high in subtract(start, end, used):
            self.block(low, high)

    def exportable(self, start: Gfn, end: Gfn) -> list[Run]:
        """Private pages that are blocked and not mapped again since: what no vCPU reaches, and KVM knows."""
        mapped = [(gfn, gfn + count) for gfn, _, count in self.epts[PRIVATE].runs(start, end)]
        return [
            clip(run, low, high)
            for run in self.blocked.runs(start, end)
            for low, high in subtract(run[0], run[0] + run[2], mapped)
        ]

    def held_private(self, start: Gfn, end: Gfn) -> list[Run]:
        """Private pages of [start, end) with a frame, mapped or blocked."""
        mapped = self.epts[PRIVATE].runs(start, end)
        return [*mapped, *self.exportable(start, end)] if self.blocked else [*mapped]

    def zap_untouched(self, start: Gfn, end: Gfn, *, shared: Sequence[GfnRange] = ()) -> list[GfnRange]:
        """RECLAIM: remove private leaves that no walk has marked accessed, and so are in no TLB; the ranges that
        stay, those under an overlay among them. shared: the parts of it whose shared leaves map the file's frames,
        too, and are treated alike."""
        if trace.vm is not None:
            trace.vm.zap_untouched_begun(start, end)
        stay = self._zap_untouched(PRIVATE, start, end)
        if shared or self.blocked:
            more = [kept for low, high in shared for kept in self._zap_untouched(SHARED, low, high)]
            stay = IntervalSet([*stay, *more, *self.blocked.take_untouched(start, end)]).within(start, end)
        if trace.vm is not None:
            trace.vm.zapped(self._vm, start, end, stay)
        return stay

    def _zap_untouched(self, alias: Alias, start: Gfn, end: Gfn) -> list[GfnRange]:
        ept = self.epts[alias]
        self.zapped_count += sum(count for _, _, count in ept.zap_untouched(start, end))
        return ept.touched(start, end)

    def _flush(self, removed: Sequence[tuple[Gfn, int, int]], page_count: int, private: bool) -> None:
        """As kvm_flush_remote_tlbs_range(): a small range drops its own translations only; nothing removed, nothing
        flushed."""
        self.remote_tlb_flush_request_count += 1
        if not removed:
            return
        self.remote_tlb_flush_count += 1
        for tlb in self.tlbs:
            if page_count <= RANGED_FLUSH_PAGES:
                pages = (range(gfn, gfn + count) for gfn, _, count in removed)
                tlb.flush_keys(tlb_key(gfn, not private) for run in pages for gfn in run)
            else:
                tlb.flush()
