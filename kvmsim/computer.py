"""A VM with its machine, guest, user space, and the commands that run its vCPUs."""

from memfsd.uapi.journal import NO_JOURNAL, Journal

from .backing import Translation
from .core.vm import Vm
from .guest import Guest
from .interrupt import Interrupt
from .journal.record import JournaledMachine, JournaledMmu
from .machine import Machine
from .memory import Memory
from .vcpu_commands import VcpuCommands
from .vmm import Vmm


class Computer:
    """What one `vm NAME` of a script makes."""

    def __init__(
        self, name: str, max_slots: int, journal: Journal = NO_JOURNAL, interrupt: Interrupt | None = None
    ) -> None:
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
        self.vcpu_commands = VcpuCommands(self.machine, self.guest, self.vmm, interrupt or Interrupt())

    def close(self) -> None:
        self.vcpu_commands.close()
        self.machine.close()
        self.vmm.close()
