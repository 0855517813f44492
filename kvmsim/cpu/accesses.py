"""What a guest does on one vCPU: reads, writes, touches, conversions, calls, and KVM's own accesses for it.

Every action returns its result, or the exit that stopped it; then the rest of it is under way on the vCPU, and
Vcpu.kvm_run() goes on from there. What lies before the obstacle has been done, and is not done again. One page goes
the scalar way (TLB, walk, fault); more go in runs of the page table, in guest mode for at most _BULK_PAGES at a time,
so that kicks get through. An access where no memory is, is a device's: it is split at pages and into 8 bytes.

Longer than most modules: the two ways of an access, and what is left of it after an exit, are one mechanism.
"""

import errno
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from kvmsim.kvm.exits import (
    INTR,
    Exit,
    HltExit,
    InternalErrorExit,
    MachineCheckExit,
    MemoryErrorExit,
    MmioExit,
    ShutdownExit,
)
from kvmsim.kvm.hypercalls import SHARED_BIT, Registers
from kvmsim.kvm.kvm import Kvm
from kvmsim.kvm.kvm_run import mmio_data
from kvmsim.kvm.region import GPA_END
from kvmsim.kvm.vcpu import Program, Vcpu
from kvmsim.kvm.vmcall import tdvmcall, vmcall
from kvmsim.memory.memory import Closed, MachineCheck, Memory, MemoryRun
from memfsd.uapi.errors import Refused, errno_name
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn

from .guestlib import set_memory

_BULK_PAGES = 4096

_SHA256MSG1 = bytes.fromhex("0f38cc06")
"""sha256msg1 xmm0, [rsi]: what the digest is computed with. KVM's emulator does not know it."""

RunAction = Callable[[Memory, int, int, int], None]
"""(memory, byte offset in it, bytes, bytes done before) for a contiguous piece of an access."""
DeviceAction = Callable[[MmioExit, int], Program[int]]
"""What the access is where no memory is: (the exit for its next fragment, bytes done before) to bytes done now."""


@dataclass(slots=True, eq=False)
class _Access:
    """An access of one alias under way: [at, end) is still to do."""

    vcpu: Vcpu
    gpa: int
    end: int
    shared: bool
    write: bool
    action: RunAction
    at: int


