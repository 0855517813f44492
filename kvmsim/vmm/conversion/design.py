"""What a design of conversion is, and what all of them do alike."""

from collections.abc import Iterable
from typing import Protocol

from kvmsim.vmm.guest_memory import GuestMemory
from kvmsim.vmm.ram import PrivatePiece, RamMap
from memfsd.common.intervals import subtract
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import Gfn, GfnRange


class Design(Protocol):
    """Each call converts GFNs [start, end), all of them or none, and returns how many pages changed.

    None, or Refused: slots, bindings and data of both aliases are as they were. None when a page of the range would
    not be in the wanted alias afterwards, so that the guest's request could not complete.
    """

    name: str

    def to_shared(self, start: Gfn, end: Gfn) -> int | None:
        """What was private memory is shared now; it reads as zeros, unless pages are converted in place."""

    def to_private(self, start: Gfn, end: Gfn) -> int | None:
        """The inverse. The shared bytes are gone, unless pages are converted in place."""


class Tally:
    """What conversions cost and lost, counted over all designs of a VM."""

    def __init__(self) -> None:
        self.to_shared_pages = 0
        self.to_private_pages = 0
        self.lost_pages = 0
        """Touched private pages outside the converted range whose contents were destroyed."""
        self.unreturned_pages = 0
        """Private pages that the store did not take back, so that they stay allocated beside their shared copy."""
        self.rolled_back = 0
        """Conversions that were refused and taken back."""


def all_shared_or(pieces: list[PrivatePiece], ram: RamMap, start: Gfn, end: Gfn) -> bool:
    """Every page of [start, end) is in an ordinary slot, or in one of these pieces."""
    return _all_in((*ram.shared.visible(start, end), *pieces), start, end)


def all_private_or(pieces: list[PrivatePiece], ram: RamMap, start: Gfn, end: Gfn) -> bool:
    """Every page of [start, end) is in a private slot, or in one of these pieces."""
    return _all_in((*ram.private.visible(start, end), *pieces), start, end)


def _all_in(pieces: Iterable[tuple[object, int, int]], start: Gfn, end: Gfn) -> bool:
    return not subtract(start, end, ((low, high) for _, low, high in pieces))


def page_count(pieces: list[PrivatePiece]) -> int:
    return sum(piece.end - piece.start for piece in pieces)


def give_back(memory: GuestMemory, tally: Tally, pieces: list[PrivatePiece]) -> None:
    """The last step to shared: fallocate(PUNCH_HOLE) gives the private frames back to the store, which zeroes them.

    The store takes whole pages of the file's page size, or parts of them if it splits pages. What it does not take is
    destroyed here and stays allocated.
    Refused when the store refuses before anything is lost; later there is no way back. The pieces are blocked.
    """
    with memory.holding(pieces):
        _give_back(memory, tally, pieces)


def _give_back(memory: GuestMemory, tally: Tally, pieces: list[PrivatePiece]) -> None:
    lost = False
    left: list[GfnRange] = []
    for piece in pieces:
        start, end = _whole_pages(piece)
        if start < end:
            try:
                memory.give_back(piece.region, start, end)
                lost = True
            except Refused:
                if not lost:
                    raise
                start = end
        else:
            start = end = piece.end
        left += subtract(piece.start, piece.end, [(start, end)])
    for start, end in left:
        memory.destroy(start, end)
        tally.unreturned_pages += end - start


def _whole_pages(piece: PrivatePiece) -> GfnRange:
    """The GFNs of a piece that can be given back to its file; the first not below the second when there are none."""
    size = 1 << piece.region.source.punch_order
    delta = piece.region.pgoff - piece.region.gfn
    first = -(-(piece.start + delta) // size) * size - delta
    return Gfn(first), Gfn((piece.end + delta) // size * size - delta)
