"""Memory accesses that may fault, in this process: what signal, and why (si_code).

Python cannot go on after SIGSEGV or SIGBUS. So the access is a few instructions, and so is the signal handler: it notes
what came, and lets the interrupted copy return 1 instead of 0. x86-64, as /dev/kvm's cases are.
"""

import ctypes
import mmap
import signal
import struct

_COPY = bytes.fromhex("31c04885d2740f8a0e880f48ffc648ffc748ffcaebecc3")
"""int copy(dst, src, n): byte by byte, upwards."""
_RECOVER = bytes.fromhex("b801000000c3")
"""What copy does when it was interrupted: return 1."""
_RIP_IN_UCONTEXT = 168
_CODES = {
    signal.SIGSEGV: {1: "SEGV_MAPERR", 2: "SEGV_ACCERR", 3: "SEGV_BNDERR", 4: "SEGV_PKUERR"},
    signal.SIGBUS: {1: "BUS_ADRALN", 2: "BUS_ADRERR", 3: "BUS_OBJERR", 4: "BUS_MCEERR_AR", 5: "BUS_MCEERR_AO"},
}


class Faulted(Exception):
    """The signal that the access got, and its si_code by name."""

    def __init__(self, number: int, code: int) -> None:
        self.signal = signal.Signals(number)
        self.code = _CODES.get(self.signal, {}).get(code, str(code))
        super().__init__(f"{self.signal.name} {self.code}")


class _Action(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class FaultCatcher:
    """From its making on SIGSEGV and SIGBUS of this process are its own."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        recover, handler, self._note = base + 64, base + 128, 256
        # mov rax, note; mov ecx, [rsi]; mov [rax], ecx; mov ecx, [rsi+8]; mov [rax+4], ecx
        code = b"\x48\xb8" + struct.pack("<Q", base + self._note) + bytes.fromhex("8b0e89088b4e08894804")
        # mov rax, recover; mov [rdx+168], rax; ret
        code += (
            b"\x48\xb8" + struct.pack("<Q", recover) + b"\x48\x89\x82" + struct.pack("<I", _RIP_IN_UCONTEXT) + b"\xc3"
        )
        for at, text in ((0, _COPY), (64, _RECOVER), (128, code)):
            self._page[at : at + len(text)] = text
        self._copy = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(base)
        libc = ctypes.CDLL(None, use_errno=True)
        for number in (signal.SIGSEGV, signal.SIGBUS):
            action = _Action(handler, (ctypes.c_ulong * 16)(), 4, None)  # SA_SIGINFO
            if libc.sigaction(number, ctypes.byref(action), None) != 0:
                raise OSError(ctypes.get_errno(), "sigaction")

    def read(self, address: int, size: int) -> bytes:
        """Faulted, after any number of bytes."""
        buffer = ctypes.create_string_buffer(size)
        self._do(ctypes.addressof(buffer), address, size)
        return buffer.raw

    def write(self, address: int, data: bytes) -> None:
        """Faulted, after any number of bytes."""
        buffer = ctypes.create_string_buffer(data, len(data))
        self._do(address, ctypes.addressof(buffer), len(data))

    def _do(self, to: int, source: int, size: int) -> None:
        if self._copy(to, source, size):
            raise Faulted(*struct.unpack_from("<ii", self._page, self._note))
