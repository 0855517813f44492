"""The ops of recorded cases that are about memory: mappings, and system calls that reach memory through them."""

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from .descriptors import LIBC, Args, Descriptors, checked, syscall
from .fault import FaultCatcher
from .outcomes import name_of

_PAGE = 4096
_MAP_FAILED = ctypes.c_void_p(-1).value
_NR_MREMAP, _NR_MBIND, _NR_GET_MEMPOLICY, _NR_MOVE_PAGES, _NR_VMSPLICE = 25, 237, 239, 279, 278
_NR_PROCESS_VM_READV, _NR_PROCESS_VM_WRITEV, _NR_USERFAULTFD = 310, 311, 323
_NR_IO_URING_SETUP, _NR_IO_URING_REGISTER = 425, 427
_UFFDIO_API, _UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
_UFFD_API = 0xAA
_SMAPS = (
    *("Size", "Rss", "Pss", "Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Anonymous"),
    *("Locked", "VmFlags"),
)
_SHOWN = 16
"""Bytes of a long read that are compared."""

LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64)


class Mapped(NamedTuple):
    """Addresses of this process. fd: of the file, as it was when it was mapped; -1: there is none."""

    address: int
    size: int
    fd: int = -1


def map_memory(fd: int, size: int, protection: int, flags: int, offset: int) -> Mapped:
    """OSError."""
    found = LIBC.mmap(None, size, protection, flags, fd, offset)
    if found == _MAP_FAILED:
        checked(-1)
    return Mapped(found, size, fd)


