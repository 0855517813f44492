"""The fault path, and translation.

A fault, out and back: fault -> page_fault (slot, page, seq) -> get_pfn -> install: stale? retry : mapped -> TLB.
"""

import errno

import msgspec

from kvmsim.memory.memory import MemoryRun
from memfsd.common import trace
from memfsd.uapi import messages as m
from memfsd.uapi.errors import PeerLost, Refused, errno_name
from memfsd.uapi.limits import ANSWER_DEADLINE_S, MAX_AHEAD_PAGES
from memfsd.uapi.units import ORDER_2M, ORDER_4K, PAGE_SHIFT, PAGE_SIZE, Gfn, HostPfn, Pgoff

from .abi.guest_memfd import other_alias
from .alias import PRIVATE, SHARED, Alias
from .exits import Exit, MemoryErrorExit
from .mmu.ept import ACCESSED, DIRTY, PFN_SHIFT, entry_writable
from .mmu.mmu import PageFault
from .mmu.tlb import Translation, tlb_key
from .region import SlotFlag
from .slots.backing import Gmem
from .vcpu import Vcpu
from .vm import Vm

_MAX_RETRIES = 1 << 16

_Frames = tuple[HostPfn, int, int]
"""(frame of the VM, count, order) of a run of leaves of that order; it begins at the leaf around the fault's page."""


