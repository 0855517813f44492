"""A VM with its machine, guest, user space, and the commands that run its vCPUs."""

from .core.vm import Vm
from .guest import Guest
from .machine import Machine, Translation
from .memory import Memory
from .vcpu_commands import VcpuCommands
from .vmm import Vmm


class Computer:
    """What one `vm NAME` of a script makes."""

    def __init__(self, name: str, max_slots: int) -> None:
        self.vm: Vm[Memory, Translation] = Vm(name, max_slots)
        self.machine = Machine(self.vm)
        self.guest = Guest(self.machine)
        self.vmm = Vmm(self.machine)
        self.vcpu_commands = VcpuCommands(self.machine, self.guest, self.vmm)

    def close(self) -> None:
        self.vcpu_commands.close()
        self.machine.close()
        self.vmm.close()
