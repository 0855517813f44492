"""KVM_SET_USER_MEMORY_REGION2 as Linux has it: both memories in one slot, one address space."""

import errno

from kvmsim.kvm.region import MAX_SLOT_PAGES, Region2, SlotFlag
from kvmsim.kvm.slots.memslots import RegionChange
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SHIFT, page_aligned

_U64 = 1 << 64
TASK_SIZE_MAX = (1 << 47) - 4096
"""access_ok(): user addresses end here."""
_SPACE_SHIFT = 16


def check_region2(region: Region2, max_slots: int, existing: Region2 | None) -> RegionChange:
    """The wall of __kvm_set_memory_region() (virt/kvm/kvm_main.c), in its order; all Refused are EINVAL.

    existing: the slot of this id. Then come, as there: overlap (EEXIST), the file's errors, the end of GPAs.
    """
    _check_fields(region)
    space, id_ = region.slot >> _SPACE_SHIFT, region.slot & (1 << _SPACE_SHIFT) - 1
    if space:
        raise _invalid(f"address space {space}", "there is one, 0")
    if id_ >= max_slots:
        raise _invalid(f"slot {id_}", f"ids end at {max_slots - 1}: take a free one")
    if region.gpa + region.size >= _U64:
        raise _invalid(f"gpa {region.gpa:#x} + size {region.size:#x}", "it must stay below 2^64")
    if region.size >> PAGE_SHIFT > MAX_SLOT_PAGES:
        raise _invalid(f"size {region.size:#x}", f"{MAX_SLOT_PAGES} pages fit in a slot: make several")
    if not region.size:
        if existing is None:
            raise _invalid(f"size 0 of slot {id_}", "it deletes a slot, and there is none: give a size")
        return RegionChange.DELETE
    return RegionChange.CREATE if existing is None else _change_of(existing, region)


def _check_fields(region: Region2) -> None:
    if not 0 <= region.slot < 1 << 32 or not 0 <= region.flags < 1 << 32:
        raise _invalid(f"slot {region.slot:#x}, flags {region.flags:#x}", "each has 32 bits")
    for name in ("gpa", "size", "userspace_addr", "offset"):
        if not 0 <= getattr(region, name) < _U64:
            raise _invalid(f"{name} {getattr(region, name):#x}", "it has 64 bits")
    allowed = int(SlotFlag.GUEST_MEMFD)
    if not region.is_v2 or not region.has_gmem:
        allowed = int(SlotFlag.LOG_DIRTY_PAGES | SlotFlag.READONLY)
    if region.flags & ~allowed:
        kind = "a slot with a guest_memfd has no other flag" if allowed == SlotFlag.GUEST_MEMFD else "no such flag here"
        raise _invalid(f"flags {region.flags:#x}", kind)
    for name in ("size", "gpa", "userspace_addr"):
        if not page_aligned(getattr(region, name)):
            raise _invalid(f"{name} {getattr(region, name):#x}", "make it a multiple of 4096")
    if region.userspace_addr + region.size > TASK_SIZE_MAX:
        raise _invalid(f"userspace_addr {region.userspace_addr:#x} + size {region.size:#x}", "no address of user space")
    if region.has_gmem and (not page_aligned(region.offset) or region.offset + region.size >= _U64):
        raise _invalid(f"offset {region.offset:#x} + size {region.size:#x}", "whole pages, below 2^64")


def _change_of(existing: Region2, region: Region2) -> RegionChange:
    """What becomes of a slot that is there."""
    if region.has_gmem or existing.has_gmem:
        raise _invalid(f"a change of slot {region.slot}", "one with a guest_memfd is immutable: delete it, then create")
    if (region.userspace_addr, region.size) != (existing.userspace_addr, existing.size):
        raise _invalid(f"another userspace_addr or size of slot {region.slot}", "delete it, then create it again")
    if (region.flags ^ existing.flags) & SlotFlag.READONLY:
        raise _invalid(f"READONLY of slot {region.slot}", "it is fixed at creation: delete first")
    if region.gfn != existing.gfn:
        return RegionChange.MOVE
    return RegionChange.FLAGS_ONLY if region.flags != existing.flags else RegionChange.NONE


def _invalid(what: str, way_out: str) -> Refused:
    return Refused(errno.EINVAL, f"{what} is refused: {way_out}")
