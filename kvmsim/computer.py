"""A VM with its machine, guest and user space."""

from memfsd.uapi.journal import NO_JOURNAL, Journal

from .core.vm import Vm
from .guest import Guest
from .journal.record import JournaledMachine, JournaledMmu
from .machine import Machine, Translation
from .memory import Memory
from .vmm import Vmm


class Computer:
    """What one `vm NAME` of a script makes."""

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
