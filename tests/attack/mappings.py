"""Every way to reach a file through memory: only open=rw lets one map at all, and then only privately."""

import contextlib
import ctypes
import os
import struct

from tests.attack.syscalls import (
    MAP_LOCKED,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_SYNC,
    MREMAP_MAYMOVE,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    IoUring,
    call,
    iovec,
    mapped,
    syscall,
)
from tests.attack.table import Aim, Attack
from tests.attack.target import HOST_WROTE, PAGE, WORKS, Action, Target, in_child

MADV_WILLNEED, MADV_REMOVE, MADV_DODUMP, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_COLLAPSE = 3, 9, 17, 22, 23, 25
UFFD_USER_MODE_ONLY, UFFDIO_API, UFFDIO_REGISTER = 1, 0xC018AA3F, 0xC020AA00
READ_WRITE = PROT_READ | PROT_WRITE


def _private(t: Target, protection: int = READ_WRITE) -> int:
    return mapped(t.fd, PAGE, protection, MAP_PRIVATE)


def _map_and_read(protection: int, flags: int) -> Action:
    return lambda t: t.take_from(mapped(t.fd, PAGE, protection, flags))


def _map_and_write(flags: int) -> Action:
    def attack(t: Target) -> None:
        ctypes.memmove(mapped(t.fd, PAGE, READ_WRITE, flags), HOST_WROTE, PAGE)

    return attack


def _protect_later(flags: int) -> Action:
    def attack(t: Target) -> None:
        at = mapped(t.fd, PAGE, PROT_NONE, flags)
        call("mprotect", at, PAGE, READ_WRITE)
        t.take_from(at)

    return attack


def _mremap(t: Target) -> None:
    at = _private(t)
    t.take_from(call("mremap", at, PAGE, 2 * PAGE, MREMAP_MAYMOVE))


def _mremap_copy(t: Target) -> None:
    """An old size of 0 makes a second mapping of the same pages; for shared ones only."""
    at = mapped(t.fd, PAGE, PROT_READ, MAP_SHARED)
    t.take_from(call("mremap", at, 0, PAGE, MREMAP_MAYMOVE))


def _mlock(t: Target) -> None:
    at = _private(t, PROT_READ)
    call("mlock", at, PAGE)
    t.take_from(at)


def _madvise(advice: int, *, then_read: bool = True) -> Action:
    def attack(t: Target) -> None:
        at = _private(t)
        call("madvise", at, PAGE, advice)
        if then_read:
            t.take_from(at)

    return attack


def _process_vm_readv(t: Target) -> None:
    at = _private(t, PROT_READ)
    call("process_vm_readv", os.getpid(), iovec(t.address(), PAGE), 1, iovec(at, PAGE), 1, 0)


def _process_vm_writev(t: Target) -> None:
    """Into a private mapping: at most a copy in memory could change."""
    at = _private(t)
    call("process_vm_writev", os.getpid(), iovec(t.payload(), PAGE), 1, iovec(at, PAGE), 1, 0)


def _proc_mem_read(t: Target) -> None:
    at = _private(t, PROT_NONE)
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        os.preadv(memory.fileno(), [t.buffer()], at)


def _proc_mem_write(t: Target) -> None:
    """/proc/PID/mem writes also where the mapping forbids it."""
    at = _private(t, PROT_READ)
    with open("/proc/self/mem", "wb", buffering=0) as memory:
        os.pwrite(memory.fileno(), HOST_WROTE, at)


def _write_out_of_it(t: Target) -> None:
    """The mapping as the buffer of write(2)."""
    at = _private(t, PROT_READ)
    out, into = os.pipe()
    call("write", into, at, PAGE)
    call("read", out, t.address(), PAGE)


def _vmsplice_out_of_it(t: Target) -> None:
    at = _private(t, PROT_READ)
    out, into = os.pipe()
    call("vmsplice", into, iovec(at, PAGE), 1, 0)
    call("read", out, t.address(), PAGE)


def _io_uring_out_of_it(t: Target) -> None:
    """The mapping as a registered buffer: pinned pages."""
    ring, at = IoUring(), _private(t)
    ring.register_buffer(at, PAGE)
    out, into = os.pipe()
    ring.do("write_fixed", into, at, PAGE, offset=(1 << 64) - 1)
    call("read", out, t.address(), PAGE)


def _fork_and_read(t: Target) -> None:
    at = _private(t, PROT_READ)
    in_child(lambda: t.take_from(at))


def _userfaultfd(t: Target) -> None:
    """To serve faults of the mapping oneself: for anonymous and shared memory only."""
    at = _private(t)
    faults = syscall("userfaultfd", UFFD_USER_MODE_ONLY)
    call("ioctl", faults, UFFDIO_API, ctypes.create_string_buffer(struct.pack("QQQ", 0xAA, 0, 0), 24))
    request = ctypes.create_string_buffer(struct.pack("QQQQ", at, PAGE, 1, 0), 32)
    call("ioctl", faults, UFFDIO_REGISTER, request)


def _map_files(t: Target) -> None:
    at = _private(t, PROT_READ)
    fd = os.open(f"/proc/self/map_files/{at:x}-{at + PAGE:x}", os.O_RDONLY)
    call("pread", fd, t.address(), PAGE, 0)


def _unmap_and_close_first(t: Target) -> None:
    """A handle that lives only in its mapping."""
    at = _private(t, PROT_READ)
    os.close(t.fd)
    with contextlib.suppress(OSError):
        call("msync", at, PAGE, 4)
    t.take_from(at)


