"""One virtual kvm put together: KVM, its guest, and user space."""

from memfsd.uapi.abi import THREAD, Abi
from memfsd.uapi.messages import KVM_OPERATIONS, Kind

from .cpu.accesses import Guest
from .kvm.kvm import Kvm
from .kvm.pairings import Pair
from .kvm.vm import Vm
from .memory.memory import OpenWindow, WindowMemory
from .store.link import pair as pair_with_store
from .vmm.vmm import Vmm


class VirtualMachine:
    """What a VMM process has for one VM."""

    def __init__(
        self,
        name: str,
        max_slots: int,
        pair: Pair = pair_with_store,
        open_window: OpenWindow = WindowMemory,
        operations: frozenset[Kind] = KVM_OPERATIONS,
        abi: Abi = THREAD,
    ) -> None:
        """pair makes the pairing with the file behind an fd, open_window maps its window. operations: what stores may
        call."""
        self.kvm = Kvm(Vm(name, max_slots, abi), pair, open_window, operations)
        self.vm = self.kvm.vm
        self.guest = Guest(self.kvm)
        self.vmm = Vmm(self.kvm)

    def close(self) -> None:
        self.kvm.close()
        self.vmm.close()
