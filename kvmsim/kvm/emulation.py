"""KVM's own accesses to guest memory, as for emulation: kvm_read_guest() and kvm_write_guest()."""

import errno

from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn

from .alias import PRIVATE, SHARED
from .exits import MemoryErrorExit
from .faults import Faults
from .vm import Vm


class Emulation:
    """It looks up shared slots only, and so fails by itself on private memory."""

    def __init__(self, vm: Vm, faults: Faults) -> None:
        self._vm = vm
        self._faults = faults

    def access(self, gpa: int, length: int, data: bytes | None) -> bytes | MemoryErrorExit:
        """Read length bytes, or write data, at a GPA without the SHARED bit. What was read, b"" for a write; the exit
        at the first private page.

        EFAULT: no slot, past the end of a slot's file, or a write to a READONLY slot.
        """
        out = bytearray()
        vm, end = self._vm, gpa + length
        while gpa < end:
            gfn, size = Gfn(gpa >> PAGE_SHIFT), min(end - gpa, PAGE_SIZE - gpa % PAGE_SIZE)
            with vm.mmu.lock:
                slot = vm.slots[SHARED].lookup(gfn)
                private = slot is None and vm.slots[PRIVATE].lookup(gfn) is not None
            if slot is None:
                if private:
                    return MemoryErrorExit(gfn << PAGE_SHIFT, PAGE_SIZE, True, illegal=True)
                raise Refused(errno.EFAULT, f"no shared slot at gpa {gpa:#x}: create one there")
            if data is not None and not slot.writable:
                raise Refused(errno.EFAULT, f"{slot} is READONLY: the host cannot write at {gpa:#x} through it")
            memory, offset = slot.backing.memory, slot.pgoff_of(gfn) << PAGE_SHIFT
            if slot.backing.emulated is not None:
                memory, first = slot.backing.emulated
                offset = first + (gfn - slot.gfn << PAGE_SHIFT)
            offset += gpa % PAGE_SIZE
            try:
                if data is None:
                    out += memory.read(offset, size)
                else:
                    memory.write(offset, data[:size])
                    data = data[size:]
                    self._faults.log_write(gfn, gfn + 1)
            except OSError as error:
                raise Refused(errno.EFAULT, f"host access at {gpa:#x}: {error.strerror}") from None
            gpa += size
        return bytes(out)
