"""One virtual kvm put together: KVM, its guest, and user space."""

from typing import TYPE_CHECKING

from memfsd.common import sync
from memfsd.uapi.abi import THREAD, Abi
from memfsd.uapi.messages import KVM_OPERATIONS, Kind

from .cpu.accesses import Guest
from .cpu.x86.library import check
from .kvm.kvm import Kvm
from .kvm.pairings import Pair
from .kvm.vcpu import Vcpu
from .kvm.vm import Vm
from .memory.memory import OpenWindow, WindowMemory
from .store.link import pair as pair_with_store
from .vmm.vmm import Vmm

if TYPE_CHECKING:
    from .cpu.x86.cpus import Cpus


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
        self._cpus: Cpus | None = None
        self._cpus_lock = sync.lock("VirtualMachine.cpus")
        """One Cpus walks the page tables of a VM: gdb, and any vCPU, may be the first to ask for it."""

    @property
    def cpus(self) -> "Cpus":
        """vCPUs that run machine code, made when first asked for. ENOSYS (Refused) without the extra `cpu`."""
        if self._cpus is not None:
            return self._cpus
        check()
        from .cpu.x86.cpus import Cpus

        with self._cpus_lock:
            if self._cpus is None:
                self._cpus = Cpus(self.kvm, self.guest)
            return self._cpus

    def console(self, vcpu: Vcpu) -> str:
        """What the guest on this vCPU has printed since the last time."""
        return self.vmm.ports.console(vcpu)

    def close(self) -> None:
        self.kvm.close()
        self.vmm.close()
