"""Memslots of one address space: GFN to slot, and the checks KVM makes before it touches any.

A slot is one range of GFNs with one backing. `punch` makes a hole in it: the slot keeps its id, gfn and
page_count, and so the place of every page in its backing, but lookups see only the remaining *segments*.
Another slot may lie in the hole; `fill` closes it again.

    slot 0   |-----------------------------|     gfn, page_count
    punch            [=====)
    slot 0   |-------|     |---------------|     two segments
    slot 1           |-----|                     add: no overlap

GFNs count 4 KiB pages, ranges are half-open. The caller serialises changes (KVM's slots_lock) and keeps
lookups of vCPUs away from them.
"""

import errno
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from kvmsim.kvm.alias import PRIVATE, SHARED, Alias
from kvmsim.kvm.mmu.ept import MAX_GFN_EPT
from kvmsim.kvm.region import MAX_SLOT_PAGES, MemoryRegion, SlotFlag
from memfsd.common.intervals import IntervalMap
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_SLOTS
from memfsd.uapi.units import ORDERS, PAGE_SHIFT, PGOFF_END, Gfn, GfnRange, Pgoff, page_aligned

from .backing import Gmem, SlotBacking
from .dirty import DirtyLog

_FIRST_PAGE = Pgoff(0)


class RegionChange(Enum):
    """enum kvm_mr_change, and what the kernel returns early for."""

    CREATE = "create"
    DELETE = "delete"
    MOVE = "move"
    FLAGS_ONLY = "flags_only"
    NONE = "none"


@dataclass(slots=True, eq=False)
class Memslot:
    """page_count pages from gfn on, backed by the pages of `backing` from pgoff on.

    segments: the visible ranges [start, end) in GFNs, sorted, never adjacent; `Memslots` alone changes them.
    """

    id: int
    as_id: Alias
    gfn: Gfn
    page_count: int
    flags: SlotFlag
    backing: SlotBacking
    pgoff: Pgoff
    segments: list[GfnRange] = field(default_factory=list)
    max_order: int = 0
    """Order of the largest leaf that may map it: given is what the backing allows, kept what gfn, pgoff, size and dirty
    log allow too."""
    writable: bool = field(init=False)
    """Not READONLY. Kept, since every fault asks and `&` of an IntFlag takes a microsecond."""
    uncached: bool = field(init=False)
    """Of memory type UC: a device's memory. Kept, as `writable` is."""
    dirty: DirtyLog | None = field(init=False, default=None)
    """With LOG_DIRTY_PAGES. Until a write faults, its pages are mapped read-only."""

    def __post_init__(self) -> None:
        self.uncached = self.backing.memory.uncached
        assert self.page_count > 0, self.page_count
        self.writable = not self.flags & SlotFlag.READONLY
        if self.flags & SlotFlag.LOG_DIRTY_PAGES:
            self.dirty = DirtyLog(self.page_count)
        if self.max_order:
            allowed = 0 if self.flags & SlotFlag.LOG_DIRTY_PAGES else self.max_order
            delta = self.gfn - self.pgoff
            self.max_order = max(o for o in ORDERS if o <= allowed and self.page_count >> o and delta % (1 << o) == 0)
        if not self.segments:
            self.segments = [(self.gfn, self.end)]

    @property
    def end(self) -> Gfn:
        """The GFN after the last one, holes or not."""
        return self.gfn + self.page_count

    @property
    def gmem(self) -> Gmem:
        """Of a private slot: the file that it shows."""
        assert self.backing.gmem is not None, self
        return self.backing.gmem

    def pgoff_of(self, gfn: Gfn) -> Pgoff:
        """Page of the backing that this GFN shows."""
        return self.pgoff + gfn - self.gfn

    def gfn_of(self, pgoff: Pgoff) -> Gfn:
        """Where this page of the backing shows."""
        return self.gfn + pgoff - self.pgoff

    def segments_in(self, start: Gfn, end: Gfn) -> list[GfnRange]:
        """Visible segments with a GFN in [start, end), whole."""
        first = max(bisect_right(self.segments, start, key=_start_of) - 1, 0)
        last = bisect_left(self.segments, end, lo=first, key=_start_of)
        return [segment for segment in self.segments[first:last] if segment[1] > start]

    def __str__(self) -> str:
        return f"{self.as_id.name.lower()} slot {self.id} ({_range(self.gfn, self.end)})"


