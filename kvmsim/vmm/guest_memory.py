"""What user space asks of KVM about guest memory: each call is made, and then recorded in the RAM map.

All changes of a VM's memory go through here: commands of a script, and the designs of conversion.
"""

import contextlib
from collections.abc import Iterable, Iterator

from kvmsim.kvm.kvm import Kvm
from kvmsim.kvm.pairings import PairedFile
from kvmsim.kvm.region import (
    ATTRIBUTE_PRIVATE,
    AttributesRange,
    GmemFd,
    MemoryRegion,
    Region2,
    SlotFlag,
    Userspace,
)
from kvmsim.memory.memory import AnonymousMemory, Memory, SparseMemory
from memfsd.common import sync, trace
from memfsd.common.intervals import IntervalSet
from memfsd.uapi.units import PAGE_SHIFT, Gfn, GfnRange, Pgoff

from .ram import PrivatePiece, PrivateRegion, RamMap, Region, Regions, S


class GuestMemory:
    """Every call wants `lock` held, so that one change of memory at a time is made and recorded, as with QEMU's
    kvm_slots_lock(): a command of a script, or a whole conversion.

    What KVM refuses is not recorded. No other one than user space makes or deletes slots.
    """

    def __init__(self, kvm: Kvm) -> None:
        self._kvm = kvm
        self.lock = sync.lock("GuestMemory.lock")
        self.ram = RamMap()
        self._unreported: dict[int, list[tuple[int, int]]] = {}
        """By shared slot: pages of it, counted from its first one, that were written before it was made in the place
        of another one, and that `get_dirty_log` has still to report."""

    @property
    def max_slots(self) -> int:
        """KVM_CAP_NR_MEMSLOTS, in each alias."""
        return self._kvm.vm.max_slots

    # -- KVM_SET_USER_MEMORY_REGION

    def set_private_slot(self, region: MemoryRegion, path: str, *, mapped_fd: int | None = None) -> None:
        """SlotIoctls.set_private_slot."""
        file = self._kvm.slots.set_private_slot(region, path, mapped_fd=mapped_fd)
        if file is None:
            self.ram.private.remove(region.id)
        else:
            self.ram.private.add(_recorded(region, file))
        self._report(region.id, private=True)

    def set_shared_slot(self, region: MemoryRegion, memory: Memory | None, *, owned: bool, path: str = "") -> None:
        """SlotIoctls.set_shared_slot."""
        self._kvm.slots.set_shared_slot(region, memory, owned=owned, path=path)
        before = self.ram.shared.get(region.id)
        if before is not None:
            self.ram.shared.remove(region.id)
            memory = before.source
        if not region.size or not region.flags & SlotFlag.LOG_DIRTY_PAGES:
            self._unreported.pop(region.id, None)
        if region.size:
            assert memory is not None
            self.ram.shared.add(_recorded(region, memory))
        self._report(region.id, private=False)

    def set_region2(self, region: Region2, userspace: Userspace, file: GmemFd | None = None) -> None:
        """GuestMemfds.set_region2."""
        paired = self._kvm.guest_memfds.set_region2(region, userspace, file)
        before = self.ram.shared.get(region.slot)
        memory = userspace.memory
        if before is not None:
            self.ram.shared.remove(region.slot)
            memory = before.source
        if not region.size and self.ram.private.get(region.slot) is not None:
            self.ram.private.remove(region.slot)
        if region.size:
            self.ram.shared.add(_recorded(region.shared_half(userspace.offset), memory))
        if paired is not None:
            self.ram.private.add(_recorded(region.private_half(), paired))

    # -- attributes

    def set_attributes(self, start: Gfn, end: Gfn, *, private: bool) -> list[GfnRange]:
        """AttributeIoctls.set; the GFNs that have changed."""
        changed = self._kvm.attributes.within(start, end, private=not private)
        attributes = ATTRIBUTE_PRIVATE if private else 0
        self._kvm.attributes.set(AttributesRange(start << PAGE_SHIFT, end - start << PAGE_SHIFT, attributes))
        return changed

    def file_attributes(self, region: PrivateRegion, start: Gfn, end: Gfn) -> list[tuple[Gfn, Gfn, bool]]:
        """GFNs of what the region shows, and whether they are private by its file."""
        runs, delta = [], region.pgoff - region.gfn
        pgoff, stop = start + delta, end + delta
        while pgoff < stop:
            is_private, count = self._kvm.pairings.attributes(region.source, Pgoff(pgoff))
            after = min(pgoff + count, stop)
            runs.append((Gfn(pgoff - delta), Gfn(after - delta), is_private))
            pgoff = after
        return runs

    def convert_file(self, region: PrivateRegion, start: Gfn, end: Gfn, *, private: bool) -> None:
        """Pairings.convert: KVM_SET_MEMORY_ATTRIBUTES2 of the region's file."""
        self._kvm.pairings.convert(region.source, region.pgoff_of(start), end - start, private=private)

    def punch_file(self, region: PrivateRegion, start: Gfn, end: Gfn) -> None:
        """Pairings.punch: the file gives the pages of these GFNs back."""
        self._kvm.pairings.punch(region.source, region.pgoff_of(start), end - start)

    def discard_shared(self, start: Gfn, end: Gfn) -> None:
        """madvise(2) of what user space has mapped for these GFNs: they hold nothing. What is mapped from elsewhere is
        its owner's."""
        for region, low, high in self.ram.shared.visible(start, end):
            if isinstance(region.source, AnonymousMemory | SparseMemory):
                region.source.discard(region.pgoff_of(low) << PAGE_SHIFT, high - low << PAGE_SHIFT)

    def check_shared_slot(self, region: MemoryRegion) -> None:
        """SlotIoctls.check_shared_slot: it changes nothing."""
        self._kvm.slots.check_shared_slot(region)

    def delete_slot(self, id_: int, *, private: bool) -> None:
        """SlotIoctls.delete_slot."""
        self._kvm.slots.delete_slot(id_, private=private)
        if private:
            self.ram.private.remove(id_)
        else:
            self.ram.shared.remove(id_)
            self._unreported.pop(id_, None)
        self._report(id_, private=private)

    def _report(self, id_: int, *, private: bool) -> None:
        if trace.vm is None:
            return
        ram = self.ram
        trace.vm.slot_changed(
            self._kvm.vm.name, private, id_, lambda: _shown(ram.private, id_) if private else _shown(ram.shared, id_)
        )

    # -- KVM_GET_DIRTY_LOG

    def get_dirty_log(self, id_: int) -> list[GfnRange]:
        """SlotIoctls.get_dirty_log, and what `keep_dirty` has kept for the slot."""
        dirty = self._kvm.slots.get_dirty_log(id_)
        region, kept = self.ram.shared.get(id_), self._unreported.pop(id_, None)
        if not kept:
            return dirty
        assert region is not None
        moved = [(region.gfn + start, region.gfn + end) for start, end in kept]
        return IntervalSet([*dirty, *moved]).within(region.gfn, region.end)

    def keep_dirty(self, id_: int, ranges: list[GfnRange]) -> None:
        """What of these GFNs the shared slot has was written: it is in the next log of the slot."""
        region = self.ram.shared.get(id_)
        assert region is not None
        kept = [(max(start, region.gfn), min(end, region.end)) for start, end in ranges]
        self._unreported[id_] = [(start - region.gfn, end - region.gfn) for start, end in kept if start < end]

    # -- the proposed ioctl, and its inverse

    def punch_slot(self, id_: int, gpa: int, size: int) -> None:
        """SlotIoctls.punch_slot: contents of the hole are destroyed."""
        for start, end in self._kvm.slots.punch_slot(id_, gpa, size):
            self.ram.private.punch(id_, start, end)
        self._report(id_, private=True)

    def fill_slot(self, id_: int, start: Gfn, end: Gfn) -> None:
        """SlotIoctls.fill_slot."""
        self._kvm.slots.fill_slot(id_, start, end)
        self.ram.private.fill(id_, start, end)
        self._report(id_, private=True)

    # -- the steps of a conversion that can be taken back

    def hide(self, id_: int, start: Gfn, end: Gfn) -> None:
        """Blocking.hide. Undone by `fill_slot`."""
        self._kvm.blocking.hide(id_, start, end - start)
        self.ram.private.punch(id_, start, end)
        self._report(id_, private=True)

    def detach(self, id_: int) -> None:
        """Blocking.detach. Undone by `attach`, with what the region showed."""
        self._kvm.blocking.detach(id_)
        self.ram.private.remove(id_)
        self._report(id_, private=True)

    def attach(self, region: PrivateRegion, segments: list[GfnRange]) -> None:
        """Blocking.attach."""
        self._kvm.blocking.attach(region.id, region.gfn, region.page_count, region.source, region.pgoff, segments)
        self.ram.private.add(region, segments)
        self._report(region.id, private=True)

    def create_private(self, id_: int, piece: PrivatePiece) -> None:
        """A private slot of this id over a piece, of the file and at the place that the piece's region has them.
        Blocking.create_private."""
        was, start, end = piece
        region = Region(id_, start, end - start, was.flags, was.source, was.pgoff_of(start))
        self._kvm.blocking.create_private(id_, start, region.page_count, region.source, region.pgoff)
        self.ram.private.add(region)
        self._report(id_, private=True)

    def give_back(self, region: PrivateRegion, start: Gfn, end: Gfn) -> None:
        """GFNs [start, end) of what the region had are blocked: fallocate(PUNCH_HOLE) of their pages gives them to the
        store. Pairings.punch; Refused with the store's errno."""
        self._kvm.pairings.punch(region.source, region.pgoff_of(start), end - start)
        self._kvm.blocking.forget(start, end - start)

    def destroy(self, start: Gfn, end: Gfn) -> int:
        """Blocking.destroy."""
        return self._kvm.blocking.destroy(start, end - start)

    def hold(self, files: Iterable[PairedFile]) -> None:
        """Pairings.hold."""
        self._kvm.pairings.hold(files)

    def unhold(self, files: Iterable[PairedFile]) -> None:
        """Pairings.unhold."""
        self._kvm.pairings.unhold(files)

    @contextlib.contextmanager
    def holding(self, pieces: list[PrivatePiece]) -> Iterator[None]:
        """For the time of a conversion the pairings of these pieces' files stay, whatever slots go: Pairings.hold."""
        files = [piece.region.source for piece in pieces]
        self.hold(files)
        try:
            yield
        finally:
            self.unhold(files)


def _recorded(region: MemoryRegion, source: S) -> Region[S]:
    return Region(region.id, region.gfn, region.page_count, region.flags, source, region.pgoff)


def _shown(regions: Regions[S], id_: int) -> list[GfnRange]:
    region = regions.get(id_)
    return [] if region is None else regions.segments(region)
