"""A VM of a script: a virtual machine, and the commands that run its vCPUs."""

from kvmsim.kvm.pairings import Pair
from kvmsim.machine import VirtualMachine
from kvmsim.memory.memory import OpenWindow
from memfsd.uapi.abi import Abi
from memfsd.uapi.messages import Kind

from .interrupt import Interrupt
from .vcpu_commands import VcpuCommands


class ScriptVm(VirtualMachine):
    """What `vm NAME` makes."""

    def __init__(
        self,
        name: str,
        max_slots: int,
        interrupt: Interrupt,
        pair: Pair,
        open_window: OpenWindow,
        operations: frozenset[Kind],
        abi: Abi,
    ) -> None:
        super().__init__(name, max_slots, pair, open_window, operations, abi)
        self.vcpu_commands = VcpuCommands(self, interrupt)

    def close(self) -> None:
        self.vcpu_commands.close()
        super().close()
