"""KVM's ops of recorded cases, asked of this machine's /dev/kvm."""

import ctypes
import fcntl
import os
import struct
from typing import Any

from .descriptors import LIBC, Args, Descriptors, checked
from .linux_guest import CODE, LinuxVcpu, access, boot_image, program, put
from .mappings import Mappings
from .player import Do

_CREATE_VM, _CHECK_EXTENSION, _CREATE_VCPU = 0xAE01, 0xAE03, 0xAE41
_SET_USER_MEMORY_REGION, _SET_USER_MEMORY_REGION2 = 0x4020AE46, 0x40A0AE49
_CREATE_IRQCHIP, _SET_TSS_ADDR, _GET_DIRTY_LOG = 0xAE60, 0xAE47, 0x4010AE42
_CREATE_GUEST_MEMFD = 0xC040AED4
_CAP_GUEST_MEMFD = 234


def unavailable() -> str | None:
    """Why the cases cannot be asked here; None: they can."""
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    try:
        if fcntl.ioctl(kvm, _CHECK_EXTENSION, _CAP_GUEST_MEMFD) <= 0:
            return "this KVM has no guest_memfd (KVM_CAP_GUEST_MEMFD)"
        vm = fcntl.ioctl(kvm, _CREATE_VM, 0)
        try:
            os.close(fcntl.ioctl(vm, _CREATE_GUEST_MEMFD, bytearray(struct.pack("=8Q", 4096, *[0] * 7))))
        finally:
            os.close(vm)
    except OSError as error:
        return f"KVM_CREATE_GUEST_MEMFD: {error.strerror}"
    finally:
        os.close(kvm)
    return None


class LinuxKvm:
    """/dev/kvm is opened at once: a case may give up its rights later."""

    def __init__(self, descriptors: Descriptors, mappings: Mappings) -> None:
        self._descriptors = descriptors
        self._mappings = mappings
        self._kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        self._vcpus: dict[str, LinuxVcpu] = {}

    def find(self, op: str) -> Do | None:
        found: Do | None = getattr(self, f"_op_{op}", None)
        return found

    def _op_open_kvm(self, args: Args) -> str:
        return self._descriptors.keep(args, os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))

    def _op_create_vm(self, args: Args) -> str:
        return self._descriptors.keep(args, fcntl.ioctl(self._kvm, _CREATE_VM, 0))

    def _op_check_ext(self, args: Args) -> int:
        return fcntl.ioctl(self._descriptors.fd(args), _CHECK_EXTENSION, _CAP_GUEST_MEMFD)

    def _op_create_vcpu(self, args: Args) -> str:
        fd = fcntl.ioctl(self._vm(args), _CREATE_VCPU, args.get("id", 0))
        self._vcpus[args.get("as") or ""] = LinuxVcpu(self._kvm, fd)
        return "vcpu"

    def _op_create_irqchip(self, args: Args) -> int:
        return fcntl.ioctl(self._vm(args), _CREATE_IRQCHIP, 0)

    def _op_set_tss_addr(self, args: Args) -> int:
        """Its argument has 64 bits, which fcntl.ioctl does not take."""
        return checked(LIBC.ioctl(self._vm(args), ctypes.c_ulong(_SET_TSS_ADDR), ctypes.c_ulong(args["addr"])))

    def _op_create_gmem(self, args: Args) -> str:
        reserved = [*args.get("reserved", []), *[0] * 6][:6]
        size, flags = args["size"] & (1 << 64) - 1, args["flags"] & (1 << 64) - 1
        request = bytearray(struct.pack("=8Q", size, flags, *reserved))
        return self._descriptors.keep(args, fcntl.ioctl(self._vm(args), _CREATE_GUEST_MEMFD, request))

    def _op_set_region(self, args: Args) -> int:
        return int(
            fcntl.ioctl(self._vm(args), _SET_USER_MEMORY_REGION, bytearray(struct.pack("=IIQQQ", *self._slot(args))))
        )

    def _op_set_region2(self, args: Args) -> int:
        gmem = self._descriptors.fd(args, "gmem") if "gmem" in args else 0
        words = struct.pack("=IIQQQQI", *self._slot(args), args.get("off", 0) & (1 << 64) - 1, gmem & 0xFFFFFFFF)
        return int(fcntl.ioctl(self._vm(args), _SET_USER_MEMORY_REGION2, bytearray(words + bytes(160 - len(words)))))

    def _vm(self, args: Args) -> int:
        return self._descriptors.fd(args, "vm")

    def _slot(self, args: Args) -> tuple[int, ...]:
        return args["slot"], args["flags"], args["gpa"], args["size"], self._address(args.get("uaddr", 0))

    def _address(self, named: Any) -> int:
        if isinstance(named, int):
            return named & (1 << 64) - 1
        memory, offset = named
        return int(self._mappings.maps[memory].address + offset)

    def _op_dirty_log(self, args: Args) -> list[int]:
        """Pages of the slot that are in it."""
        bitmap = ctypes.create_string_buffer(max(args["npages"] // 8, 8))
        request = struct.pack("=IIQ", args["slot"], 0, ctypes.addressof(bitmap))
        fcntl.ioctl(self._vm(args), _GET_DIRTY_LOG, bytearray(request))
        bits = int.from_bytes(bitmap.raw, "little")
        return [page for page in range(args["npages"]) if bits >> page & 1]

    # -- guests

    def _op_guest_boot(self, args: Args) -> None:
        self._put(args["m"], boot_image())

    def _op_guest_code(self, args: Args) -> None:
        self._put(args["m"], ((args["off"], bytes.fromhex(args["code"])),))

    def _op_guest_prog(self, args: Args) -> None:
        self._put(args["m"], ((CODE, program(args["kind"], args["width"])),))

    def _op_guest(self, args: Args) -> dict[str, Any]:
        self._put(args["boot"], ((CODE, program(args["kind"], args["width"])),))
        return access(self._vcpus[args["vcpu"]], args)

    def _op_guest_access(self, args: Args) -> dict[str, Any]:
        return access(self._vcpus[args["vcpu"]], args)

    def _op_guest_start(self, args: Args) -> dict[str, Any]:
        registers = {name: args[name] for name in ("rdi", "rcx") if name in args}
        return self._vcpus[args["vcpu"]].start(rip=args["ip"], max_runs=args.get("max_runs", 16), **registers)

    def _op_guest_resume(self, args: Args) -> dict[str, Any]:
        return self._vcpus[args["vcpu"]].go_on()

    def _op_regs(self, args: Args) -> dict[str, int]:
        registers = self._vcpus[args["vcpu"]].registers()
        return {name: registers[name] for name in args["names"]}

    def _put(self, memory: str, parts: tuple[tuple[int, bytes], ...]) -> None:
        put(self._mappings.catcher, self._mappings.maps[memory].address, parts)
