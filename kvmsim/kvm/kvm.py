"""KVM of one VM: its state, and the parts that work on it.

vm          memslots, EPTs, vCPUs
unmapper    how GFNs lose their mappings when it is this side that takes them away
notifier    what the store calls
relocator   pages that move to other frames
pairings    connections to stores, and what they know of slots
slots       KVM_SET_USER_MEMORY_REGION and what belongs to it
guest_memfds  files of KVM_CREATE_GUEST_MEMFD, slots with both memories
attributes  KVM_SET_MEMORY_ATTRIBUTES
blocking    the steps of a conversion that can be taken back
faults      EPT violations, translation
emulation   KVM's own accesses to guest memory
pre_fault   faults ahead of the guest's accesses
image       what private memory holds before the guest runs, and its measurement
walking     page tables for vCPUs that run machine code
"""

from kvmsim.memory.mapped import MapFile, MappedFile
from kvmsim.memory.memory import OpenWindow, WindowMemory
from kvmsim.store.link import pair as pair_with_store
from memfsd.common import sync
from memfsd.uapi.messages import KVM_OPERATIONS, Kind
from memfsd.uapi.units import PGOFF_END, Gfn, Pgoff

from .alias import PRIVATE, SHARED
from .attribute_ioctls import AttributeIoctls
from .blocking import Blocking
from .emulation import Emulation
from .faults import Faults
from .guest_memfds import GuestMemfds
from .ioctls import SlotIoctls
from .memory_use import MemoryUser
from .mmu.eptentry import MAX_GFN_EPT
from .notifier import Notifier
from .pairings import Pair, Pairings
from .populate import InitialImage
from .prefault import PreFault
from .unmapper import Unmapper
from .vm import Vm
from .walking import Walking

_EVERY_PAGE = Pgoff(0), PGOFF_END - 1
_EVERY_GFN = Gfn(0), MAX_GFN_EPT


class Kvm:
    """Close it: its pairings end."""

    def __init__(
        self,
        vm: Vm,
        pair: Pair = pair_with_store,
        open_window: OpenWindow = WindowMemory,
        operations: frozenset[Kind] = KVM_OPERATIONS,
        map_file: MapFile = MappedFile,
    ) -> None:
        """pair makes the pairing with the file behind an fd, open_window maps its window, map_file the file itself.
        operations: what stores may call."""
        self.vm = vm
        self.slots_lock = sync.lock("Kvm.slots_lock")
        """Changes of slots and pairings, one at a time (KVM's slots_lock)."""
        self.unmapper = Unmapper(vm)
        self.notifier = Notifier(vm, self.unmapper, open_window, operations)
        self.pairings = Pairings(vm, self.slots_lock, self.notifier, pair)
        self.slots = SlotIoctls(vm, self.slots_lock, self.unmapper, self.pairings)
        self.guest_memfds = GuestMemfds(vm, self.slots_lock, self.unmapper, self.pairings, self.slots, map_file)
        self.attributes = AttributeIoctls(vm, self.slots_lock, self.unmapper)
        self.blocking = Blocking(vm, self.slots_lock, self.unmapper, self.pairings)
        self.memory = MemoryUser(vm, self.slots_lock)
        self.faults = Faults(vm)
        self.emulation = Emulation(vm, self.faults)
        self.image = InitialImage(vm, self.slots_lock, self.unmapper, self.faults)
        self.pre_fault = PreFault(vm, self.faults, self.unmapper)
        self.walking = Walking(vm)

    def close(self) -> None:
        """The VM ends: slots go, then every pairing with BYE."""
        vm, links = self.vm, self.pairings.links
        with self.slots_lock:
            self.unmapper.kick_all()
            for slot in list(vm.slots[SHARED]):
                self.slots.delete(slot.id, private=False)
            for link in links.values():
                with self.unmapper.deleting([_EVERY_GFN]):
                    with vm.mmu.lock:
                        self.notifier.changing[link] = _EVERY_PAGE
                        segments = self.notifier.segments(link)
                        for id_ in {slot.id for slot, _, _ in segments}:
                            vm.slots[PRIVATE].delete(id_)
                    self.unmapper.zap([(start, end) for _, start, end in segments], private=True)
                link.close()
            links.clear()
            self.guest_memfds.forget()