Segment = tuple[Memslot, Gfn, Gfn]


class Memslots:
    """The slots of one address space. `generation` grows by one at every change."""

    def __init__(self, as_id: Alias) -> None:
        self.as_id = as_id
        self.generation = 0
        self._slots: dict[int, Memslot] = {}
        # Visible segments of all slots: by GFN, and those of each file by its pages.
        self._visible: IntervalMap[Memslot] = IntervalMap()
        self._last_used: Segment | None = None
        """As kvm_memslots.last_used_slot: a fault is as a rule near the one before."""
        self._files: dict[Gmem, IntervalMap[Memslot]] = {}
        self._file_slots: Counter[Gmem] = Counter()

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Memslot]:
        """All slots by gfn; slots of the same gfn (one lies in the other's hole) by id."""
        return iter(sorted(self._slots.values(), key=lambda slot: (slot.gfn, slot.id)))

    def get(self, slot_id: int) -> Memslot | None:
        return self._slots.get(slot_id)

    def segment(self, gfn: Gfn) -> Segment | None:
        """The slot that shows gfn, with the start and end of the segment around it; None where none does."""
        last = self._last_used
        if last is not None and last[1] <= gfn < last[2]:
            return last
        found = self._visible.find(gfn)
        if found is None:
            return None
        self._last_used = found[2], found[0], found[1]
        return self._last_used

    def lookup(self, gfn: Gfn) -> Memslot | None:
        """The slot that shows gfn; None in a hole and where there is none."""
        segment = self.segment(gfn)
        return segment[0] if segment else None

    def covers(self, start: Gfn, end: Gfn) -> Memslot | None:
        """The slot of which one segment holds all of [start, end)."""
        assert start < end, (start, end)
        segment = self.segment(start)
        return segment[0] if segment and end <= segment[2] else None

    def overlaps(self, start: Gfn, end: Gfn) -> list[Memslot]:
        """Slots with a visible page in [start, end), in the order of their first one."""
        found: dict[int, Memslot] = {}
        for _, _, slot in self._visible.overlapping(start, end):
            found[slot.id] = slot
        return list(found.values())

    def visible(self, start: Gfn, end: Gfn) -> list[Segment]:
        """What slots show of GFNs [start, end): (slot, first, end), cut at the range's ends, in order."""
        return [(slot, low, high) for low, high, slot in self._visible.within(start, end)]

    def has_file(self, file: Gmem) -> bool:
        """A slot is of this file, though all of it may be holes."""
        return file in self._file_slots

    def of_file(self, file: Gmem, start: Pgoff = _FIRST_PAGE, end: Pgoff = PGOFF_END) -> list[Segment]:
        """What slots show of the file's pages [start, end): (slot, gfn, end gfn), in the order of the pages."""
        index = self._files.get(file)
        if index is None:
            return []
        return [(slot, slot.gfn_of(low), slot.gfn_of(high)) for low, high, slot in index.within(start, end)]

    def next_start(self, gfn: Gfn) -> Gfn | None:
        """Where the first segment after gfn begins."""
        return self._visible.next_start(gfn)

    def previous_end(self, gfn: Gfn) -> Gfn | None:
        """Where the last segment before gfn, which no slot shows, ends."""
        return self._visible.previous_end(gfn)

    def add(self, slot: Memslot) -> None:
        """Refused EEXIST when a visible page of it is another slot's. Its id must be free."""
        assert slot.id not in self._slots, slot
        assert slot.as_id is self.as_id, slot
        for start, end in slot.segments:
            self.check_free(start, end)
        self._slots[slot.id] = slot
        if slot.backing.gmem is not None:
            self._file_slots[slot.backing.gmem] += 1
        for start, end in slot.segments:
            self._show(slot, start, end)
        self.generation += 1

    def delete(self, slot_id: int) -> Memslot:
        """Take the slot out, as it is with its holes. Refused EINVAL when it does not exist."""
        slot = self._existing(slot_id)
        for start, _ in slot.segments:
            self._hide(slot, start)
        del self._slots[slot_id]
        if slot.backing.gmem is not None:
            self._file_slots[slot.backing.gmem] -= 1
            if not self._file_slots[slot.backing.gmem]:
                del self._file_slots[slot.backing.gmem]
        self.generation += 1
        return slot

    def punch(self, slot_id: int, start: Gfn, end: Gfn) -> list[GfnRange]:
        """Make [start, end) of the slot invisible; the ranges that were, which are to be zapped.

        Refused EINVAL when the range is empty, leaves the slot, or is in part a hole already.
        """
        slot = self._existing(slot_id)
        _check_inside(slot, start, end)
        at = bisect_right(slot.segments, start, key=_start_of) - 1
        first, last = slot.segments[at] if at >= 0 else (start, start)
        if end > last:
            raise Refused(
                errno.EINVAL,
                f"{_range(start, end)} is in part a hole of {slot} already: punch only what is visible",
            )
        rest = [(a, b) for a, b in ((first, start), (end, last)) if a < b]
        slot.segments[at : at + 1] = rest
        self._hide(slot, first)
        for part in rest:
            self._show(slot, *part)
        self.generation += 1
        return [(start, end)]

    def fill(self, slot_id: int, start: Gfn, end: Gfn) -> None:
        """Make [start, end), a hole or a part of one, visible again.

        Refused EINVAL when the range is empty, leaves the slot, or is in part visible; EEXIST when another
        slot lies there by now.
        """
        slot = self._existing(slot_id)
        _check_inside(slot, start, end)
        at = bisect_left(slot.segments, end, key=_start_of)
        if at and slot.segments[at - 1][1] > start:
            raise Refused(
                errno.EINVAL,
                f"{_range(start, end)} is not all a hole of {slot}: fill only what was punched",
            )
        self.check_free(start, end)
        before = at - 1 if at and slot.segments[at - 1][1] == start else at
        after = at + 1 if at < len(slot.segments) and slot.segments[at][0] == end else at
        for part_start, part_end in slot.segments[before:after]:
            self._hide(slot, part_start)
            start, end = min(start, part_start), max(end, part_end)
        slot.segments[before:after] = [(start, end)]
        self._show(slot, start, end)
        self.generation += 1

    def _existing(self, slot_id: int) -> Memslot:
        slot = self._slots.get(slot_id)
        if slot is None:
            raise Refused(
                errno.EINVAL,
                f"{self.as_id.name.lower()} slot {slot_id} does not exist: create it first",
            )
        return slot

    def check_free(self, start: Gfn, end: Gfn, *, but: Memslot | None = None) -> None:
        """Refused EEXIST when a page of [start, end) is visible in a slot. but: in another one than this."""
        for other_start, other_end, other in self._visible.overlapping(start, end):
            if other is not but:
                raise Refused(
                    errno.EEXIST,
                    f"{_range(start, end)} overlaps {_range(other_start, other_end)} of {other}: "
                    "choose another gpa, or delete or punch that slot first",
                )

    def _show(self, slot: Memslot, start: Gfn, end: Gfn) -> None:
        self._visible.add(start, end, slot)
        self._last_used = None
        gmem = slot.backing.gmem
        if gmem is not None:
            pages = self._files.setdefault(gmem, IntervalMap())
            pages.add(slot.pgoff_of(start), slot.pgoff_of(end), slot)

    def _hide(self, slot: Memslot, start: Gfn) -> None:
        self._visible.remove(start)
        self._last_used = None
        gmem = slot.backing.gmem
        if gmem is not None:
            pages = self._files[gmem]
            pages.remove(slot.pgoff_of(start))
            if not pages:
                del self._files[gmem]


