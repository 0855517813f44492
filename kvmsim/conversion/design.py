"""What a design of conversion is, and what all of them do alike."""

from typing import NamedTuple, Protocol

from memfsd.uapi.errors import Refused

from ..backing import Runs, link_of
from ..core.memslots import Memslot
from ..core.runs import inside
from ..machine import Machine


class Piece(NamedTuple):
    """GFNs [start, end) of one private slot."""

    slot: Memslot
    start: int
    end: int


class Design(Protocol):
    """Each call converts GFNs [start, end) and answers how many pages changed: all that can, or Refused and none.

    A conversion that is refused leaves slots, bindings and data of both aliases as they were.
    """

    name: str

    def to_shared(self, start: int, end: int) -> int:
        """Pages that private slots show are shown by ordinary slots now; they read as zeros."""

    def to_private(self, start: int, end: int) -> int:
        """The inverse. The shared copy's bytes are gone."""


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
        self.exits = 0
        """Exits that user space saw, those it handled among them."""


def visible_private(machine: Machine, start: int, end: int) -> list[Piece]:
    return [Piece(*segment) for segment in machine.vm.slots[True].visible(start, end)]


def page_count(pieces: list[Piece]) -> int:
    return sum(piece.end - piece.start for piece in pieces)


def give_back(machine: Machine, tally: Tally, pieces: list[Piece], runs: list[Runs]) -> None:
    """The last step to shared: fallocate(PUNCH_HOLE) gives the private frames back to the store, which zeroes them.

    The store takes whole pages of the file's page size. What it does not take is destroyed here and stays allocated.
    Refused when the store refuses before anything is lost; later there is no way back. runs: of each piece, the
    frames that were mapped.
    """
    lost = False
    left: list[tuple[Piece, Runs]] = []
    for piece, mapped in zip(pieces, runs, strict=True):
        start, end = _whole_pages(piece)
        if start < end:
            try:
                link_of(piece.slot).punch(piece.slot.pgoff_of(start), end - start)
                lost = True
                machine.forget(inside(mapped, start, end))
            except Refused:
                if not lost:
                    raise
                start = end
        else:
            start = end = piece.end
        edges = ((piece.start, start), (end, piece.end)) if start < end else ((piece.start, piece.end),)
        left += [(Piece(piece.slot, low, high), mapped) for low, high in edges if low < high]
    for piece, mapped in left:
        slot, start, end = piece
        machine.destroy(slot, inside(mapped, start, end))
        tally.unreturned_pages += end - start


def _whole_pages(piece: Piece) -> tuple[int, int]:
    """The GFNs of a piece that are whole pages of its file; the first not below the second when there are none."""
    size = 1 << link_of(piece.slot).order
    apart = piece.slot.pgoff - piece.slot.gfn
    first = -(-(piece.start + apart) // size) * size - apart
    return first, (piece.end + apart) // size * size - apart
