"""User space's shared copy of guest memory, and the ordinary slots over it."""

from typing import NamedTuple

from kvmsim.kvm.region import GPA_END, MAX_SLOT_PAGES, MemoryRegion, SlotFlag
from kvmsim.memory.memory import SparseMemory
from kvmsim.vmm.guest_memory import GuestMemory
from kvmsim.vmm.ram import SharedRegion
from memfsd.common.intervals import IntervalMap, subtract
from memfsd.uapi.units import PAGE_SHIFT, Gfn, GfnRange

from .slot_ids import SlotIds
from .transaction import Transaction


class _Log(NamedTuple):
    """Flags of a slot that logs dirty pages, and what is in the log."""

    flags: int
    dirty: list[GfnRange]

    def joined(self, other: "_Log") -> "_Log":
        return _Log(self.flags | other.flags, self.dirty + other.dirty)

    def within(self, start: Gfn, end: Gfn) -> "_Log":
        dirty = [(max(low, start), min(high, end)) for low, high in self.dirty if low < end and start < high]
        return _Log(self.flags, dirty)


_NO_LOG = _Log(0, [])


class SharedCopy:
    """One sparse memory in which byte GPA lies at offset GPA. Its slots touch each other only where one would be too
    large, so that page after page of a range takes one slot id."""

    def __init__(self, guest: GuestMemory) -> None:
        self._guest = guest
        self._regions = guest.ram.shared
        self._ids = SlotIds("shared", self._regions, guest.max_slots)
        self._memory: SparseMemory | None = None
        self._removed: IntervalMap[_Log] = IntervalMap()
        """GFNs that a slot which logged has shown, and whose bytes are still there: what was in the log of them."""

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
        """An ordinary slot over [start, end), joined with its neighbours; it reads as zeros, and is in the log if there
        is one. EEXIST where a slot is, ENOSPC at the cap: then nothing changed."""
        self._show(start, end, dirty=True)
        # Who deletes a slot of ours by hand leaves its bytes.
        self.discard([(start, end)])

    def _show(self, start: Gfn, end: Gfn, *, dirty: bool) -> None:
        low, high, log = start, end, _Log(0, [(start, end)] if dirty else [])
        for _, _, removed in self._removed.within(start, end):
            log = log.joined(removed)
        with Transaction() as transaction:
            for region in self._ours(max(start - 1, Gfn(0)), end + 1):
                first, last = min(low, region.gfn), max(high, region.end)
                if last - first <= MAX_SLOT_PAGES:
                    log = log.joined(self._delete(region, transaction))
                    low, high = first, last
            for at in map(Gfn, range(low, high, MAX_SLOT_PAGES)):
                id_ = self._create(at, min(at + MAX_SLOT_PAGES, high), log)
                transaction.did(self._drop, id_)
        self._removed.drop(start, end)

    def restore(self, ranges: list[GfnRange]) -> None:
        """What `remove` took, with its bytes, and with what was in its log."""
        for start, end in ranges:
            self._show(start, end, dirty=False)

    def remove(self, start: Gfn, end: Gfn) -> list[GfnRange]:
        """Take [start, end) out of its slots; what is around it stays. What was taken.

        ENOSPC when a slot would be split and no id is free: then nothing changed. The bytes stay until `discard`.
        """
        taken, removed = self.ranges(start, end), list[tuple[Gfn, Gfn, _Log]]()
        with Transaction() as transaction:
            for region in self._ours(start, end):
                log = self._delete(region, transaction)
                for low, high in subtract(region.gfn, region.end, [(start, end)]):
                    id_ = self._create(low, high, log)
                    transaction.did(self._drop, id_)
                if log.flags:
                    removed.append((max(start, region.gfn), min(end, region.end), log))
        for first, last, log in removed:
            self._removed.put(first, last, log.within(first, last))
        return taken

    def discard(self, ranges: list[GfnRange]) -> None:
        """The bytes of these GFNs are gone: memory given back, and zero when they are shared again."""
        for low, high in ranges:
            self.memory.discard(low << PAGE_SHIFT, high - low << PAGE_SHIFT)
            self._removed.drop(low, high)

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
        if log.flags and log.dirty:
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
