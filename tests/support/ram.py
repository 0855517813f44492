"""The RAM map of user space against KVM's slots, which only a test may compare."""

from typing import Any

from kvmsim.kvm.vm import Vm
from kvmsim.vmm.ram import RamMap, Regions
from memfsd.uapi.units import Gfn, GfnRange, Pgoff


def in_step(ram: RamMap, vm: Vm) -> bool:
    """User space has recorded just what KVM has."""
    slots = [[(s.id, s.gfn, s.page_count, s.pgoff, s.segments) for s in space] for space in vm.slots]
    return slots == [_recorded(ram.shared), _recorded(ram.private)]


def _recorded(regions: Regions[Any]) -> list[tuple[int, Gfn, int, Pgoff, list[GfnRange]]]:
    return [(r.id, r.gfn, r.page_count, r.pgoff, regions.segments(r)) for r in regions]
