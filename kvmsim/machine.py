"""One virtual machine put together: KVM, its guest, and user space."""

from memfsd.common.journal import NO_JOURNAL, Journal

from .cpu.accesses import Guest
from .journal.record import JournaledMachine, JournaledMmu
from .kvm.backing import Translation
from .kvm.machine import Machine
from .kvm.vm import Vm
from .memory.memory import Memory
from .vmm.vmm import Vmm


class VirtualMachine:
    """What a VMM process has for one VM."""

    def __init__(self, name: str, max_slots: int, journal: Journal = NO_JOURNAL) -> None:
        self.vm: Vm[Memory, Translation]
        self.machine: Machine
        if journal is NO_JOURNAL:
            self.vm = Vm(name, max_slots)
            self.machine = Machine(self.vm)
        else:
            self.vm = Vm(name, max_slots, JournaledMmu(journal, name))
            self.machine = JournaledMachine(self.vm, journal)
        self.guest = Guest(self.machine)
        self.vmm = Vmm(self.machine)

    def close(self) -> None:
        self.machine.close()
        self.vmm.close()
