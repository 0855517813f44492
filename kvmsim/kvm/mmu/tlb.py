"""The software TLB of one vCPU."""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from kvmsim.memory.memory import Memory
from memfsd.common import trace

V = TypeVar("V")

Translation = tuple[Memory, int, bool]
"""What a vCPU keeps for a GFN: the memory, the byte offset of the page in it, writable."""


RANGED_FLUSH_PAGES = 512
"""Up to so many pages (2 MiB) a zap drops its own translations one by one; a larger one drops all of them."""


def tlb_key(gfn: int, shared: bool) -> int:
    """The two aliases of a GFN are two entries: the private ones have negative keys."""
    return gfn if shared else ~gfn


class Tlb(Generic[V]):
    """Translations by `tlb_key`; what a translation is, is the caller's business.

    Any entry may vanish at any time, as on hardware: when `capacity` entries are there, the next insert drops
    them all first. Each method is atomic under the GIL, so another thread may flush; that no stale
    translation is inserted after a flush is up to the mmu lock and the sequence number of the fault path.
    """

    __slots__ = ("_capacity", "_entries", "flush_count", "insert_count", "lookup", "ranged_flush_count")

    def __init__(self, capacity: int = 1 << 16) -> None:
        assert capacity > 0, capacity
        self._capacity = capacity
        self._entries: dict[int, V] = {}
        self.lookup: Callable[[int], V | None] = self._entries.get
        """The value of a key, or None: dict.get itself, since every guest access goes through it."""
        self.insert_count = 0
        """Misses that were filled, since the start."""
        self.flush_count = 0
        """Full flushes since the start, those of a full TLB among them."""
        self.ranged_flush_count = 0

    def __len__(self) -> int:
        return len(self._entries)

    @trace.hot(trace.Side.VM, before=(trace.Instrument.tlb_filled, lambda to, tlb, key, _: to.tlb_filled(tlb, key)))
    def insert(self, key: int, value: V) -> None:
        if len(self._entries) >= self._capacity:
            self.flush()
        self._entries[key] = value
        self.insert_count += 1

    def flush(self) -> None:
        if trace.vm is not None:
            trace.vm.tlb_flushed(self)
        self._entries.clear()
        self.flush_count += 1

    def flush_keys(self, keys: Iterable[int]) -> None:
        """Drop the translations of these keys only."""
        if trace.vm is not None:
            trace.vm.tlb_entries_flushed(self)
        for key in keys:
            self._entries.pop(key, None)
        self.ranged_flush_count += 1