def _shared(call_: str, protection: int, flags: int) -> Attack:
    return Attack(f"mmap({call_})", _map_and_read(protection, flags), Aim.READ, WORKS, "EACCES", "ENODEV")


def _touched(call_: str, action: Action, rw: str = "SIGBUS", *, may_loop: bool = False) -> Attack:
    return Attack(call_, action, Aim.READ, WORKS, "EACCES", rw, may_loop=may_loop)


MAPPINGS: tuple[Attack, ...] = (
    _shared("PROT_READ, MAP_SHARED", PROT_READ, MAP_SHARED),
    _shared("PROT_READ|PROT_WRITE, MAP_SHARED", READ_WRITE, MAP_SHARED),
    _shared("PROT_READ|PROT_EXEC, MAP_SHARED", PROT_READ | PROT_EXEC, MAP_SHARED),
    _shared("PROT_READ, MAP_SHARED_VALIDATE", PROT_READ, MAP_SHARED_VALIDATE),
    _shared("PROT_READ, MAP_SHARED|MAP_POPULATE", PROT_READ, MAP_SHARED | MAP_POPULATE),
    _shared("PROT_READ, MAP_SHARED|MAP_LOCKED", PROT_READ, MAP_SHARED | MAP_LOCKED),
    Attack(
        "mmap(PROT_READ, MAP_SHARED_VALIDATE|MAP_SYNC)",
        _map_and_read(PROT_READ, MAP_SHARED_VALIDATE | MAP_SYNC),
        Aim.READ,
        "EOPNOTSUPP",
        "EOPNOTSUPP",
        "EOPNOTSUPP",
    ),
    Attack("mmap(PROT_WRITE, MAP_SHARED), write", _map_and_write(MAP_SHARED), Aim.WRITE, WORKS, "EACCES", "ENODEV"),
    Attack("mmap(PROT_NONE, MAP_SHARED), mprotect", _protect_later(MAP_SHARED), Aim.READ, WORKS, "EACCES", "ENODEV"),
    Attack("mremap of a shared mapping, old size 0", _mremap_copy, Aim.READ, WORKS, "EACCES", "ENODEV"),
    _touched("mmap(PROT_READ, MAP_PRIVATE), read", _map_and_read(PROT_READ, MAP_PRIVATE)),
    _touched("mmap(PROT_READ|PROT_WRITE, MAP_PRIVATE), read", _map_and_read(READ_WRITE, MAP_PRIVATE)),
    _touched("mmap(PROT_READ|PROT_EXEC, MAP_PRIVATE), read", _map_and_read(PROT_READ | PROT_EXEC, MAP_PRIVATE)),
    _touched(
        "mmap(PROT_READ, MAP_PRIVATE|MAP_POPULATE), read",
        _map_and_read(PROT_READ, MAP_PRIVATE | MAP_POPULATE),
        may_loop=True,
    ),
    _touched(
        "mmap(PROT_READ, MAP_PRIVATE|MAP_LOCKED), read",
        _map_and_read(PROT_READ, MAP_PRIVATE | MAP_LOCKED),
        may_loop=True,
    ),
    _touched("mmap(PROT_NONE, MAP_PRIVATE), mprotect, read", _protect_later(MAP_PRIVATE)),
    Attack("mmap(PROT_WRITE, MAP_PRIVATE), write", _map_and_write(MAP_PRIVATE), Aim.NEITHER, WORKS, "EACCES", "SIGBUS"),
    _touched("close the handle, read its private mapping", _unmap_and_close_first),
    _touched("mremap of a private mapping, read", _mremap),
    _touched("fork, read the private mapping in the child", _fork_and_read),
    _touched("mlock of a private mapping", _mlock, "ENOMEM", may_loop=True),
    _touched("madvise(POPULATE_READ) of it", _madvise(MADV_POPULATE_READ), "EFAULT"),
    _touched("madvise(POPULATE_WRITE) of it", _madvise(MADV_POPULATE_WRITE), "EFAULT"),
    _touched("madvise(WILLNEED) of it, read", _madvise(MADV_WILLNEED)),
    _touched("madvise(DODUMP) of it, read", _madvise(MADV_DODUMP)),
    Attack("madvise(REMOVE) of it", _madvise(MADV_REMOVE), Aim.NEITHER, "EACCES", "EACCES", "EACCES"),
    _touched("process_vm_readv of it", _process_vm_readv, "EFAULT"),
    Attack("process_vm_writev into it", _process_vm_writev, Aim.NEITHER, WORKS, "EACCES", "EFAULT"),
    _touched("read of it through /proc/self/mem", _proc_mem_read, "EIO"),
    Attack("write into it through /proc/self/mem", _proc_mem_write, Aim.NEITHER, WORKS, "EACCES", "EIO"),
    _touched("write(2) out of it", _write_out_of_it, "EFAULT"),
    _touched("vmsplice out of it", _vmsplice_out_of_it, "EFAULT"),
    _touched("io_uring WRITE_FIXED out of it, registered", _io_uring_out_of_it, "EFAULT"),
    Attack("userfaultfd registration of it", _userfaultfd, Aim.NEITHER, "EINVAL", "EACCES", "EINVAL"),
    Attack(
        "open /proc/self/map_files of it, read",
        _map_files,
        Aim.READ,
        WORKS,
        "EACCES",
        "EPERM",
        unprivileged=dict.fromkeys(("ordinary", "rw"), "EPERM"),
    ),
)
