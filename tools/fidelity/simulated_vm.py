"""Slots and guest accesses of recorded cases, asked of kvmsim. An instruction of the guest is an access, or two."""

import errno
import os
from collections.abc import Callable
from typing import Any

from kvmsim.cpu.accesses import Guest
from kvmsim.kvm.exits import Exit, FailedExit, MemoryFaultExit, MmioExit
from kvmsim.kvm.kvm import Kvm
from kvmsim.kvm.region import GmemFd, Region2, Userspace
from kvmsim.kvm.vcpu import Vcpu
from kvmsim.kvm.vm import Vm
from kvmsim.memory.mapped import UserMemory
from kvmsim.store.link import FileId
from memfsd.uapi.abi import ABIS
from memfsd.uapi.errors import PeerLost, Refused

from .descriptors import Args, Descriptors, inode_number
from .mappings import Mappings
from .outcomes import name_of
from .player import Do, NotAsked

_U64 = (1 << 64) - 1
_MMIO = bytes(range(0xE0, 0xF0))
"""What the recorder answered reads of no memory with."""


def _as_ioctl(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Refused as refused:
        raise OSError(refused.errno, refused.reason) from None
    except PeerLost as lost:
        raise OSError(errno.EHOSTDOWN, str(lost)) from None


class SimulatedVms:
    """The VMs of one case, and their vCPUs by the case's names."""

    def __init__(self, abi: str, descriptors: Descriptors, mappings: Mappings) -> None:
        self._abi = ABIS[abi]
        self._descriptors = descriptors
        self._mappings = mappings
        self._kvms: dict[str, Kvm] = {}
        self._vcpus: dict[str, tuple[Kvm, Vcpu]] = {}
        self._shown: dict[str, FileId] = {}
        """Files that mappings show, by the names of these."""
        self._devices: set[str | None] = set()
        self._value = 0

    def find(self, op: str) -> Do | None:
        found: Do | None = getattr(self, f"_op_{op}", None)
        return found

    def create(self, name: str) -> None:
        self._kvms[name] = Kvm(Vm(name, abi=self._abi))

    def own(self, vm: str, fd: int) -> None:
        """KVM_CREATE_GUEST_MEMFD: the file is this VM's."""
        if vm in self._kvms:
            _as_ioctl(lambda: self._kvms[vm].guest_memfds.own(GmemFd(fd, "gmem")))

    # -- files: what holds them

    def _op_mmap(self, args: Args) -> str:
        fd = self._descriptors.fd(args)
        mapped: str = self._mappings.find("mmap")(args)  # type: ignore[misc]
        if args.get("as"):
            self._shown[args["as"]] = _file_of(fd)
        return mapped

    def _op_munmap(self, args: Args) -> None:
        self._mappings.call("munmap", args)
        self._released(self._shown.pop(args["m"], None))

    def _op_close(self, args: Args) -> None:
        file = _file_of(self._descriptors.fd(args))
        os.close(self._descriptors.fds.pop(args["fd"]))
        self._released(file)

    def _released(self, file: FileId | None) -> None:
        """With its last descriptor and mapping."""
        if file is None or file in self._shown.values() or file in map(_file_of, self._descriptors.fds.values()):
            return
        for kvm in self._kvms.values():
            kvm.guest_memfds.release(file)

    # -- ioctls

    def set_region(self, args: Args, *, is_v2: bool) -> int:
        kvm = self._kvm(args)
        address, offset = self._address(args.get("uaddr", 0)), args.get("off", 0) & _U64
        region = Region2(args["slot"], args["flags"], args["gpa"], args["size"], address, offset, is_v2)
        file = self._gmem(args["gmem"]) if is_v2 and "gmem" in args else None
        space = Userspace(UserMemory(address), 0, "userspace_addr", owned=True)
        _as_ioctl(lambda: kvm.guest_memfds.set_region2(region, space, file))
        return 0

    def _gmem(self, named: Any) -> GmemFd | None:
        """None: no such descriptor is open."""
        fd = named if isinstance(named, int) else self._descriptors.fds.get(named, -1)
        try:
            os.fstat(fd)
        except (OSError, OverflowError):
            return None
        return GmemFd(fd, "gmem")

    def _address(self, named: Any) -> int:
        if isinstance(named, int):
            return named & _U64
        memory, offset = named
        return int(self._mappings.maps[memory].address + offset)

    def _kvm(self, args: Args) -> Kvm:
        """EBADF no descriptor, EINVAL that of /dev/kvm, ENOTTY any other that is no VM's."""
        named = args["vm"]
        if isinstance(named, int):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if named not in self._kvms:
            number = errno.EINVAL if named in self._devices else errno.ENOTTY
            raise OSError(number, os.strerror(number))
        return self._kvms[named]

    def _op_open_kvm(self, args: Args) -> str:
        self._devices.add(args.get("as"))
        return self._descriptors.keep(args, os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))

    def _op_create_vcpu(self, args: Args) -> str:
        kvm, id_ = self._kvm(args), args.get("id", 0)
        if not id_ and len(kvm.vm.vcpus) == 1 and not any(of is kvm for of, _ in self._vcpus.values()):
            vcpu = kvm.vm.vcpu(0)  # every Vm has it
        else:
            vcpu = _as_ioctl(lambda: kvm.vm.create_vcpu(id_))
        self._vcpus[args.get("as") or ""] = kvm, vcpu
        return "vcpu"

    def _op_create_irqchip(self, args: Args) -> int:
        raise NotAsked

    _op_set_tss_addr = _op_create_irqchip

    def _op_dirty_log(self, args: Args) -> list[int]:
        kvm, slot = self._kvm(args), args["slot"]
        if slot >> 16 or slot >= kvm.vm.max_slots:
            raise OSError(errno.EINVAL, "no such slot")
        ranges = _as_ioctl(lambda: kvm.slots.get_dirty_log(slot))
        first = kvm.vm.slots[0].get(slot)
        assert first is not None
        return [gfn - first.gfn for start, end in ranges for gfn in range(start, end)]

    # -- the guest

    def _op_guest_boot(self, args: Args) -> None:
        """Its page tables and its code: here an access is one as it is."""

    _op_guest_prog = _op_guest_boot

    def _op_guest(self, args: Args) -> dict[str, Any]:
        kvm, vcpu = self._vcpus[args["vcpu"]]
        guest, gpa, width, kind = Guest(kvm), args["gpa"], args["width"], args["kind"]
        exits: list[dict[str, Any]] = []
        loaded = b""
        if kind != "write":
            got = self._run(vcpu, guest.read(vcpu, gpa, width, shared=True), exits)
            if not isinstance(got, bytes):
                return {"exits": exits, "rip_off": 0}
            loaded = got
        self._value = int.from_bytes(loaded, "little")
        if kind != "read":
            value = self._value + 1 if kind == "lockinc" else args["val"]
            data = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
            if self._run(vcpu, guest.write(vcpu, gpa, data, shared=True), exits) is not None:
                return {"exits": exits, "rip_off": 0}
        answer: dict[str, Any] = {"exits": [*exits, {"exit": "END"}]}
        return answer if kind in ("write", "lockinc") else {**answer, "value": self._value}

    _op_guest_access = _op_guest

    def _op_guest_resume(self, args: Args) -> dict[str, Any]:
        vcpu, exits = self._vcpus[args["vcpu"]][1], list[dict[str, Any]]()
        got = self._run(vcpu, vcpu.kvm_run(), exits)
        self._value = int.from_bytes(got, "little") if isinstance(got, bytes) else 0
        return {"exits": [*exits, {"exit": "END"}]}

    def _op_regs(self, args: Args) -> dict[str, int]:
        if args["names"] != ["rax"]:
            raise NotAsked
        return {"rax": self._value}

    @staticmethod
    def _run(vcpu: Vcpu, result: object, exits: list[dict[str, Any]]) -> object:
        """To the end of the access, or an exit that user space cannot answer: it is the result then."""
        while isinstance(result, Exit):
            exits.append(_shown(result))
            if not isinstance(result, MmioExit):
                return result
            if not result.is_write:
                vcpu.run.mmio.data[: result.length] = list(_MMIO[: result.length])
            result = vcpu.kvm_run()
        return result


def _shown(exit_: Exit) -> dict[str, Any]:
    match exit_:
        case MmioExit():
            data = list(exit_.data) if exit_.is_write else None
            fields = {"phys_addr": exit_.phys_addr, "len": exit_.length, "is_write": int(exit_.is_write), "data": data}
            return {"exit": "MMIO", "mmio": fields}
        case MemoryFaultExit():
            return {"exit": "MEMORY_FAULT", "memory_fault": exit_.fields(), "errno": name_of(exit_.errno)}
        case FailedExit():
            return {"exit": "UNKNOWN", "errno": name_of(exit_.errno)}
    return {"exit": exit_.reason.name}


def _file_of(fd: int) -> FileId:
    """Without asking the file system: the number alone says it within a case."""
    return FileId(os.fstat(fd).st_dev, inode_number(fd))