class Guest:
    """The guest of one kvm. GPAs may carry the SHARED bit, which chooses the alias as `shared` does.

    EBUSY (Refused) while another thread runs the vCPU, EINTR when user space asked it to leave.
    """

    def __init__(self, kvm: Kvm) -> None:
        self._kvm = kvm

    def read(self, vcpu: Vcpu, gpa: int, length: int, *, shared: bool = False) -> bytes | Exit:
        gpa, shared = _alias(gpa, length, shared)
        vcpu.take()
        try:
            exit_: Exit | None = None
            if 0 < length <= PAGE_SIZE - gpa % PAGE_SIZE and not vcpu.run.immediate_exit:
                # A TLB hit ends here, without a further call: the common case of the scalar way.
                vcpu.enter()
                try:
                    found = self._kvm.faults.translate(vcpu, gpa >> PAGE_SHIFT, shared=shared, write=False)
                    if found is not None and not found[0].waits:
                        return found[0].read(found[1] + gpa % PAGE_SIZE, length)
                except OSError as error:
                    exit_ = _failed(gpa, shared, error)
                finally:
                    vcpu.leave()
                got = exit_ or self._miss(vcpu, gpa, length, shared, None, missing=found is None)
                if isinstance(got, bytes):
                    return got
                exit_ = got
            access, buffer = _to_read(vcpu, gpa, length, shared)
            exit_ = exit_ or self._bulk(access)
            return bytes(buffer) if exit_ is None else vcpu.step(self._reading(access, buffer, exit_))
        finally:
            vcpu.release()

    def write(self, vcpu: Vcpu, gpa: int, data: bytes, *, shared: bool = False) -> Exit | None:
        gpa, shared = _alias(gpa, len(data), shared)
        vcpu.take()
        try:
            exit_: Exit | None = None
            if 0 < len(data) <= PAGE_SIZE - gpa % PAGE_SIZE and not vcpu.run.immediate_exit:
                vcpu.enter()
                try:
                    found = self._kvm.faults.translate(vcpu, gpa >> PAGE_SHIFT, shared=shared, write=True)
                    if found is not None and not found[0].waits:
                        found[0].write(found[1] + gpa % PAGE_SIZE, data)
                        return None
                except OSError as error:
                    exit_ = _failed(gpa, shared, error)
                finally:
                    vcpu.leave()
                got = exit_ or self._miss(vcpu, gpa, len(data), shared, data, missing=found is None)
                if isinstance(got, bytes):
                    return None
                exit_ = got
            access = _to_write(vcpu, gpa, data, shared)
            exit_ = exit_ or self._bulk(access)
            return None if exit_ is None else vcpu.step(self._writing(access, data, exit_))
        finally:
            vcpu.release()

    def touch(self, vcpu: Vcpu, gpa: int, size: int, *, shared: bool = False) -> Exit | None:
        """Every page once, in order: one byte of it is read and written back."""
        return vcpu.start(self.touching(vcpu, gpa, size, shared=shared))

    def load(self, vcpu: Vcpu, gpa: int, chunks: Iterable[bytes]) -> int | Exit:
        """Writes the chunks back to back into private memory; returns the number of bytes. An empty chunk is one that
        has not come yet."""
        return vcpu.start(self._loading(vcpu, gpa, chunks))

    def sha256(self, vcpu: Vcpu, gpa: int, length: int) -> bytes | Exit:
        """The digest of private memory as the guest sees it."""
        return vcpu.start(self.digesting(vcpu, gpa, length))

    def map(self, vcpu: Vcpu, gpa: int, size: int, *, private: bool) -> Exit | None:
        """The explicit request, as a guest kernel makes it: guestlib.set_memory()."""
        return vcpu.start(self.converting(vcpu, gpa, size, private=private))

    def tdvmcall(self, vcpu: Vcpu, registers: Registers) -> Registers | Exit:
        """TDG.VP.VMCALL with these registers; those that it returns."""
        return vcpu.start(self.calling_tdx(vcpu, registers))

    def vmcall(self, vcpu: Vcpu, nr: int, args: Sequence[int]) -> int | Exit:
        """A hypercall of KVM; RAX, unsigned."""
        return vcpu.start(self.calling_kvm(vcpu, nr, args))

    def hlt(self, vcpu: Vcpu) -> Exit | None:
        """The next KVM_RUN wakes it."""
        return vcpu.start(self.halting(vcpu))

    def shutdown(self, vcpu: Vcpu) -> Exit | None:
        """A triple fault, again with each KVM_RUN."""
        return vcpu.start(self.faulting_thrice(vcpu))

    def host_access(self, gpa: int, length: int, data: bytes | None) -> bytes | Exit:
        """KVM's own access, as for emulation: shared slots only, so it fails by itself on private memory.

        data: to write. Refused EFAULT where there is no slot, behind the end of a slot's file, and for a write to
        a READONLY slot, as kvm_write_guest() does.
        """
        gpa, _ = _alias(gpa, length, True)
        return self._kvm.emulation.access(gpa, length, data)

    # -- the same as programs, of which a guest's code is made: EFAULT (Refused) outside the guest's addresses

    def reading(self, vcpu: Vcpu, gpa: int, length: int, *, shared: bool = False) -> Program[bytes]:
        gpa, shared = _alias(gpa, length, shared)
        return self._reading(*_to_read(vcpu, gpa, length, shared))

    def writing(self, vcpu: Vcpu, gpa: int, data: bytes, *, shared: bool = False) -> Program[None]:
        gpa, shared = _alias(gpa, len(data), shared)
        return self._writing(_to_write(vcpu, gpa, data, shared), data)

    def touching(self, vcpu: Vcpu, gpa: int, size: int, *, shared: bool = False) -> Program[None]:
        gpa, shared = _alias(gpa, size, shared)
        first, last = gpa & -PAGE_SIZE, -(-(gpa + size) // PAGE_SIZE) * PAGE_SIZE
        return self._touching(vcpu, first, last, shared)

    def digesting(self, vcpu: Vcpu, gpa: int, length: int) -> Program[bytes]:
        gpa, shared = _alias(gpa, length, False)
        return self._digesting(vcpu, gpa, length, shared)

    def converting(self, vcpu: Vcpu, gpa: int, size: int, *, private: bool) -> Program[None]:
        return set_memory(
            lambda registers: self.calling_tdx(vcpu, registers),
            lambda gpa, size: self._accepting(vcpu, gpa, size),
            gpa & ~SHARED_BIT,
            size,
            private=private,
        )

    def calling_tdx(self, vcpu: Vcpu, registers: Registers) -> Program[Registers]:
        return tdvmcall(self._kvm, vcpu, registers)

    def calling_kvm(self, vcpu: Vcpu, nr: int, args: Sequence[int]) -> Program[int]:
        return vmcall(self._kvm, vcpu, nr, args)

    def halting(self, vcpu: Vcpu) -> Program[None]:
        yield from vcpu.entry()
        yield HltExit()

    def faulting_thrice(self, vcpu: Vcpu) -> Program[None]:
        while True:
            yield from vcpu.entry()
            yield ShutdownExit()

    def accepting(self, vcpu: Vcpu, gpa: int, size: int) -> Program[None]:
        """TDG.MEM.PAGE.ACCEPT of each page."""
        return self._accepting(vcpu, gpa & ~SHARED_BIT, size)

    # -- what is under way after an exit

    def _reading(self, access: _Access, buffer: bytearray, exit_: Exit | None = None) -> Program[bytes]:
        """exit_: where it came to before there was a program."""

        def device(exit_: MmioExit, done: int) -> Program[int]:
            yield exit_
            buffer[done : done + exit_.length] = mmio_data(access.vcpu.run, exit_.length)
            return exit_.length

        yield from self._access(access, device, exit_)
        return bytes(buffer)

    def _writing(self, access: _Access, data: bytes, exit_: Exit | None = None) -> Program[None]:
        def device(exit_: MmioExit, done: int) -> Program[int]:
            yield replace(exit_, data=data[done : done + exit_.length])
            return exit_.length

        yield from self._access(access, device, exit_)

    def _touching(self, vcpu: Vcpu, first: int, last: int, shared: bool) -> Program[None]:
        def touch(memory: Memory, offset: int, size: int, done: int) -> None:
            memory.touch(offset, size >> PAGE_SHIFT)

        def device(exit_: MmioExit, done: int) -> Program[int]:
            byte = yield from self._reading(*_to_read(vcpu, first + done, 1, shared))
            yield MmioExit(first + done, 1, True, byte)
            return PAGE_SIZE

        yield from self._access(_Access(vcpu, first, last, shared, True, touch, first), device)

    def _loading(self, vcpu: Vcpu, gpa: int, chunks: Iterable[bytes]) -> Program[int]:
        at = gpa
        for chunk in chunks:
            if not chunk:
                yield from vcpu.entry()
                continue
            to, shared = _alias(at, len(chunk), False)
            yield from self._writing(_to_write(vcpu, to, chunk, shared), chunk)
            at += len(chunk)
        return at - gpa

    def _digesting(self, vcpu: Vcpu, gpa: int, length: int, shared: bool) -> Program[bytes]:
        digest = hashlib.sha256()

        def feed(memory: Memory, offset: int, size: int, done: int) -> None:
            digest.update(memory.read(offset, size))

        def device(exit_: MmioExit, done: int) -> Program[int]:
            yield InternalErrorExit(_SHA256MSG1, exit_.phys_addr)
            return 0

        yield from self._access(_Access(vcpu, gpa, gpa + length, shared, False, feed, gpa), device)
        return digest.digest()

    def _accepting(self, vcpu: Vcpu, gpa: int, size: int) -> Program[None]:
        """TDG.MEM.PAGE.ACCEPT of each page: it must be mapped, and is zero as every new private page is."""
        faults, gfn, end = self._kvm.faults, Gfn(gpa >> PAGE_SHIFT), Gfn(gpa + size >> PAGE_SHIFT)
        while True:
            gfn = faults.first_unmapped(gfn, end, shared=False)
            if gfn == end:
                return
            exit_ = faults.fault(vcpu, gfn, shared=False, write=True, want=end - gfn)
            if exit_ is not None:
                yield exit_
            yield from vcpu.entry()

    def _access(self, access: _Access, device: DeviceAction, exit_: Exit | None = None) -> Program[None]:
        """From obstacle to obstacle; what is behind one is looked at again when the vCPU is run again."""
        exit_ = exit_ or self._bulk(access)
        while exit_ is not None:
            if isinstance(exit_, MmioExit):
                access.at += yield from device(exit_, access.at - access.gpa)
            else:
                yield exit_
            exit_ = self._bulk(access)

    # -- the two ways of an access

    def _miss(
        self, vcpu: Vcpu, gpa: int, length: int, shared: bool, data: bytes | None, *, missing: bool
    ) -> bytes | Exit:
        """Scalar: an access inside one page that is not mapped, or (not `missing`) to memory that waits. What was read;
        with data to write, b""."""
        kvm, gfn, offset, write = self._kvm, Gfn(gpa >> PAGE_SHIFT), gpa & (PAGE_SIZE - 1), data is not None
        while True:
            if missing:
                exit_ = kvm.faults.fault(vcpu, gfn, shared=shared, write=write, offset=offset, length=length)
                if exit_ is not None:
                    return exit_
                if vcpu.run.immediate_exit:
                    return INTR
            try:
                vcpu.enter()
                try:
                    found = kvm.faults.translate(vcpu, gfn, shared=shared, write=write)
                    if found is not None and not found[0].waits:
                        return _transfer(found[0], found[1] + offset, length, data)
                finally:
                    vcpu.leave()
                missing = found is None
                if found is not None:
                    got = _transfer(found[0], found[1] + offset, length, data)
                    if write:
                        kvm.faults.log_write(gfn, gfn + 1)
                    return got
            except Closed:
                missing = True
            except OSError as error:
                return _failed(gpa, shared, error)

    def _bulk(self, access: _Access) -> Exit | None:
        """Runs of the page table, in order; a missing page is a fault as in the scalar way."""
        kvm, vcpu, shared, write, end = self._kvm, access.vcpu, access.shared, access.write, access.end
        pages = _BULK_PAGES
        while access.at < end:
            if vcpu.run.immediate_exit:
                return INTR
            gfn = Gfn(access.at >> PAGE_SHIFT)
            last = min(Gfn(-(-end // PAGE_SIZE)), gfn + pages)
            try:
                vcpu.enter()
                try:
                    runs = kvm.faults.walk(gfn, last, shared=shared, write=write)
                    waits = any(memory.waits for memory, _, _ in runs)
                    if not waits:
                        _act(access, runs)
                finally:
                    vcpu.leave()
                if waits:
                    try:
                        _act(access, runs)
                    finally:
                        reached = Gfn(-(-access.at // PAGE_SIZE))
                        if write and gfn < reached:
                            kvm.faults.log_write(gfn, reached)
            except Closed:
                continue
            except OSError as error:
                if pages == 1:
                    return _failed(access.at, shared, error)
                pages = 1  # the run that failed once more, page by page, up to the page that fails
                continue
            at = access.at
            gfn = Gfn(at >> PAGE_SHIFT)
            if at < end and gfn < last:
                exit_ = kvm.faults.fault(
                    vcpu, gfn, shared=shared, write=write, want=last - gfn, offset=at % PAGE_SIZE, length=end - at
                )
                if exit_ is not None:
                    return exit_
        return None


def _transfer(memory: Memory, at: int, length: int, data: bytes | None) -> bytes:
    """What is at these bytes of a memory; or write data there, for b""."""
    if data is None:
        return memory.read(at, length)
    memory.write(at, data)
    return b""


def _to_read(vcpu: Vcpu, gpa: int, length: int, shared: bool) -> tuple[_Access, bytearray]:
    """The access, and the buffer that it fills."""
    buffer = bytearray(length)

    def take(memory: Memory, offset: int, size: int, done: int) -> None:
        buffer[done : done + size] = memory.read(offset, size)

    return _Access(vcpu, gpa, gpa + length, shared, False, take, gpa), buffer


def _to_write(vcpu: Vcpu, gpa: int, data: bytes, shared: bool) -> _Access:
    view = memoryview(data)

    def put(memory: Memory, offset: int, size: int, done: int) -> None:
        memory.write(offset, bytes(view[done : done + size]))

    return _Access(vcpu, gpa, gpa + len(data), shared, True, put, gpa)


def _act(access: _Access, runs: list[MemoryRun]) -> None:
    """The access goes on in these runs. A run that fails leaves those before it done."""
    for memory, offset, size in runs:
        skip = access.at % PAGE_SIZE
        take = min(size - skip, access.end - access.at)
        access.action(memory, offset + skip, take, access.at - access.gpa)
        access.at += take


def _failed(gpa: int, shared: bool, error: OSError) -> Exit:
    """The page is mapped, and its memory cannot be had."""
    if isinstance(error, MachineCheck):
        return MachineCheckExit(gpa & -PAGE_SIZE, error.at)
    number = error.errno or errno.EIO
    why = f"{errno_name(number)}: the memory of this page cannot be reached: {error.strerror or error}"
    return MemoryErrorExit(gpa & -PAGE_SIZE, PAGE_SIZE, not shared, errno=number, why=why, is_users=shared)


def _alias(gpa: int, length: int, shared: bool) -> tuple[int, bool]:
    """The address without the SHARED bit, and which alias it names. EFAULT outside the guest's addresses."""
    if gpa & SHARED_BIT:
        gpa, shared = gpa & ~SHARED_BIT, True
    if gpa < 0 or gpa + length > GPA_END:
        raise Refused(
            errno.EFAULT, f"gpa {gpa:#x}+{length:#x} is outside the guest's {GPA_END:#x} addresses: choose a lower one"
        )
    return gpa, shared
