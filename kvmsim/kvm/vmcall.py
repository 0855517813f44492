"""KVM's side of a guest's calls: MapGPA the thread's way or Linux's way, and KVM's own hypercalls.

The thread's way: a range that one slot covers is mapped without an exit; else the vCPU exits with KVM_EXIT_MEMORY_ERROR
for all that is left, and looks again when it is run again, unless user space has answered for the range. Linux's way,
when user space has asked for KVM_HC_MAP_GPA_RANGE (KVM_CAP_EXIT_HYPERCALL): each chunk of 2 MiB is user space's to
answer.
"""

import errno
from collections.abc import Sequence
from dataclasses import replace

from memfsd.common import trace
from memfsd.uapi.units import PAGE_SHIFT, Gfn

from . import hypercalls as h
from .exits import Exit, HypercallExit, MemoryErrorExit
from .hypercalls import Registers
from .kvm import Kvm
from .region import GPA_END
from .vcpu import Program, Vcpu


def vmcall(kvm: Kvm, vcpu: Vcpu, nr: int, args: Sequence[int], *, is_tdcall: bool = False) -> Program[int]:
    """RAX of a hypercall of KVM. One that user space has asked for is its to answer; there are no others."""
    vcpu.hypercall_count += 1
    if trace.vm is not None:
        trace.vm.hypercall(kvm.vm.name, vcpu.id, nr, args, is_tdcall)
    yield from vcpu.entry()
    if nr >= h.EXIT_HYPERCALLS or not kvm.vm.exit_hypercalls >> nr & 1:
        return h.negative(h.KVM_ENOSYS)
    if nr == h.KVM_HC_MAP_GPA_RANGE and (error := h.map_gpa_range_error([*args, 0, 0])):
        return h.negative(error)
    yield HypercallExit(nr, tuple(args))
    answer: int = vcpu.run.hypercall.ret
    return answer


def tdvmcall(kvm: Kvm, vcpu: Vcpu, asked: Registers) -> Program[Registers]:
    """TDG.VP.VMCALL: R10 the status, R11 where MapGPA stopped (with the SHARED bit, when it was asked with it)."""
    if asked.r10:
        args = (asked.r11, asked.r12, asked.r13, asked.r14)
        return replace(asked, r10=(yield from vmcall(kvm, vcpu, asked.r10, args, is_tdcall=True)))
    vcpu.hypercall_count += 1
    if trace.vm is not None:
        args = (asked.r12, asked.r13, asked.r14, asked.r15)
        trace.vm.hypercall(kvm.vm.name, vcpu.id, asked.r11, args, True)
    yield from vcpu.entry()
    asks_user_space = bool(kvm.vm.exit_hypercalls >> h.KVM_HC_MAP_GPA_RANGE & 1)
    if asked.r11 != h.MAP_GPA or not (asks_user_space or kvm.vm.rules.maps_explicitly):
        return replace(asked, r10=h.SUBFUNC_UNSUPPORTED)
    shared, gpa = asked.r12 & h.SHARED_BIT, asked.r12 & ~h.SHARED_BIT
    status = h.map_gpa_status(gpa, asked.r13, GPA_END)
    if status != h.SUCCESS:
        return replace(asked, r10=status, r11=asked.r12)
    way = _ask_user_space if asks_user_space else _map
    status, stopped = yield from way(kvm, vcpu, gpa, gpa + asked.r13, not shared)
    return replace(asked, r10=status, r11=stopped | shared)


def _map(kvm: Kvm, vcpu: Vcpu, start: int, end: int, private: bool) -> Program[tuple[int, int]]:
    """Status, and the GPA where it stopped: every page gets mapped, with a look at pending events after each chunk."""
    vm, mmu = kvm.vm, kvm.vm.mmu
    at, stop, gfn, last = start, h.chunk_end(start, end), Gfn(start >> PAGE_SHIFT), Gfn(end >> PAGE_SHIFT)
    while True:
        with mmu.lock:
            covered = vm.rules.covers(Gfn(at >> PAGE_SHIFT), last, private=private)
            if covered:
                gfn = mmu.epts[private].first_missing(gfn, last)
        exit_: Exit | None
        if covered:
            if gfn == last:
                return h.SUCCESS, end
            if gfn << PAGE_SHIFT >= stop:
                at += ((gfn << PAGE_SHIFT) - at) // h.CHUNK_BYTES * h.CHUNK_BYTES
                stop = h.chunk_end(at, end)
                if vcpu.run.immediate_exit:
                    return h.RETRY, at
            want = (stop >> PAGE_SHIFT) - gfn
            exit_ = kvm.faults.fault(vcpu, gfn, shared=not private, write=False, want=want)
            if not isinstance(exit_, MemoryErrorExit):
                continue  # mapped; or the slot has just gone, which the next look shows
            exit_ = replace(exit_, explicit=True)
        else:
            exit_ = MemoryErrorExit(at, end - at, private, explicit=True)
        yield exit_
        if vcpu.run.memory_error.answered:
            return h.SUCCESS, end
        yield from vcpu.entry()


def _ask_user_space(kvm: Kvm, vcpu: Vcpu, start: int, end: int, private: bool) -> Program[tuple[int, int]]:
    """As Linux's TDX: 0 goes on, EAGAIN is the guest's to retry, anything else refuses the rest."""
    at = start
    while True:
        stop = h.chunk_end(at, end)
        yield HypercallExit(
            h.KVM_HC_MAP_GPA_RANGE, (at, stop - at >> PAGE_SHIFT, h.MAP_GPA_RANGE_ENCRYPTED if private else 0)
        )
        if vcpu.run.hypercall.ret:
            return (h.RETRY if vcpu.run.hypercall.ret == errno.EAGAIN else h.INVALID_OPERAND), at
        at = stop
        if at == end:
            return h.SUCCESS, end
        if vcpu.run.immediate_exit:
            return h.RETRY, at