def check_region(region: MemoryRegion, max_slots: int, existing: Memslot | None) -> RegionChange:
    """The wall of KVM_SET_USER_MEMORY_REGION2, in the order of virt/kvm/kvm_main.c; all Refused are EINVAL.

    existing: the slot of this id in its address space. Then come, as there: overlap (EEXIST, `Memslots.check_free`),
    the backing's own errors, and the end of GPAs (`check_addressable`).
    """
    _check_fields(region)
    if region.space not in (SHARED, PRIVATE):
        raise _invalid(f"address space {region.space}", "take 0 (shared) or 1 (private)")
    if not 0 <= region.id < max_slots:
        more = ", or raise --max-slots" if region.id < MAX_SLOTS else ""
        raise _invalid(f"slot {region.id}", f"ids end at {max_slots - 1}: take a free one{more}")
    gpa, size = region.gpa, region.size
    if gpa < 0 or size < 0 or gpa + size >= 1 << 64:
        raise _invalid(f"gpa {gpa:#x} + size {size:#x}", "it must stay below 2^64")
    if region.page_count > MAX_SLOT_PAGES:
        raise _invalid(f"size {size:#x}", f"{MAX_SLOT_PAGES} pages fit in a slot: make several")
    if not size:
        if existing is None:
            raise _invalid(f"size 0 of slot {region.id}", "it deletes a slot, and there is none: give a size")
        return RegionChange.DELETE
    return RegionChange.CREATE if existing is None else _change_of(existing, region)


