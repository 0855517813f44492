"""A device's DMA: pages of the VMM's shared memory that are pinned and mapped for it."""

from collections.abc import Callable

from memfsd.uapi.units import Gfn


class Iommu:
    """A pin outlives a discard: the page leaves the VMM's memory and stays the device's, and whoever touches the
    address next gets another page. So memory that is discarded under a mapping is not given back."""

    def __init__(self, page_of: Callable[[Gfn], bytes]) -> None:
        """page_of: pins a page of shared memory, allocating it if it must, and reads it."""
        self._page_of = page_of
        self._pins: dict[Gfn, bytes | None] = {}
        """Mapped pages; those that the VMM has discarded, with what they hold."""

    @property
    def mapped(self) -> frozenset[Gfn]:
        return frozenset(self._pins)

    @property
    def stale(self) -> frozenset[Gfn]:
        """Mapped pages that the guest does not see any more."""
        return frozenset(gfn for gfn, kept in self._pins.items() if kept is not None)

    def map(self, gfn: Gfn) -> None:
        if gfn not in self._pins:
            self._page_of(gfn)
            self._pins[gfn] = None

    def unmap(self, gfn: Gfn) -> None:
        self._pins.pop(gfn, None)

    def discarding(self, gfn: Gfn) -> None:
        """The VMM is about to discard this page."""
        if gfn in self._pins and self._pins[gfn] is None:
            self._pins[gfn] = self._page_of(gfn)
