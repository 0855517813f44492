"""User space's map of guest memory: what it has set with KVM_SET_USER_MEMORY_REGION, in both aliases.

KVM has no call that lists its slots, so a VMM records its ioctls (QEMU: struct KVMSlot), and decides from that:

    region 0   |-----------------------------|     id, GFNs, and the file or host memory that is at them
    shows      |-------|     |---------------|     a punched private region shows less: the rest are holes

GFNs count 4 KiB pages, ranges are half-open. Pure: guest_memory.py makes the calls and keeps this in step.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from kvmsim.kvm.pairings import PairedFile
from kvmsim.memory.memory import Memory
from memfsd.common.intervals import IntervalMap, subtract
from memfsd.uapi.units import Gfn, GfnRange, Pgoff

S = TypeVar("S")
_made = itertools.count()


@dataclass(frozen=True, slots=True, eq=False)
class Region(Generic[S]):
    """page_count pages from gfn on: those of `source` from its page pgoff on. flags: KVM_MEM_*."""

    id: int
    gfn: Gfn
    page_count: int
    flags: int
    source: S
    pgoff: Pgoff
    serial: int = field(init=False, repr=False, default_factory=_made.__next__)
    """Regions made later have a larger one."""

    @property
    def end(self) -> Gfn:
        return self.gfn + self.page_count

    def pgoff_of(self, gfn: Gfn) -> Pgoff:
        """The page of the source at this GFN."""
        return self.pgoff + gfn - self.gfn


class Piece(NamedTuple, Generic[S]):
    """GFNs [start, end) of one region."""

    region: Region[S]
    start: Gfn
    end: Gfn


class Regions(Generic[S]):
    """The regions of one alias. KVM has accepted each change before it is recorded here."""

    def __init__(self) -> None:
        self._regions: dict[int, Region[S]] = {}
        self._visible: IntervalMap[Region[S]] = IntervalMap()

    def __len__(self) -> int:
        return len(self._regions)

    def __iter__(self) -> Iterator[Region[S]]:
        """By GFN; those of the same GFN (one lies in a hole of the other) by id."""
        return iter(sorted(self._regions.values(), key=lambda region: (region.gfn, region.id)))

    def get(self, id_: int) -> Region[S] | None:
        return self._regions.get(id_)

    # -- what is where

    def visible(self, start: Gfn, end: Gfn) -> list[Piece[S]]:
        """What regions show of [start, end), in order."""
        return [Piece(region, low, high) for low, high, region in self._visible.within(start, end)]

    def around(self, gfn: Gfn) -> Piece[S] | None:
        """All that the region of this GFN shows without a gap."""
        found = self._visible.find(gfn)
        return None if found is None else Piece(found[2], found[0], found[1])

    def covers(self, start: Gfn, end: Gfn) -> bool:
        """One region shows all of [start, end): what KVM asks of the range of an explicit request."""
        piece = self.around(start)
        return piece is not None and end <= piece.end

    def missing(self, start: Gfn, end: Gfn) -> list[GfnRange]:
        """What of [start, end) no region shows."""
        return subtract(start, end, ((low, high) for low, high, _ in self._visible.within(start, end)))

    def segments(self, region: Region[S]) -> list[GfnRange]:
        """What a region shows."""
        pieces = self._visible.within(region.gfn, region.end)
        return [(low, high) for low, high, shown in pieces if shown is region]

    def holes(self, start: Gfn, end: Gfn) -> list[Piece[S]]:
        """What of [start, end) regions have and none shows, in order. Where several have a page, it is the youngest's,
        which was made in a hole of the others: it has shown the page last."""
        left, pieces = IntervalMap[None](), list[Piece[S]]()
        for low, high in self.missing(start, end):
            left.add(low, high, None)
        for region in sorted(self._regions.values(), key=lambda region: region.serial, reverse=True):
            pieces += [Piece(region, low, high) for low, high, _ in left.cut(region.gfn, region.end)]
        return sorted(pieces, key=lambda piece: piece.start)

    # -- what KVM has accepted

    def add(self, region: Region[S], segments: list[GfnRange] | None = None) -> None:
        """segments: what it shows, if not all of it."""
        assert region.id not in self._regions, region
        self._regions[region.id] = region
        for start, end in [(region.gfn, region.end)] if segments is None else segments:
            self._visible.add(start, end, region)

    def remove(self, id_: int) -> Region[S]:
        region = self._regions.pop(id_)
        for start, _ in self.segments(region):
            self._visible.remove(start)
        return region

    def punch(self, id_: int, start: Gfn, end: Gfn) -> None:
        """The region shows [start, end) no longer."""
        cut = self._visible.cut(start, end)
        assert [(low, high, region.id) for low, high, region in cut] == [(start, end, id_)], cut

    def fill(self, id_: int, start: Gfn, end: Gfn) -> None:
        """The region shows [start, end) again."""
        self._visible.put(start, end, self._regions[id_])


PrivateRegion = Region[PairedFile]
PrivatePiece = Piece[PairedFile]
SharedRegion = Region[Memory]


class RamMap:
    """Both aliases of one VM."""

    def __init__(self) -> None:
        self.shared: Regions[Memory] = Regions()
        self.private: Regions[PairedFile] = Regions()

    def is_known(self, start: Gfn, end: Gfn) -> bool:
        """Every page of [start, end) is memory in one alias or the other; what a person has punched is not."""
        shown = [(low, high) for _, low, high in (*self.shared.visible(start, end), *self.private.visible(start, end))]
        return not subtract(start, end, shown)

    def is_unknown(self, start: Gfn, end: Gfn) -> bool:
        """No page of [start, end) is memory."""
        return not self.shared.visible(start, end) and not self.private.visible(start, end)