def _check_fields(region: MemoryRegion) -> None:
    """Flags, and what must be a multiple of a page or must not wrap: check_memory_region_flags() and what follows."""
    private = region.space == PRIVATE
    # Deleting asks nothing of the flags but that they could stand together; the slot to go may be of either kind.
    kind_is_private = private if region.size else bool(region.flags & SlotFlag.GUEST_MEMFD)
    # As int: the complement of an IntFlag leaves out the bits that have no name.
    allowed = int(SlotFlag.GUEST_MEMFD if kind_is_private else SlotFlag.LOG_DIRTY_PAGES | SlotFlag.READONLY)
    if region.flags & ~allowed:
        kind = "private" if kind_is_private else "shared"
        raise _invalid(f"flags {_flag_names(region.flags)}", f"a {kind} slot takes {_flag_names(allowed) or 'none'}")
    # Where no guest_memfd is spoken of nobody looks at its offset.
    offset = 0 if private and not kind_is_private else region.offset
    for name, value in (("size", region.size), ("gpa", region.gpa), ("offset", offset)):
        if not page_aligned(value):
            raise _invalid(f"{name} {value:#x}", "make it a multiple of 4096")
    limit = 64 if private else 63  # guest_memfd_offset must not wrap; a userspace_addr must pass access_ok()
    if not 0 <= offset < 1 << limit or offset + region.size >= 1 << limit:
        raise _invalid(f"offset {offset:#x} + size {region.size:#x}", f"it must stay below 2^{limit}")


def _change_of(existing: Memslot, region: MemoryRegion) -> RegionChange:
    """What becomes of a slot that is there."""
    if region.space == PRIVATE or existing.flags & SlotFlag.GUEST_MEMFD:
        raise _invalid(f"a change of {existing}", "private slots are immutable: delete it, then create it")
    if region.page_count != existing.page_count:
        raise _invalid(f"size {region.size:#x} of {existing}", "delete the slot, then create it again")
    if region.pgoff != existing.pgoff:
        raise _invalid(f"offset {region.offset:#x} of {existing}", "delete the slot, then create it again")
    if (region.flags ^ existing.flags) & SlotFlag.READONLY:
        raise _invalid(f"READONLY in flags {region.flags:#x} of {existing}", "it is fixed at creation: delete first")
    if region.gfn != existing.gfn:
        return RegionChange.MOVE
    return RegionChange.FLAGS_ONLY if region.flags != existing.flags else RegionChange.NONE


def check_addressable(region: MemoryRegion) -> None:
    """The last check of a slot that is created or moved, kvm_arch_prepare_memory_region(): EINVAL past the end.

    The end is not KVM's: GPAs end at 2^48, where the EPT's four levels do, not where the CPU's do.
    """
    if region.end > MAX_GFN_EPT:
        what = f"gpa {region.gpa:#x} + size {region.size:#x}"
        raise _invalid(what, "guest physical addresses end at 2^48")


def _flag_names(flags: int) -> str:
    """ "READONLY|0x10 (0x12)": names, the bits without one, and in which number."""
    names = [flag.name or "" for flag in SlotFlag if flags & flag]
    unnamed = flags & ~sum(SlotFlag)
    words = names + [hex(unnamed)] * bool(unnamed)
    return f"{'|'.join(words)} ({flags:#x})" if names else "".join(words)


def _invalid(what: str, way_out: str) -> Refused:
    return Refused(errno.EINVAL, f"{what} is refused: {way_out}")


def _check_inside(slot: Memslot, start: Gfn, end: Gfn) -> None:
    if not slot.gfn <= start < end <= slot.end:
        raise Refused(errno.EINVAL, f"{_range(start, end)} is empty or not inside {slot}: give a range of the slot")


def _start_of(segment: GfnRange) -> Gfn:
    return segment[0]


def _range(start: Gfn, end: Gfn) -> str:
    return f"gpa {start << PAGE_SHIFT:#x}-{end << PAGE_SHIFT:#x}"
