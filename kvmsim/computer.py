"""A VM with its machine, guest and user space."""

from .core.vm import Vm
from .guest import Guest
from .machine import Machine, Translation
from .memory import Memory
from .vmm import Vmm


class Computer:
    """What one `vm NAME` of a script makes."""

    def __init__(self, name: str, max_slots: int) -> None:
        self.vm: Vm[Memory, Translation] = Vm(name, max_slots)
        self.machine = Machine(self.vm)
        self.guest = Guest(self.machine)
        self.vmm = Vmm(self.machine)

    def close(self) -> None:
        self.machine.close()
        self.vmm.close()