class Faults:
    """What a vCPU asks of KVM for an access; takes Mmu.lock itself unless it says otherwise."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    @trace.hot(
        trace.Side.VM,
        before=(
            trace.Instrument.fault_begun,
            lambda to, faults, vcpu, gfn, *, shared, write, want=1, offset=0, length=1: to.fault_begun(
                faults._vm.name, vcpu.id, gfn, offset, shared, write
            ),
        ),
    )
    def fault(
        self, vcpu: Vcpu, gfn: Gfn, *, shared: bool, write: bool, want: int = 1, offset: int = 0, length: int = 1
    ) -> Exit | None:
        """Handle an EPT violation: None when the page is mapped, else the exit. The vCPU is out of the guest.

        want: shared pages worth mapping at once; private runs are the store's to choose.
        """
        vcpu.pf_taken += 1
        vm, lock = self._vm, self._vm.mmu.lock  # acquired by hand: `with` would take twice as long on the fault path
        page_fault: PageFault | Exit
        for _ in range(_MAX_RETRIES):
            lock.acquire()
            try:
                page_fault = vm.fault(gfn, private=not shared, write=write, offset=offset, length=length)
            finally:
                lock.release()
            if not isinstance(page_fault, PageFault):
                return page_fault
            if vm.rules.asks_file:
                allowed = self._as_the_file_says(page_fault)
                if not isinstance(allowed, PageFault):
                    if allowed is None:
                        continue
                    return allowed
                page_fault = allowed
            gmem = page_fault.slot.backing.gmem
            found = _of_memory(page_fault, want) if gmem is None else self._granted(page_fault, gmem)
            if found is None:
                continue
            if isinstance(found, MemoryErrorExit):
                return found
            try:
                if self._install(vcpu, page_fault, found):
                    return None
            except Refused as refused:
                return _failed(page_fault, refused.errno, refused.reason)
            if not self._wait_end(page_fault):
                return _failed(page_fault, errno.ETIMEDOUT, "an invalidation does not end")
        assert isinstance(page_fault, PageFault)
        return _failed(page_fault, errno.EAGAIN, f"{_MAX_RETRIES} retries without progress")

    def _as_the_file_says(self, page_fault: PageFault) -> PageFault | MemoryErrorExit | None:
        """The fault, as far as its pages are of the wanted alias; else the exit. None: it is out of date."""
        with self._vm.mmu.lock:
            slot = self._vm.slots[PRIVATE].get(page_fault.slot.id)
        if slot is None:
            return page_fault
        gfn, private = page_fault.gfn, page_fault.private
        try:
            is_private, page_count = slot.gmem.attributes(slot.pgoff_of(gfn))
        except Refused as refused:
            return self._not_granted(page_fault, refused.errno, refused.reason)
        except PeerLost as lost:
            return self._not_granted(page_fault, errno.EIO, str(lost))
        if is_private != private:
            return other_alias(gfn, private=private)
        limit = min(page_fault.limit, page_count)
        order = page_fault.order if limit == page_fault.limit else ORDER_4K
        return msgspec.structs.replace(page_fault, limit=limit, order=order)

    def prefaulted(self, gfn: Gfn, asked: Alias) -> Alias:
        """Which alias KVM_PRE_FAULT_MEMORY maps: as the attributes say, wherever they are kept."""
        with self._vm.mmu.lock:
            if not self._vm.rules.asks_file:
                return self._vm.rules.prefaulted(gfn, asked)
            slot = self._vm.slots[PRIVATE].lookup(gfn)
        if slot is None:
            return SHARED
        try:
            return Alias(slot.gmem.attributes(slot.pgoff_of(gfn))[0])
        except (Refused, PeerLost):
            return asked  # its fault says why

    def _granted(self, page_fault: PageFault, gmem: Gmem) -> _Frames | MemoryErrorExit | None:
        """What the store grants for the fault's page: by its page map, else by GET_PFN. None: the fault is out of date,
        and nothing is in the way of another one."""
        order = page_fault.order
        try:
            if order:
                granted, order = _get_large(page_fault, gmem)
            else:
                most = page_fault.limit if page_fault.limit < MAX_AHEAD_PAGES else MAX_AHEAD_PAGES
                pgoff = page_fault.pgoff
                granted = gmem.find(pgoff, most) or gmem.get_pfn(pgoff, most)
        except Refused as refused:
            return self._not_granted(page_fault, refused.errno, refused.reason)
        except PeerLost as lost:
            return self._not_granted(page_fault, errno.EIO, str(lost))
        return gmem.base + granted.pfn, granted.page_count, order

    def _not_granted(self, page_fault: PageFault, number: int, why: str) -> MemoryErrorExit | None:
        """None: a slot has gone or come meanwhile, or an invalidation that is over now was in the way. A pairing ends
        with the last slot, so a store that is gone may be that, too."""
        with self._vm.mmu.lock:
            stale = self._vm.mmu.is_stale(page_fault, 1)
        if (stale or number == errno.EAGAIN) and self._wait_end(page_fault):
            return None
        return _failed(page_fault, number, why)

    def _install(self, vcpu: Vcpu, page_fault: PageFault, frames: _Frames) -> bool:
        """Into the page table and the vCPU's TLB, in one section; False when the fault is stale. ENOMEM (Refused)."""
        pfn, count, order = frames
        mmu, gfn, backing = self._vm.mmu, page_fault.gfn, page_fault.slot.backing
        mmu.lock.acquire()
        try:
            if self._vm.exports.by_gfn:
                self._check_not_out(page_fault, count, order)
            if not (mmu.install_large(page_fault, pfn, count, order) if order else mmu.install(page_fault, pfn, count)):
                return False
            if order:
                pfn += gfn & (1 << order) - 1
            at = pfn - backing.base << PAGE_SHIFT
            vcpu.tlb.insert(~gfn if page_fault.private else gfn, (backing.memory, at, page_fault.writable))
            return True
        finally:
            mmu.lock.release()

    def _check_not_out(self, page_fault: PageFault, count: int, order: int) -> None:
        """EBADMSG: the store granted a page that it swapped out and did not bring in, so that its contents are lost.
        With Mmu.lock held."""
        gmem = page_fault.slot.backing.gmem
        if gmem is not None and not self._vm.mmu.is_stale(page_fault, count):
            ahead = page_fault.gfn & (1 << order) - 1
            first = page_fault.pgoff - ahead
            out = self._vm.exports.first_out(gmem, Pgoff(first), Pgoff(first + count))
            if out is not None:
                raise Refused(errno.EBADMSG, f"file page {out:#x} is swapped out, and was granted as another frame")

    def _wait_end(self, page_fault: PageFault) -> bool:
        """Wait until no open invalidation covers the fault; False at the deadline."""
        mmu = self._vm.mmu
        with mmu.lock:
            is_over = mmu.invalidation_ended.wait_for(
                lambda: not (mmu.in_progress and mmu.range_start <= page_fault.gfn < mmu.range_end), ANSWER_DEADLINE_S
            )
        if trace.vm is not None:
            trace.vm.fault_waited(page_fault.gfn)
        return is_over

    @trace.hot(
        trace.Side.VM,
        before=(
            trace.Instrument.translating,
            lambda to, _, vcpu, page, *, shared, write: to.translating(vcpu.tlb, page, shared),
        ),
    )
    def translate(self, vcpu: Vcpu, page: int, *, shared: bool, write: bool) -> Translation | None:
        """TLB, then a walk that marks the leaf accessed and fills the TLB; None is an EPT violation. In guest mode.

        page: a Gfn, as a plain int, since a hit would pay for the call that makes it one.
        """
        found = vcpu.tlb.lookup(page if shared else ~page)  # tlb_key, without the call: every access comes here
        if found is None:
            mmu = self._vm.mmu
            with mmu.lock:
                ept, gfn = mmu.epts[not shared], Gfn(page)
                entry = ept.walk(gfn)
                if not entry:
                    return None
                ept.mark(gfn, ACCESSED)
                memory, frame = self._vm.physmap.find(HostPfn(entry >> PFN_SHIFT))
                found = (memory, frame << PAGE_SHIFT, entry_writable(entry))
                vcpu.tlb.insert(tlb_key(page, shared), found)
        return found if found[2] or not write else None

    def walk(self, gfn: Gfn, end: Gfn, *, shared: bool, write: bool) -> list[MemoryRun]:
        """Mapped memory from gfn up to the first page that is missing (or not writable): walked as by the CPU, which
        marks it accessed (or dirty). The TLB is not asked, nor filled. In guest mode."""
        mmu = self._vm.mmu
        with mmu.lock:
            ept = mmu.epts[not shared]
            stop = ept.first_missing(gfn, end)
            if stop != gfn and write and shared:
                stop = self._writable_until(gfn, stop)
                if stop != gfn:
                    self._mark_dirty(gfn, stop)
            if stop == gfn:
                return []
            ept.mark_range(gfn, stop, ACCESSED | DIRTY if write else ACCESSED)
            runs = []
            for start, pfn, count in ept.runs(gfn, stop):
                assert gfn <= start
                memory, frame = self._vm.physmap.find(pfn)
                runs.append((memory, frame << PAGE_SHIFT, count << PAGE_SHIFT))
            return runs

    def first_unmapped(self, gfn: Gfn, end: Gfn, *, shared: bool) -> Gfn:
        """The first GFN of [gfn, end) whose page is not mapped in this alias, or end."""
        with self._vm.mmu.lock:
            return self._vm.mmu.epts[not shared].first_missing(gfn, end)

    def _writable_until(self, gfn: Gfn, end: Gfn) -> Gfn:
        """The first GFN of [gfn, end) that a READONLY shared slot shows, or end. With Mmu.lock held."""
        for slot in self._vm.slots[SHARED].overlaps(gfn, end):
            if slot.flags & SlotFlag.READONLY:
                return max(gfn, min((low for low, high in slot.segments if high > gfn), default=end))
        return end

    def _mark_dirty(self, start: Gfn, end: Gfn) -> None:
        """GFNs [start, end) were written: into the logs of the slots that have one. With Mmu.lock held."""
        for slot, low, high in self._vm.slots[SHARED].visible(start, end):
            if slot.dirty is not None:
                slot.dirty.mark(low - slot.gfn, high - slot.gfn)

    def log_write(self, start: Gfn, end: Gfn) -> None:
        """After a write out of guest mode, which a log that was taken meanwhile has not seen."""
        with self._vm.mmu.lock:
            self._mark_dirty(start, end)


