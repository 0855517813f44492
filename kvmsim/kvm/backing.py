"""What a slot shows, and the types that go with it."""

from dataclasses import dataclass

from kvmsim.memory.memory import Memory
from kvmsim.store.link import StoreLink

from .slots.memslots import Memslot
from .vcpu import Vcpu

Translation = tuple[Memory, int, bool]
"""What a TLB entry holds: the memory, the byte offset of the page in it, writable."""
GuestVcpu = Vcpu[Translation]
Runs = list[tuple[int, int, int]]
"""Mapped pages: (gfn, host frame, pages)."""


@dataclass(frozen=True, slots=True, eq=False)
class Backing:
    """What a slot shows: frame numbers from base; link for private slots.

    owned: closed with the slot. sticky: made from an encrypted mapping, and so there until the VM ends.
    whole: the frame numbers are those of all of the memory, which other slots may show too.
    """

    memory: Memory
    base: int
    link: StoreLink | None = None
    owned: bool = False
    path: str = ""
    sticky: bool = False
    whole: bool = False

    @property
    def leaf_order(self) -> int:
        return self.memory.leaf_order if self.link is None else self.link.order


def backing_of(slot: Memslot) -> Backing:
    assert isinstance(slot.backing, Backing)
    return slot.backing


def link_of(slot: Memslot) -> StoreLink:
    link = backing_of(slot).link
    assert link is not None
    return link
