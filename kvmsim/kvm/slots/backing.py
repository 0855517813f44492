"""What a slot shows."""

from dataclasses import dataclass
from typing import Protocol

from kvmsim.memory.memory import Memory, WindowMemory
from memfsd.uapi.messages import GetPfnReply
from memfsd.uapi.units import Gfn, HostPfn, Pgoff


class Gmem(Protocol):
    """A paired file as KVM calls it: the store's half of struct kvm_gmem_ops. PeerLost when the store is gone, Refused
    with the store's errno.

    memory: the file's window. base: the first of its frame numbers in the VM. order: the file's page size, and so the
    largest leaf that may show it. lost: why the store is gone, "" while it is there.
    """

    memory: WindowMemory
    base: HostPfn
    order: int
    frame_count: int
    lost: str
    seq: int
    ino: int
    conn: int

    def bind(self, slot: int, gfn: Gfn, pgoff: Pgoff, page_count: int) -> None: ...
    def unbind(self, pgoff: Pgoff, page_count: int) -> None: ...
    def get_pfn(self, pgoff: Pgoff, max_pages: int, order: int = 0) -> GetPfnReply: ...
    def find(self, pgoff: Pgoff, max_pages: int) -> GetPfnReply | None: ...
    def attributes(self, pgoff: Pgoff) -> tuple[bool, int]: ...
    def punch(self, pgoff: Pgoff, page_count: int) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class SlotBacking:
    """Frame numbers from base on; gmem for private slots.

    owned: closed with the slot. pinned: made from an encrypted mapping, and so there until the VM ends.
    whole: the frame numbers are those of all of the memory, which other slots may show too. emulated: the memory that
    KVM's own accesses go to, and the byte of it that the slot begins with, where that is not the guest's.
    """

    memory: Memory
    base: HostPfn
    gmem: Gmem | None = None
    owned: bool = False
    path: str = ""
    pinned: bool = False
    whole: bool = False
    emulated: tuple[Memory, int] | None = None

    @property
    def leaf_order(self) -> int:
        return self.memory.leaf_order if self.gmem is None else self.gmem.order
