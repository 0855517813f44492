"""A guest of /dev/kvm that makes one access: 64-bit code of CPL 3, with page tables in its boot memory.

boot memory    0x1000 code, 0x10000 page tables: the first GiB, identity-mapped in pages of 2 MiB
the end        OUT to port 0xf4
a device       answers a read with bytes from 0xe0 on
"""

import fcntl
import mmap
import struct
from typing import Any

from .descriptors import Args
from .fault import FaultCatcher
from .outcomes import name_of

CODE, _TABLES, _END_PORT, _DEVICE = 0x1000, 0x10000, 0xF4, 0xE0
_GET_VCPU_MMAP_SIZE, _RUN = 0xAE04, 0xAE80
_GET_REGS, _SET_REGS, _GET_SREGS, _SET_SREGS = 0x8090AE81, 0x4090AE82, 0x8138AE83, 0x4138AE84
_REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{n}" for n in range(8, 16)), "rip", "rflags")
_EXITS = {0: "UNKNOWN", 2: "IO", 6: "MMIO", 8: "SHUTDOWN", 39: "MEMORY_FAULT"}
_IO, _MMIO, _MEMORY_FAULT = 2, 6, 39
_MAX_RUNS = 16
_IOPL_3 = 0x3002
_OPERATIONS = {
    "read": {1: "8a07", 2: "668b07", 4: "8b07", 8: "488b07"},
    "write": {1: "8807", 2: "668907", 4: "8907", 8: "488907"},
    "xchg": {1: "8607", 2: "668707", 4: "8707", 8: "488707"},
    "lockinc": {1: "f0fe07", 2: "66f0ff07", 4: "f0ff07", 8: "f048ff07"},
}
_END = "e6f4"


def boot_image() -> tuple[tuple[int, bytes], ...]:
    """What the boot memory holds: (offset, bytes)."""
    user = 7
    directory = struct.pack("=512Q", *(index << 21 | user | 0x80 for index in range(512)))
    return (
        (_TABLES, struct.pack("=Q", _TABLES + 0x1000 | user)),
        (_TABLES + 0x1000, struct.pack("=Q", _TABLES + 0x2000 | user)),
        (_TABLES + 0x2000, directory),
    )


def program(kind: str, width: int) -> bytes:
    """The access, and the end."""
    return bytes.fromhex(_OPERATIONS[kind][width] + _END)


class LinuxVcpu:
    """kvm, vcpu: descriptors."""

    def __init__(self, kvm: int, vcpu: int) -> None:
        self._fd = vcpu
        self._run = mmap.mmap(vcpu, fcntl.ioctl(kvm, _GET_VCPU_MMAP_SIZE, 0))

    def registers(self) -> dict[str, int]:
        words = struct.unpack("=18Q", fcntl.ioctl(self._fd, _GET_REGS, bytes(144)))
        return dict(zip(_REGISTERS, words, strict=True))

    def start(self, *, rip: int = CODE, max_runs: int = _MAX_RUNS, **registers: int) -> dict[str, Any]:
        """From this state on: what it exits for, to the end or an exit that nobody answers."""
        fcntl.ioctl(self._fd, _SET_SREGS, _long_mode(fcntl.ioctl(self._fd, _GET_SREGS, bytes(312))))
        wanted = {"rip": rip, "rflags": _IOPL_3} | registers
        fcntl.ioctl(self._fd, _SET_REGS, struct.pack("=18Q", *(wanted.get(name, 0) for name in _REGISTERS)))
        return self.go_on(max_runs, rip)

    def go_on(self, max_runs: int = _MAX_RUNS, base: int = CODE) -> dict[str, Any]:
        """KVM_RUN again."""
        exits: list[dict[str, Any]] = []
        for _ in range(max_runs):
            number = self._run_once()
            exit_ = self._exit(number)
            exits.append(exit_)
            if exit_ == {"exit": "END"}:
                return {"exits": exits}
            if number or exit_["exit"] not in ("IO", "MMIO"):
                return {"exits": exits, "rip_off": self.registers()["rip"] - base}
        return {"exits": exits}

    def _run_once(self) -> int:
        """The errno, 0 for none."""
        try:
            fcntl.ioctl(self._fd, _RUN, 0)
        except OSError as error:
            return error.errno or 0
        return 0

    def _exit(self, number: int) -> dict[str, Any]:
        (reason,) = struct.unpack_from("=I", self._run, 8)
        exit_: dict[str, Any] = {"exit": _EXITS.get(reason, str(reason))}
        if reason == _IO and not number:
            direction, size, port, count, where = struct.unpack_from("=BBHIQ", self._run, 32)
            if port == _END_PORT:
                return {"exit": "END"}
            data = int.from_bytes(self._run[where : where + size], "little")
            return exit_ | {"io": {"direction": direction, "size": size, "port": port, "count": count, "data": data}}
        if reason == _MMIO and not number:
            address, data, length, is_write = struct.unpack_from("=Q8sIB", self._run, 32)
            if not is_write:
                self._run[40 : 40 + length] = bytes(range(_DEVICE, _DEVICE + length))
            shown = list(data[:length]) if is_write else None
            return exit_ | {"mmio": {"phys_addr": address, "len": length, "is_write": is_write, "data": shown}}
        if reason == _MEMORY_FAULT:
            flags, gpa, size = struct.unpack_from("=QQQ", self._run, 32)
            exit_ |= {"memory_fault": {"flags": flags, "gpa": gpa, "size": size}}
        return exit_ | ({"errno": name_of(number)} if number else {})


def _long_mode(sregs: bytes) -> bytes:
    """CPL 3, 64 bits, no interrupts."""
    changed = bytearray(sregs)
    code = struct.pack("=QIH10B", 0, 0xFFFFFFFF, 0x1B, 0xB, 1, 3, 0, 1, 1, 1, 0, 0, 0)
    data = struct.pack("=QIH10B", 0, 0xFFFFFFFF, 0x23, 0x3, 1, 3, 1, 1, 0, 1, 0, 0, 0)
    for index in range(6):
        changed[index * 24 : index * 24 + 24] = data if index else code
    cr0, cr3, cr4, efer = 0x80000011, _TABLES, 0x20, 0x500
    struct.pack_into("=Q", changed, 224, cr0)
    struct.pack_into("=QQ", changed, 240, cr3, cr4)
    struct.pack_into("=Q", changed, 264, efer)
    return bytes(changed)


def put(catcher: FaultCatcher, address: int, parts: tuple[tuple[int, bytes], ...]) -> None:
    for offset, data in parts:
        catcher.write(address + offset, data)


def access(vcpu: LinuxVcpu, args: Args) -> dict[str, Any]:
    """Of the program that is in the boot memory; the value of a read."""
    found = vcpu.start(rax=args.get("val", 0), rdi=args["gpa"])
    if found["exits"][-1] == {"exit": "END"} and args["kind"] in ("read", "xchg"):
        mask = (1 << 8 * args["width"]) - 1
        found["value"] = vcpu.registers()["rax"] & mask
    return found
