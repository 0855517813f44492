"""System calls that Python does not offer, or offers without their flags. Each failure is an OSError."""

import ctypes
import errno
import mmap
import os
import platform
import struct
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)

AT_FDCWD, AT_EMPTY_PATH, AT_SYMLINK_FOLLOW = -100, 0x1000, 0x400
PROT_NONE, PROT_READ, PROT_WRITE, PROT_EXEC = 0, 1, 2, 4
MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE = 1, 2, 3
MAP_LOCKED, MAP_POPULATE, MAP_SYNC = 0x2000, 0x8000, 0x80000
MREMAP_MAYMOVE = 1
PR_SET_DUMPABLE = 4
IORING_OP = {"readv": 1, "writev": 2, "read_fixed": 4, "write_fixed": 5, "read": 22, "write": 23, "splice": 30}
IOCB_CMD_PREAD, IOCB_CMD_PWRITE = 0, 1

# From 424 on all architectures agree.
_IO_URING_SETUP, _IO_URING_ENTER, _IO_URING_REGISTER, PIDFD_GETFD = 425, 426, 427, 438
_OLD_NUMBERS = {
    "x86_64": {"io_setup": 206, "io_destroy": 207, "io_getevents": 208, "io_submit": 209, "userfaultfd": 323},
    "aarch64": {"io_setup": 0, "io_destroy": 1, "io_submit": 2, "io_getevents": 4, "userfaultfd": 282},
}


def call(name: str, *arguments: Any) -> int:
    """A function of libc by name; integers go as longs."""
    return _checked(getattr(libc, name), name, arguments)


def syscall(number: int | str, *arguments: Any) -> int:
    """A system call by number, or by the name of one that the architectures number differently."""
    resolved = number if isinstance(number, int) else _OLD_NUMBERS[platform.machine()][number]
    return _checked(libc.syscall, f"syscall {number}", (resolved, *arguments))


def is_in(task: int, name: str) -> bool:
    """Whether a thread, by its id, is blocked in a system call that the architectures number differently."""
    with open(f"/proc/{task}/syscall") as file:
        return file.read().split()[0] == str(_OLD_NUMBERS[platform.machine()][name])


def _checked(function: Any, name: str, arguments: tuple[Any, ...]) -> int:
    function.restype = ctypes.c_long
    ctypes.set_errno(0)
    result: int = function(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result & 0xFFFFFFFF == 0xFFFFFFFF and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), name)
    return result


def address_of(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def iovec(address: int, length: int) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(struct.pack("QQ", address, length), 16)


def mapped(fd: int, length: int, protection: int, flags: int) -> int:
    """mmap(2) of a file from its start; the address."""
    return call("mmap", 0, length, protection, flags, fd, 0)


class IoUring:
    """The smallest ring: one request at a time."""

    def __init__(self) -> None:
        params = bytearray(120)
        self.fd = syscall(_IO_URING_SETUP, 4, _from(params))
        (self._sq_entries, self._cq_entries) = struct.unpack_from("II", params, 0)
        self._sq = struct.unpack_from("10I", params, 40)
        self._cq = struct.unpack_from("10I", params, 80)
        size = max(self._sq[6] + 4 * self._sq_entries, self._cq[5] + 16 * self._cq_entries)
        self._rings = mmap.mmap(self.fd, size, offset=0)
        self._sqes = mmap.mmap(self.fd, 64 * self._sq_entries, offset=0x10000000)

    def close(self) -> None:
        self._rings.close()
        self._sqes.close()
        os.close(self.fd)

    def register_buffer(self, address: int, length: int) -> None:
        syscall(_IO_URING_REGISTER, self.fd, 0, iovec(address, length), 1)

    def register_file(self, fd: int) -> None:
        syscall(_IO_URING_REGISTER, self.fd, 2, ctypes.create_string_buffer(struct.pack("i", fd), 4), 1)

    def do(
        self, opcode: str, fd: int, address: int, length: int, *, offset: int = 0, splice_from: int = 0, flags: int = 0
    ) -> int:
        """One request, waited for. Its result; flags 1 takes fd as an index of registered files."""
        entry = struct.pack(
            "BBHiQQIIQHHiQQ", IORING_OP[opcode], flags, 0, fd, offset, address, length, 0, 0, 0, 0, splice_from, 0, 0
        )
        (tail,) = struct.unpack_from("I", self._rings, self._sq[1])
        index = tail & (self._sq_entries - 1)
        self._sqes[index * 64 : index * 64 + 64] = entry
        struct.pack_into("I", self._rings, self._sq[6] + 4 * index, index)
        struct.pack_into("I", self._rings, self._sq[1], tail + 1)
        syscall(_IO_URING_ENTER, self.fd, 1, 1, 1, 0, 0)
        (head,) = struct.unpack_from("I", self._rings, self._cq[0])
        at = self._cq[5] + 16 * (head & (self._cq_entries - 1))
        _, result, _ = struct.unpack_from("QiI", self._rings, at)
        struct.pack_into("I", self._rings, self._cq[0], head + 1)
        if result < 0:
            raise OSError(-result, f"io_uring {opcode}")
        return int(result)


class Aio:
    """Linux AIO: requests under way at the same time. Their buffers must live until they are waited for."""

    def __init__(self, depth: int) -> None:
        self._context = ctypes.c_ulong(0)
        syscall("io_setup", depth, ctypes.byref(self._context))

    def close(self) -> None:
        syscall("io_destroy", self._context.value)

    def submit(self, command: int, fd: int, address: int, length: int, offset: int = 0, data: int = 0) -> None:
        block = struct.pack("QIIHhIQQqQII", data, 0, 0, command, 0, fd, address, length, offset, 0, 0, 0)
        kept = ctypes.create_string_buffer(block)
        syscall("io_submit", self._context.value, 1, ctypes.byref(ctypes.c_void_p(ctypes.addressof(kept))))

    def wait(self) -> tuple[int, int]:
        """One that is done: its data and its result."""
        event = bytearray(32)
        syscall("io_getevents", self._context.value, 1, 1, _from(event), 0)
        data, _, result = struct.unpack_from("QQq", event)
        if result < 0:
            raise OSError(-result, "io_submit")
        return int(data), int(result)


def aio(command: int, fd: int, address: int, length: int) -> int:
    """One request of Linux AIO at offset 0, waited for; its result."""
    context = Aio(1)
    try:
        context.submit(command, fd, address, length)
        return context.wait()[1]
    finally:
        context.close()


class FileHandle:
    """name_to_handle_at(2), to be opened again without a path."""

    def __init__(self, path: str) -> None:
        self._bytes = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
        self._mount = ctypes.c_int()
        call("name_to_handle_at", AT_FDCWD, os.fsencode(path), self._bytes, ctypes.byref(self._mount), 0)

    def open(self, on_mount: int, flags: int) -> int:
        return call("open_by_handle_at", on_mount, self._bytes, flags)


def errno_of(error: OSError) -> str:
    """The name; 95 as the kernel's sources spell it."""
    return "EOPNOTSUPP" if error.errno == errno.EOPNOTSUPP else errno.errorcode.get(error.errno or 0, str(error.errno))


def _from(buffer: bytearray) -> ctypes.Array[ctypes.c_char]:
    return (ctypes.c_char * len(buffer)).from_buffer(buffer)
