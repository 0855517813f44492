"""kvmsim: the KVM side. Memslots, EPT, vCPUs, exits, and the callbacks that the store calls to take memory back.

    kvm/        what the kernel would be: page tables, memslots, vCPUs, exits, the notifier that the store calls
    store/      the client of memfsd
    memory/     what slots are backed by
    cpu/        what executes in a VM
    vmm/        user space: exits under a policy, the designs of conversion, the host address space
    machine     one virtual machine put together
    shell/      the script language of `kvmsim run`, and what its commands do
    api/        what a program gets that says `import kvmsim`: docs/api.md
    instruments/    what looks at VMs: journal, monitor, tracing, views, compare, vmms, race
    cli         the command
    pytest_plugin   fixtures: a mount, and a VM

Of memfsd it knows only memfsd.uapi and memfsd.common; race and vmms alone know the rest, and only
the command loads them. The fixtures mount a memfsd.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memfsd.uapi.errors import PeerLost, Refused

    from .api.cpu import Cpu, GuestCode
    from .api.vcpu import VCPU, UnhandledExit
    from .api.vm import VM, EptMapping, Event, MemorySlot
    from .kvm.exits import (
        Exit,
        ExitReason,
        FailedExit,
        HltExit,
        HypercallExit,
        InternalErrorExit,
        IntrExit,
        IoDirection,
        IoExit,
        IrqWindowOpenExit,
        MachineCheckExit,
        MemoryErrorExit,
        MemoryFaultExit,
        MmioExit,
        ShutdownExit,
    )
    from .kvm.hypercalls import KVM_HC_MAP_GPA_RANGE, SHARED_BIT, Registers
    from .kvm.region import SlotFlag
    from .kvm.vcpu import Program
    from .vmm.conversion.design import Design, Tally
    from .vmm.conversion.shared_copy import SharedCopy
    from .vmm.conversion.transaction import Transaction
    from .vmm.guest_memory import GuestMemory

__all__ = [
    "KVM_HC_MAP_GPA_RANGE",
    "SHARED_BIT",
    "VCPU",
    "VM",
    "Cpu",
    "Design",
    "EptMapping",
    "Event",
    "Exit",
    "ExitReason",
    "FailedExit",
    "GuestCode",
    "GuestMemory",
    "HltExit",
    "HypercallExit",
    "InternalErrorExit",
    "IntrExit",
    "IoDirection",
    "IoExit",
    "IrqWindowOpenExit",
    "MachineCheckExit",
    "MemoryErrorExit",
    "MemoryFaultExit",
    "MemorySlot",
    "MmioExit",
    "PeerLost",
    "Program",
    "Refused",
    "Registers",
    "SharedCopy",
    "ShutdownExit",
    "SlotFlag",
    "Tally",
    "Transaction",
    "UnhandledExit",
]

_PLACES = {
    "memfsd.uapi.errors": ("PeerLost", "Refused"),
    "kvmsim.api.cpu": ("Cpu", "GuestCode"),
    "kvmsim.api.vcpu": ("VCPU", "UnhandledExit"),
    "kvmsim.api.vm": ("VM", "EptMapping", "Event", "MemorySlot"),
    "kvmsim.kvm.hypercalls": ("KVM_HC_MAP_GPA_RANGE", "SHARED_BIT", "Registers"),
    "kvmsim.kvm.region": ("SlotFlag",),
    "kvmsim.kvm.vcpu": ("Program",),
    "kvmsim.vmm.conversion.design": ("Design", "Tally"),
    "kvmsim.vmm.conversion.shared_copy": ("SharedCopy",),
    "kvmsim.vmm.conversion.transaction": ("Transaction",),
    "kvmsim.vmm.guest_memory": ("GuestMemory",),
}
"""All others are of kvmsim.kvm.exits."""


def __getattr__(name: str) -> object:
    """Loaded when it is used: every program imports this package, and most of them do not need it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = next((place for place, names in _PLACES.items() if name in names), "kvmsim.kvm.exits")
    return getattr(importlib.import_module(place), name)
