"""The instructions of a guest, as its code uses them."""

from collections.abc import Callable

from kvmsim.cpu.accesses import Guest
from kvmsim.cpu.port_io import port_in, port_out
from kvmsim.kvm.hypercalls import Registers
from kvmsim.kvm.vcpu import Program, Vcpu
from memfsd.uapi.limits import PORTS


class Cpu:
    """A guest's view of its vCPU.

    Guest code is a generator function that takes one, and runs each instruction with `yield from`, which gives the
    instruction's result:

        def guest(cpu: kvmsim.Cpu) -> kvmsim.Program[bytes]:
            yield from cpu.write(0x1000, b"private")
            return (yield from cpu.read(0x1000, 7))

    Addresses and sizes are bytes of guest physical memory. shared chooses the alias of the address, as its SHARED bit
    does. An instruction that faults is done once user space has repaired the cause; what of it has been done is not
    done again. Refused(EFAULT) where [gpa, gpa + length) ends past the guest's addresses.
    """

    def __init__(self, guest: Guest, vcpu: Vcpu) -> None:
        self._guest = guest
        self._vcpu = vcpu

    @property
    def id(self) -> int:
        """Of the vCPU."""
        return self._vcpu.id

    def read(self, gpa: int, length: int, *, shared: bool = False) -> Program[bytes]:
        return self._guest.reading(self._vcpu, gpa, length, shared=shared)

    def write(self, gpa: int, data: bytes, *, shared: bool = False) -> Program[None]:
        return self._guest.writing(self._vcpu, gpa, data, shared=shared)

    def touch(self, gpa: int, size: int, *, shared: bool = False) -> Program[None]:
        """Read a byte of every page of the range, and write it back."""
        return self._guest.touching(self._vcpu, gpa, size, shared=shared)

    def sha256(self, gpa: int, length: int) -> Program[bytes]:
        """The digest (32 bytes) of private memory."""
        return self._guest.digesting(self._vcpu, gpa, length)

    def map_gpa(self, gpa: int, size: int, *, private: bool) -> Program[None]:
        """Convert [gpa, gpa + size), as set_memory_encrypted() and set_memory_decrypted() of a TDX guest: MapGPA until
        all of it is converted, then each page is accepted that becomes private.

        Refused in the guest: EINVAL, the host answered with an error; EIO, it made no progress.
        """
        return self._guest.converting(self._vcpu, gpa, size, private=private)

    def tdvmcall(self, registers: Registers) -> Program[Registers]:
        """TDG.VP.VMCALL; the registers that it returns (R10 the status)."""
        return self._guest.calling_tdx(self._vcpu, registers)

    def vmcall(self, nr: int, *args: int) -> Program[int]:
        """A hypercall of KVM; RAX, unsigned: an error is 2^64 - errno."""
        return self._guest.calling_kvm(self._vcpu, nr, args)

    def port_in(self, port: int, size: int = 1) -> Program[int]:
        """IN of 1, 2 or 4 bytes: KVM_EXIT_IO, and what user space answers. ValueError for another size or port."""
        _check_port(port, size)
        return int.from_bytes((yield from port_in(self._vcpu, port, size)), "little")

    def port_out(self, port: int, value: int, size: int = 1) -> Program[None]:
        """OUT: KVM_EXIT_IO. ValueError as port_in, and for a value that does not fit."""
        _check_port(port, size)
        return port_out(self._vcpu, port, size, value.to_bytes(size, "little"))

    def hlt(self) -> Program[None]:
        """KVM_EXIT_HLT; the next KVM_RUN goes on after it."""
        return self._guest.halting(self._vcpu)

    def shutdown(self) -> Program[None]:
        """A triple fault: KVM_EXIT_SHUTDOWN, again with each KVM_RUN."""
        return self._guest.faulting_thrice(self._vcpu)


def _check_port(port: int, size: int) -> None:
    if not 0 <= port < PORTS or size not in (1, 2, 4):
        raise ValueError(f"no port {port:#x}, or no access of {size} bytes: ports are 0 to 0xffff, sizes 1, 2 and 4")


GuestCode = Callable[[Cpu], Program[object]]
"""What VCPU.load takes."""
