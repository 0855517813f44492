"""A stay in guest mode: what can be had without leaving it is had, and the decrypted copies end with it."""

from collections.abc import Callable
from typing import TypeVar

from kvmsim.kvm.vcpu import Vcpu
from kvmsim.memory.memory import MachineCheck
from memfsd.uapi.units import PAGE_SHIFT

from .engine import Engine, Stop, Why
from .layout import Refusal
from .machine import Machine

T = TypeVar("T")


def stay(machine: Machine, vcpu: Vcpu, engine: Engine, do: Callable[[], T | Stop]) -> T | Stop:
    """`do` in guest mode, again for as long as it is refused what a copy or a region repairs. In the vCPU's turn."""
    vcpu.enter()
    try:
        engine.enter()
        while True:
            got = do()
            if not isinstance(got, Stop) or got.why is not Why.REFUSED:
                return got
            try:
                if not _repair(machine, engine, got):
                    return got
            except MachineCheck as error:
                return Stop(Why.MACHINE_CHECK, gpa=got.gpa, va=error.at)
    finally:
        engine.copies.write_back()
        vcpu.leave()


def _repair(machine: Machine, engine: Engine, stop: Stop) -> bool:
    if stop.refusal is Refusal.NOT_MAPPED:
        if machine.find(stop.pfn) is None:
            return False  # its slot is going: the kick for that is under way
        engine.map_regions()
        return True
    if stop.refusal is Refusal.NOT_COPIED and not engine.copies.is_full:
        ram = machine.find(stop.pfn)
        if ram is None:
            return False
        engine.copies.load(stop.pfn, ram.memory, stop.pfn - ram.first + ram.offset << PAGE_SHIFT)
        return True
    return False
