"""KVM_PRE_FAULT_MEMORY: pages are faulted in ahead of the guest's accesses."""

import errno

from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn

from .alias import SHARED, Alias
from .faults import Faults, refused
from .hypercalls import SHARED_BIT
from .mmu.eptentry import MAX_GFN_EPT
from .unmapper import Unmapper
from .vcpu import Vcpu
from .vm import Vm

_U64 = 1 << 64


class PreFault:
    """An ioctl of a vCPU: what is under way on it stays."""

    def __init__(self, vm: Vm, faults: Faults, unmapper: Unmapper) -> None:
        self._vm = vm
        self._faults = faults
        self._unmapper = unmapper

    def __call__(self, vcpu: Vcpu, gpa: int, size: int, *, shared: bool) -> int:
        """Map [gpa, gpa + size) of one alias, which the SHARED bit chooses as `shared` does (where there are memory
        attributes: they do, page by page), in order; the bytes at its
        end that are still to do. They are fewer than `size` if and only if something was mapped: what stopped it then
        is what the call for the rest is refused with.

        EINVAL: unaligned, empty, or its end is not below 2^64. ENOENT: no slot shows the first page. EAGAIN: its slot
        is being deleted. EINTR: the vCPU was kicked. EBUSY: another thread has it. Else what a fault of the page ends
        with, by kvm_run.memory_error.error. As kvm_vcpu_pre_fault_memory() (virt/kvm/kvm_main.c).
        """
        if (gpa | size) % PAGE_SIZE:
            raise Refused(errno.EINVAL, f"gpa {gpa:#x} and size {size:#x} must be multiples of 4096")
        if gpa < 0 or size <= 0 or gpa + size >= _U64:
            raise Refused(errno.EINVAL, f"gpa {gpa:#x} + size {size:#x}: give at least one page, and end before 2^64")
        if gpa & SHARED_BIT:
            gpa, shared = gpa & ~SHARED_BIT, True
        first = gfn = Gfn(gpa >> PAGE_SHIFT)
        end = first + (size >> PAGE_SHIFT)
        with vcpu.held():
            while gfn < end:
                alias = self._faults.prefaulted(gfn, Alias(not shared))
                stopped = self._fault(vcpu, gfn, end, shared=alias is SHARED)
                if stopped is not None:
                    if gfn == first:
                        raise stopped
                    break
                # What was mapped may be gone again by now, and is done all the same.
                mapped_to = self._faults.first_unmapped(gfn, min(end, MAX_GFN_EPT), shared=alias is SHARED)
                gfn = max(mapped_to, gfn + 1)
        return end - gfn << PAGE_SHIFT

    def _fault(self, vcpu: Vcpu, gfn: Gfn, end: Gfn, *, shared: bool) -> Refused | None:
        """Map one page, and perhaps more; or why not."""
        if vcpu.run.immediate_exit:
            return Refused(errno.EINTR, f"vCPU {vcpu.id} was kicked: pre-fault again to go on")
        exit_ = self._faults.fault(vcpu, gfn, shared=shared, write=False, want=end - gfn)
        if exit_ is None:
            return None
        answer = refused(exit_)
        if answer.errno != errno.ENOENT:
            return answer
        alias = Alias(not shared)
        shown = f"gpa {gfn << PAGE_SHIFT:#x}, {alias.name.lower()}"
        with self._vm.mmu.lock:
            if self._unmapper.is_going(alias, gfn):
                return Refused(errno.EAGAIN, f"{shown}: its slot is being deleted: pre-fault again when that is over")
        return Refused(errno.ENOENT, f"{shown}: {answer.reason}")
