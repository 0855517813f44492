"""One VM at work: KVM's ioctls, the fault path, and the store's callbacks.

Each layer is a module of its own, and knows those before it:

    backing      what a slot shows
    unmapping    how GFNs lose their mappings
    callbacks    what the store calls
    pairings     links to stores, and what they are told of slots
    slots        memslots, dirty logs
    blocking     the steps of a conversion
    faults       faults and translation, beside them
"""

from collections.abc import Callable

from kvmsim.memory.memory import Memory
from kvmsim.store.link import Callbacks, StoreLink, pair

from .backing import Translation
from .blocking import Blocking
from .faults import Faults
from .vm import Vm

_EVERY_PAGE = 0, (1 << 51) - 1


class Machine(Blocking, Faults):
    """All of it. Close it: its pairings end."""

    def __init__(self, vm: Vm[Memory, Translation], pair: Callable[[int, str, Callbacks], StoreLink] = pair) -> None:
        """pair makes the pairing with the file behind an fd."""
        super().__init__(vm, pair)

    def close(self) -> None:
        """The VM ends: slots go, then every pairing with BYE."""
        with self.slots_lock:
            for vcpu in self.vm.vcpus.values():
                vcpu.kick()
            for slot in list(self.vm.slots[False]):
                self._delete(slot.id, private=False)
            for link in self.links.values():
                with self._retirement():
                    with self.vm.mmu.lock:
                        self._changing[link] = _EVERY_PAGE
                        segments = self._segments(link)
                        for id_ in {slot.id for slot, _, _ in segments}:
                            self.vm.slots[True].delete(id_)
                    self._zap_segments([(start, end) for _, start, end in segments], private=True)
                link.close()
            self.links.clear()
