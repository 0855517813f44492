"""What a guest does on one vCPU: reads, writes, touches, the map hypercall, and KVM's own accesses for it.

Every action returns the exit that stopped it, or None. It can be run again after the cause was repaired: what
it did before is done again with the same effect. One page goes the scalar way (TLB, walk, fault); more
go in runs of the page table, in guest mode for at most _BULK_PAGES at a time, so that kicks get through.
"""

import errno
import hashlib
from collections.abc import Callable
from dataclasses import replace

from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE

from .core.ept import ACCESSED, DIRTY
from .core.exits import Exit, MemoryErrorExit, MmioExit
from .core.hypercalls import ALIGN_ERROR, SHARED_BIT, SUCCESS, chunks, map_gpa_status
from .core.memslots import SlotFlag
from .core.vm import GPA_END
from .machine import GuestVcpu, Machine, backing_of
from .memory import Memory

_BULK_PAGES = 4096

RunAction = Callable[[Memory, int, int, int], None]
"""(memory, byte offset in it, bytes, bytes done before) for a contiguous piece of an access."""


class Guest:
    """The guest of one machine. GPAs may carry the SHARED bit, which chooses the alias as `shared` does."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def read(self, vcpu: GuestVcpu, gpa: int, length: int, *, shared: bool = False) -> bytes | Exit:
        gpa, shared = _alias(gpa, length, shared)
        if gpa % PAGE_SIZE + length <= PAGE_SIZE:
            pieces: list[bytes] = []
            exit_ = self._page(
                vcpu, gpa, length, shared, False, lambda memory, offset: pieces.append(memory.read(offset, length))
            )
            return exit_ or pieces[0]
        buffer = bytearray(length)

        def take(memory: Memory, offset: int, size: int, done: int) -> None:
            buffer[done : done + size] = memory.read(offset, size)

        return self._bulk(vcpu, gpa, length, shared, False, take) or bytes(buffer)

    def write(self, vcpu: GuestVcpu, gpa: int, data: bytes, *, shared: bool = False) -> Exit | None:
        gpa, shared = _alias(gpa, len(data), shared)
        if gpa % PAGE_SIZE + len(data) <= PAGE_SIZE:
            exit_ = self._page(vcpu, gpa, len(data), shared, True, lambda memory, offset: memory.write(offset, data))
        else:
            view = memoryview(data)

            def put(memory: Memory, offset: int, size: int, done: int) -> None:
                memory.write(offset, bytes(view[done : done + size]))

            exit_ = self._bulk(vcpu, gpa, len(data), shared, True, put)
        if isinstance(exit_, MmioExit):
            at = exit_.phys_addr - gpa
            return replace(exit_, data=data[at : at + exit_.length])
        return exit_

    def touch(self, vcpu: GuestVcpu, gpa: int, size: int, *, shared: bool = False) -> Exit | None:
        """Every page once, in order: one byte of it is read and written back."""
        gpa, shared = _alias(gpa, size, shared)
        first, last = gpa & -PAGE_SIZE, -(-(gpa + size) // PAGE_SIZE) * PAGE_SIZE

        def touch(memory: Memory, offset: int, size: int, done: int) -> None:
            memory.touch(offset, size >> PAGE_SHIFT)

        return self._bulk(vcpu, first, last - first, shared, True, touch)

    def sha256(self, vcpu: GuestVcpu, gpa: int, length: int) -> bytes | Exit:
        """The digest of private memory as the guest sees it."""
        gpa, shared = _alias(gpa, length, False)
        digest = hashlib.sha256()

        def feed(memory: Memory, offset: int, size: int, done: int) -> None:
            digest.update(memory.read(offset, size))

        return self._bulk(vcpu, gpa, length, shared, False, feed) or digest.digest()

    def map(self, vcpu: GuestVcpu, gpa: int, size: int, *, private: bool) -> Exit | None:
        """The explicit request (MapGPA): every page of the range gets mapped, in chunks of 2 MiB.

        Refused with EINVAL stands for the statuses invalid operand and alignment error.
        """
        gpa &= ~SHARED_BIT
        status = map_gpa_status(gpa, size, GPA_END)
        if status != SUCCESS:
            name = "alignment error" if status == ALIGN_ERROR else "invalid operand"
            raise Refused(errno.EINVAL, f"MapGPA {gpa:#x}+{size:#x}: status {status:#x}, {name}")
        vm, mmu = self._machine.vm, self._machine.vm.mmu
        with mmu.lock:
            covered = vm.covers(gpa >> PAGE_SHIFT, gpa + size >> PAGE_SHIFT, private=private)
        if not covered:
            return MemoryErrorExit(gpa, size, private, explicit=True)
        for start, length in chunks(gpa, size):
            gfn, end = start >> PAGE_SHIFT, start + length >> PAGE_SHIFT
            while True:
                with mmu.lock:
                    gfn = mmu.epts[private].first_missing(gfn, end)
                if gfn == end:
                    break
                exit_ = self._machine.fault(vcpu, gfn, shared=not private, write=False, want=end - gfn)
                if exit_ is not None:
                    return replace(exit_, explicit=True) if isinstance(exit_, MemoryErrorExit) else exit_
        return None

    def host_access(self, gpa: int, length: int, data: bytes | None) -> bytes | Exit:
        """KVM's own access, as for emulation: shared slots only, so it fails by itself on private memory.

        data: to write. Refused EFAULT where there is no slot, behind the end of a slot's file, and for a write to
        a READONLY slot, as kvm_write_guest() does.
        """
        gpa, _ = _alias(gpa, length, True)
        out = bytearray()
        end = gpa + length
        vm = self._machine.vm
        while gpa < end:
            gfn, size = gpa >> PAGE_SHIFT, min(end - gpa, PAGE_SIZE - gpa % PAGE_SIZE)
            with vm.mmu.lock:
                slot = vm.slots[False].lookup(gfn)
                private = slot is None and vm.slots[True].lookup(gfn) is not None
            if slot is None:
                if private:
                    return MemoryErrorExit(gfn << PAGE_SHIFT, PAGE_SIZE, True, illegal=True)
                raise Refused(errno.EFAULT, f"no shared slot at gpa {gpa:#x}")
            if data is not None and slot.flags & SlotFlag.READONLY:
                raise Refused(errno.EFAULT, f"{slot} is READONLY: the host can not write at {gpa:#x} through it")
            offset = (slot.pgoff_of(gfn) << PAGE_SHIFT) + gpa % PAGE_SIZE
            memory = backing_of(slot).memory
            try:
                if data is None:
                    out += memory.read(offset, size)
                else:
                    memory.write(offset, data[:size])
                    data = data[size:]
            except OSError as error:
                raise Refused(errno.EFAULT, f"host access at {gpa:#x}: {error.strerror}") from None
            gpa += size
        return bytes(out)

    # -- the two ways of an access

    def _page(
        self,
        vcpu: GuestVcpu,
        gpa: int,
        length: int,
        shared: bool,
        write: bool,
        action: Callable[[Memory, int], None],
    ) -> Exit | None:
        """Scalar: an access inside one page."""
        machine, gfn, offset = self._machine, gpa >> PAGE_SHIFT, gpa & (PAGE_SIZE - 1)
        while True:
            vcpu.enter()
            try:
                found = machine.translate(vcpu, gfn, shared=shared, write=write)
                if found is not None:
                    action(found[0], found[1] + offset)
                    return None
            except OSError as error:
                return MemoryErrorExit(gfn << PAGE_SHIFT, PAGE_SIZE, not shared, errno=error.errno or errno.EIO)
            finally:
                vcpu.leave()
            exit_ = machine.fault(vcpu, gfn, shared=shared, write=write, offset=offset, length=length)
            if exit_ is not None:
                return exit_

    def _bulk(
        self, vcpu: GuestVcpu, gpa: int, length: int, shared: bool, write: bool, action: RunAction
    ) -> Exit | None:
        """Runs of the page table, in order; a missing page is a fault as in the scalar way."""
        machine = self._machine
        at, end = gpa, gpa + length
        while at < end:
            gfn = at >> PAGE_SHIFT
            last = min(-(-end // PAGE_SIZE), gfn + _BULK_PAGES)
            vcpu.enter()
            try:
                for memory, offset, size in self._runs(gfn, last, shared, write):
                    skip = at - (gfn << PAGE_SHIFT)
                    take = min(size - skip, end - at)
                    action(memory, offset + skip, take, at - gpa)
                    at += take
                    gfn = at >> PAGE_SHIFT
            except OSError as error:
                return MemoryErrorExit(gfn << PAGE_SHIFT, PAGE_SIZE, not shared, errno=error.errno or errno.EIO)
            finally:
                vcpu.leave()
            if at < end and gfn < last:
                exit_ = machine.fault(
                    vcpu, gfn, shared=shared, write=write, want=last - gfn, offset=at % PAGE_SIZE, length=end - at
                )
                if exit_ is not None:
                    return exit_
        return None

    def _runs(self, gfn: int, last: int, shared: bool, write: bool) -> list[tuple[Memory, int, int]]:
        """Mapped memory from gfn up to the first page that is missing (or not writable): walked as by the CPU."""
        machine = self._machine
        mmu = machine.vm.mmu
        with mmu.lock:
            ept = mmu.epts[not shared]
            stop = ept.first_missing(gfn, last)
            if stop == gfn:
                return []
            if write and shared:
                stop = machine.writable_until(gfn, stop)
                if stop == gfn:
                    return []
            ept.mark_range(gfn, stop, ACCESSED | DIRTY if write else ACCESSED)
            runs = []
            for start, pfn, count in ept.runs(gfn, stop):
                assert gfn <= start
                memory, frame = machine.vm.physmap.find(pfn)
                runs.append((memory, frame << PAGE_SHIFT, count << PAGE_SHIFT))
            return runs


def _alias(gpa: int, length: int, shared: bool) -> tuple[int, bool]:
    """The address without the SHARED bit, and which alias it names. EFAULT outside the guest's addresses."""
    if gpa & SHARED_BIT:
        gpa, shared = gpa & ~SHARED_BIT, True
    if gpa < 0 or gpa + length > GPA_END:
        raise Refused(errno.EFAULT, f"gpa {gpa:#x}+{length:#x} is outside the guest's {GPA_END:#x} addresses")
    return gpa, shared