def _of_memory(page_fault: PageFault, want: int) -> _Frames:
    """Host memory needs no grant: the frames of the fault's page, and of what is wanted with it."""
    order, ahead = page_fault.order, page_fault.gfn & (1 << page_fault.order) - 1
    count = min(max(want + ahead, 1 << order), page_fault.limit + ahead)
    return page_fault.slot.backing.base + page_fault.pgoff - ahead, count, order


def _get_large(page_fault: PageFault, gmem: Gmem) -> tuple[m.GetPfnReply, int]:
    """The run from the first page of the leaf around the fault's page, and the leaf's order. If the store does not
    grant the leaf whole, in one frame of that size: the run from the page itself, and order 0; but for the page that
    completes a split one, after which the leaf is granted."""
    order = page_fault.order
    whole = _get_whole(page_fault, gmem)
    if whole is not None:
        return whole, order
    small = (1 << ORDER_2M) - (page_fault.gfn & (1 << ORDER_2M) - 1)
    most = min(page_fault.limit, small)
    granted = gmem.find(page_fault.pgoff, most) or gmem.get_pfn(page_fault.pgoff, most)
    if granted.order >= order and (whole := _get_whole(page_fault, gmem)) is not None:
        return whole, order
    return granted, ORDER_4K


def _get_whole(page_fault: PageFault, gmem: Gmem) -> m.GetPfnReply | None:
    """The leaf around the fault's page, and more of its size; None where the store has no frame of that size."""
    order = page_fault.order
    ahead = page_fault.gfn & (1 << order) - 1
    most = max(1 << order, min(page_fault.limit + ahead, MAX_AHEAD_PAGES))
    found = gmem.find(page_fault.pgoff - ahead, most)
    if found is not None and _is_whole(found, order):
        return found
    try:
        granted = gmem.get_pfn(page_fault.pgoff - ahead, most, order)
    except Refused as refused:
        # EFAULT: a hole at the beginning of the leaf has been filled and is not bound yet. ENOENT: the page is split.
        if refused.errno not in (errno.EFAULT, errno.ENOENT):
            raise
        return None
    return granted if _is_whole(granted, order) else None


def _is_whole(granted: m.GetPfnReply, order: int) -> bool:
    return granted.order >= order and granted.page_count >> order > 0 and granted.pfn % (1 << order) == 0


def refused(exit_: Exit) -> Refused:
    """What an ioctl that faults pages in answers where a guest would exit. ENOENT: no slot shows the page."""
    if isinstance(exit_, MemoryErrorExit) and exit_.errno:
        # EAGAIN is for a slot that goes: a fault that a store keeps from ending has timed out.
        return Refused(
            errno.ETIMEDOUT if exit_.errno == errno.EAGAIN else exit_.errno, f"gpa {exit_.gpa:#x}: {exit_.why}"
        )
    return Refused(errno.ENOENT, "no slot shows the page: set one")


def _failed(page_fault: PageFault, number: int, why: str) -> MemoryErrorExit:
    return MemoryErrorExit(
        page_fault.gfn << PAGE_SHIFT, PAGE_SIZE, page_fault.private, errno=number, why=f"{errno_name(number)}: {why}"
    )
