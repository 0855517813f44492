"""How real VMMs convert memory: the order of their calls on a conversion exit, as their sources have it.

calls              what their code calls, and what the harness asks of a model
qemu               attributes, RamDiscardManager, then one discard
cloud_hypervisor   attributes, then punches whose failure is logged
libkrun            one region, one worker thread, one reply too many
alioth             attributes of each region, and no discard
firecracker        the secret-free branch: one copy, and no conversion
reference          all or nothing, over several regions, with discards on both sides

No text is theirs: each model says which version and which source file the order is read from. `kvmsim vmms --model`
runs a model of your own: what it needs is importable from here.
"""

from .alioth import Alioth
from .calls import Calls, Facts, Model, Region, VmEnded, is_private, pages, size_of
from .cloud_hypervisor import CloudHypervisor
from .firecracker import Firecracker
from .libkrun import Libkrun
from .qemu import Qemu
from .reference import Reference

MODELS: tuple[type[Model], ...] = (Qemu, CloudHypervisor, Libkrun, Alioth, Firecracker, Reference)

__all__ = [
    "MODELS",
    "Alioth",
    "Calls",
    "CloudHypervisor",
    "Facts",
    "Firecracker",
    "Libkrun",
    "Model",
    "Qemu",
    "Reference",
    "Region",
    "VmEnded",
    "is_private",
    "pages",
    "size_of",
]
