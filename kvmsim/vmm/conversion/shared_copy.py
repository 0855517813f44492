"""User space's shared copy of guest memory, and the ordinary slots over it."""

from typing import NamedTuple

from kvmsim.kvm.region import GPA_END, MemoryRegion, SlotFlag
from kvmsim.memory.memory import SparseMemory
from kvmsim.vmm.guest_memory import GuestMemory
from kvmsim.vmm.ram import SharedRegion
from memfsd.common.intervals import subtract
from memfsd.uapi.units import PAGE_SHIFT, Gfn, GfnRange

from .slot_ids import SlotIds
from .transaction import Transaction


class _Log(NamedTuple):
    """Flags of a slot that logs dirty pages, and what is in the log."""

    flags: int
    dirty: list[GfnRange]

    def joined(self, other: "_Log") -> "_Log":
        return _Log(self.flags | other.flags, self.dirty + other.dirty)


_NO_LOG = _Log(0, [])


class SharedCopy:
    """One sparse memory in which byte GPA lies at offset GPA. Its slots never touch each other, so that page after page
    of a range takes one slot id."""

    def __init__(self, guest: GuestMemory) -> None:
        self._guest = guest
        self._regions = guest.ram.shared
        self._ids = SlotIds("shared", self._regions, guest.max_slots)
        self._memory: SparseMemory | None = None

    @property
    def memory(self) -> SparseMemory:
        """Made when first needed."""
        if self._memory is None:
            self._memory = SparseMemory(GPA_END)
        return self._memory

    def ranges(self, start: Gfn, end: Gfn) -> list[GfnRange]:
        """What of [start, end) its slots show."""
        return [(low, high) for region, low, high in self._regions.visible(start, end) if self._is_ours(region)]

    def add(self, start: Gfn, end: Gfn) -> None:
        """An ordinary slot over [start, end), joined with its neighbours; it reads as zeros. EEXIST where a slot is,
        ENOSPC at the cap: then nothing changed."""
        self._show(start, end)
        # Who deletes a slot of ours by hand leaves its bytes.
        self.discard([(start, end)])

    def _show(self, start: Gfn, end: Gfn) -> None:
        low, high, log = start, end, _NO_LOG
        with Transaction() as transaction:
            for region in self._ours(max(start - 1, Gfn(0)), end + 1):
                log = log.joined(self._delete(region, transaction))
                low, high = min(low, region.gfn), max(high, region.end)
            self._create(low, high, log)

    def restore(self, ranges: list[GfnRange]) -> None:
        """What `remove` took, with its bytes."""
        for start, end in ranges:
            self._show(start, end)

    def remove(self, start: Gfn, end: Gfn) -> list[GfnRange]:
        """Take [start, end) out of its slots; what is around it stays. What was taken.

        ENOSPC when a slot would be split and no id is free: then nothing changed. The bytes stay until `discard`.
        """
        taken = self.ranges(start, end)
        with Transaction() as transaction:
            for region in self._ours(start, end):
                log = self._delete(region, transaction)
                for low, high in subtract(region.gfn, region.end, [(start, end)]):
                    id_ = self._create(low, high, log)
                    transaction.did(self._drop, id_)
        return taken

    def discard(self, ranges: list[GfnRange]) -> None:
        """The bytes of these GFNs are gone: memory given back, and zero when they are shared again."""
        for low, high in ranges:
            self.memory.discard(low << PAGE_SHIFT, high - low << PAGE_SHIFT)

    def page_count(self) -> int:
        """Pages that hold memory."""
        return 0 if self._memory is None else self._memory.populated_count()

    def populated(self) -> list[GfnRange]:
        if self._memory is None:
            return []
        return [(Gfn(start), Gfn(end)) for start, end in self._memory.all_populated()]

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()

    def _ours(self, start: Gfn, end: Gfn) -> list[SharedRegion]:
        return [region for region, _, _ in self._regions.visible(start, end) if self._is_ours(region)]

    def _is_ours(self, region: SharedRegion) -> bool:
        return self._memory is not None and region.source is self._memory

    def _create(self, start: Gfn, end: Gfn, log: "_Log", wanted: int | None = None) -> int:
        id_ = self._ids.take() if wanted is None else wanted
        gpa, size = start << PAGE_SHIFT, end - start << PAGE_SHIFT
        try:
            self._guest.set_shared_slot(
                MemoryRegion.shared(id_, gpa, size, flags=log.flags, offset=gpa), self.memory, owned=False, path="(vmm)"
            )
        except BaseException:
            self._ids.give_back(id_)
            raise
        if log.dirty:
            self._guest.keep_dirty(id_, log.dirty)
        return id_

    def _delete(self, region: SharedRegion, transaction: Transaction) -> "_Log":
        """What a VMM does before it deletes a slot whose log it wants: it asks for it."""
        logs = region.flags & SlotFlag.LOG_DIRTY_PAGES
        log = _Log(region.flags, self._guest.get_dirty_log(region.id)) if logs else _NO_LOG
        self._drop(region.id)
        transaction.did(self._create, region.gfn, region.end, log, region.id)
        return log

    def _drop(self, id_: int) -> None:
        self._guest.delete_slot(id_, private=False)
        self._ids.give_back(id_)