class Mappings:
    """`maps`: what the ops of one case have mapped."""

    def __init__(self, descriptors: Descriptors) -> None:
        self.maps: dict[str, Mapped] = {}
        self._descriptors = descriptors
        self.catcher = FaultCatcher()

    def find(self, op: str) -> Callable[[Args], Any] | None:
        """What does the op: it returns the result, or raises OSError or Faulted."""
        found: Callable[[Args], Any] | None = getattr(self, f"_op_{op}", None)
        return found

    def _keep(self, args: Args, found: Mapped) -> str:
        if args.get("as"):
            self.maps[args["as"]] = found
        return "map"

    def call(self, name: str, args: Args, *rest: int) -> int:
        """A system call that takes a mapping's address and size first."""
        found = self.maps[args["m"]]
        more = [ctypes.c_int(each) for each in rest]
        return checked(getattr(LIBC, name)(ctypes.c_void_p(found.address), ctypes.c_size_t(found.size), *more))

    def _op_anon(self, args: Args) -> str:
        return self._keep(args, map_memory(-1, args["len"], 3, 0x22, 0))

    def _op_mmap(self, args: Args) -> str:
        fd = self._descriptors.fd(args)
        return self._keep(args, map_memory(fd, args["len"], args["prot"], args["flags"], args["off"]))

    def _op_munmap(self, args: Args) -> None:
        self.call("munmap", args)

    def _op_mremap(self, args: Args) -> str:
        found, new = self.maps[args["m"]], args["new"]
        may_move = 1
        address = syscall(_NR_MREMAP, found.address, args["old"], new, may_move, 0)
        return self._keep(args, Mapped(address, new, found.fd))

    def _op_mem_read(self, args: Args) -> str:
        return self.catcher.read(self.maps[args["m"]].address + args["off"], args["n"]).hex()

    def _op_mem_write(self, args: Args) -> None:
        self.catcher.write(self.maps[args["m"]].address + args["off"], bytes.fromhex(args["data"]))

    def _op_mem_call(self, args: Args) -> int:
        return int(ctypes.CFUNCTYPE(ctypes.c_int)(self.maps[args["m"]].address)())

    def _op_mprotect(self, args: Args) -> int:
        return self.call("mprotect", args, args["prot"])

    def _op_madvise(self, args: Args) -> int:
        return self.call("madvise", args, args["advice"])

    def _op_msync(self, args: Args) -> int:
        return self.call("msync", args, args["flags"])

    def _op_mlock(self, args: Args) -> int:
        return self.call("mlock", args)

    def _op_mlock2(self, args: Args) -> int:
        return self.call("mlock2", args, args["flags"])

    def _op_munlock(self, args: Args) -> int:
        return self.call("munlock", args)

    def _op_mlockall(self, args: Args) -> int:
        return checked(LIBC.mlockall(args["flags"]))

    def _op_mincore(self, args: Args) -> str:
        found = self.maps[args["m"]]
        pages = ctypes.create_string_buffer(found.size // _PAGE)
        checked(LIBC.mincore(ctypes.c_void_p(found.address), ctypes.c_size_t(found.size), pages))
        return "".join(str(each & 1) for each in pages.raw)

    # -- what /proc shows

    def _op_proc_map_name(self, args: Args) -> dict[str, str]:
        perms, offset, path = "", "", ""
        with open("/proc/self/maps") as lines:
            for line in lines:
                if line.startswith(f"{self.maps[args['m']].address:x}-"):
                    _, perms, offset, _, _, *rest = line.split(maxsplit=5)
                    path = rest[0].strip() if rest else ""
        return {"perms": perms, "off": offset, "path": path}

    def _op_smaps(self, args: Args) -> dict[str, object]:
        fields: dict[str, object] = {}
        inside = False
        with open("/proc/self/smaps") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if "-" in name.split(" ")[0]:
                    inside = line.startswith(f"{self.maps[args['m']].address:x}-")
                elif inside and name in _SMAPS:
                    fields[name] = value.strip() if name == "VmFlags" else int(value.split()[0])
        return fields

    # -- the kernel reaches memory for somebody

    def _vec(self, address: int, size: int) -> ctypes.Array[ctypes.c_char]:
        return ctypes.create_string_buffer(struct.pack("=QQ", address, size), 16)

    def _process_vm(self, number: int, args: Args, size: int, local: int) -> int:
        ours, theirs = self._vec(local, size), self._vec(self.maps[args["m"]].address + args["off"], size)
        pid, addresses = os.getpid(), (ctypes.addressof(ours), ctypes.addressof(theirs))
        return syscall(number, pid, addresses[0], 1, addresses[1], 1, 0)

    def _op_vm_readv(self, args: Args) -> dict[str, object]:
        buffer = ctypes.create_string_buffer(args["n"])
        done = self._process_vm(_NR_PROCESS_VM_READV, args, args["n"], ctypes.addressof(buffer))
        return {"n": done, "data": buffer.raw[: min(done, _SHOWN)].hex()}

    def _op_vm_writev(self, args: Args) -> int:
        data = bytes.fromhex(args["data"])
        buffer = ctypes.create_string_buffer(data, len(data))
        return self._process_vm(_NR_PROCESS_VM_WRITEV, args, len(data), ctypes.addressof(buffer))

    def _op_vm_readv_local(self, args: Args) -> int:
        """process_vm_readv(2) of other memory into the mapping."""
        buffer = ctypes.create_string_buffer(b"<" * args["n"], args["n"])
        ours = self._vec(self.maps[args["m"]].address + args["off"], args["n"])
        theirs = self._vec(ctypes.addressof(buffer), args["n"])
        return syscall(_NR_PROCESS_VM_READV, os.getpid(), ctypes.addressof(ours), 1, ctypes.addressof(theirs), 1, 0)

    def _op_file_read_into(self, args: Args) -> int:
        address = ctypes.c_void_p(self.maps[args["m"]].address + args["off"])
        LIBC.pread.restype = ctypes.c_ssize_t
        fd = self._descriptors.fd(args)
        return checked(LIBC.pread(fd, address, ctypes.c_size_t(args["n"]), ctypes.c_int64(0)))

    def _op_file_write_from(self, args: Args) -> int:
        address = ctypes.c_void_p(self.maps[args["m"]].address + args["off"])
        LIBC.pwrite.restype = ctypes.c_ssize_t
        fd = self._descriptors.fd(args)
        return checked(LIBC.pwrite(fd, address, ctypes.c_size_t(args["n"]), ctypes.c_int64(0)))

    def _op_vmsplice(self, args: Args) -> int:
        read_end, write_end = os.pipe()
        vec = self._vec(self.maps[args["m"]].address + args["off"], args["n"])
        try:
            return syscall(_NR_VMSPLICE, write_end, ctypes.addressof(vec), 1, args.get("flags", 0))
        finally:
            os.close(read_end)
            os.close(write_end)

    def _op_iouring_register(self, args: Args) -> int:
        parameters = ctypes.create_string_buffer(120)
        ring = syscall(_NR_IO_URING_SETUP, 4, ctypes.addressof(parameters))
        vec = self._vec(self.maps[args["m"]].address + args["off"], args["n"])
        try:
            return syscall(_NR_IO_URING_REGISTER, ring, 0, ctypes.addressof(vec), 1)
        finally:
            os.close(ring)

    # -- NUMA

    def _op_mbind(self, args: Args) -> int:
        found, mask = self.maps[args["m"]], ctypes.c_ulong(args["mask"])
        where = ctypes.addressof(mask)
        return syscall(_NR_MBIND, found.address, found.size, args["mode"], where, 64, args.get("flags", 0))

    def _op_get_mempolicy(self, args: Args) -> dict[str, int]:
        mode, mask = ctypes.c_int(0), (ctypes.c_ulong * 16)()
        of_address = 2
        places = ctypes.addressof(mode), ctypes.addressof(mask)
        syscall(_NR_GET_MEMPOLICY, *places, 1024, self.maps[args["m"]].address, of_address)
        return {"mode": mode.value, "mask": mask[0]}

    def _op_move_pages(self, args: Args) -> dict[str, object]:
        page, status = ctypes.c_void_p(self.maps[args["m"]].address + args["off"]), ctypes.c_int(0)
        done = syscall(_NR_MOVE_PAGES, 0, 1, ctypes.addressof(page), 0, ctypes.addressof(status), 0)
        return {"ret": done, "status": name_of(-status.value) if status.value < 0 else status.value}

    # -- userfaultfd

    def _op_uffd_api(self, args: Args) -> dict[str, str]:
        fd = syscall(_NR_USERFAULTFD, os.O_CLOEXEC)
        try:
            features, ioctls = _uffd_api(fd)
        finally:
            os.close(fd)
        return {"features": f"{features:#x}", "ioctls": f"{ioctls:#x}"}

    def _op_uffd_register(self, args: Args) -> dict[str, str]:
        import fcntl

        found, fd = self.maps[args["m"]], syscall(_NR_USERFAULTFD, os.O_CLOEXEC)
        try:
            _uffd_api(fd)
            asked = bytearray(struct.pack("=4Q", found.address, found.size, args["mode"], 0))
            try:
                fcntl.ioctl(fd, _UFFDIO_REGISTER, asked)
            except OSError as error:
                return {"stage": "register", "errno": name_of(error.errno or 0)}
            return {"stage": "ok", "ioctls": f"{struct.unpack('=4Q', asked)[3]:#x}"}
        finally:
            os.close(fd)


def _uffd_api(fd: int) -> tuple[int, int]:
    asked = bytearray(struct.pack("=3Q", _UFFD_API, 0, 0))
    fcntl.ioctl(fd, _UFFDIO_API, asked)
    _, features, ioctls = struct.unpack("=3Q", asked)
    return features, ioctls
