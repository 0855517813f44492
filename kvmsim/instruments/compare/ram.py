"""RAM of the guest, all of it private: a new file on the mount, and the slot that shows it."""

import errno
import fcntl
import itertools
import os
from pathlib import Path

from kvmsim.kvm.region import ATTRIBUTE_PRIVATE, AttributesRange, GmemFd, MemoryRegion, Region2, SlotFlag, Userspace
from kvmsim.machine import VirtualMachine
from kvmsim.memory.mapped import MappedFile
from kvmsim.memory.memory import AnonymousMemory
from memfsd.uapi.abi import THREAD, Abi, Attributes, GmemFlag
from memfsd.uapi.errors import Refused
from memfsd.uapi.gmem_ioctls import CreateGuestMemfd
from memfsd.uapi.names import IOC_CREATE_GUEST_MEMFD, XATTR_PAGE_SIZE, XATTR_SEALS, XATTR_SOCKET
from memfsd.uapi.units import format_size

RAM_BYTES = 1 << 30
"""A whole number of pages of every size."""
_POOL_BYTES = 2 * RAM_BYTES
_names = itertools.count()


def set_ram(machine: VirtualMachine, directory: Path, page_bytes: int) -> int | None:
    """RAM_BYTES at GPA 0, in slot 0. The file has no name any more: nothing is left behind, however this process ends.
    User space's descriptor of a guest_memfd, which must stay open. Refused as make_file."""
    _check_room(directory)
    abi = machine.vm.abi
    path = directory / f"compare-{os.getpid()}-{next(_names)}.mem"
    os.close(make_file(path, page_bytes, RAM_BYTES, abi))
    try:
        if not abi.has_one_space:
            machine.vmm.memory.set_private_slot(MemoryRegion.private(0, 0, RAM_BYTES), str(path))
            return None
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            _set_gmem(machine, GmemFd(fd, str(path)))
        except BaseException:
            os.close(fd)
            raise
        return fd
    finally:
        path.unlink()


def make_file(path: Path, page_bytes: int, size: int, abi: Abi = THREAD) -> int:
    """A new file for a guest, open for writing. Refused names the directory when it is not on a memfsd mount, or cannot
    hold the file."""
    directory = path.parent
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Refused(error.errno or errno.EIO, f"{directory}: {error.strerror}") from None
    try:
        if abi.is_sized_at_creation:
            fcntl.ioctl(fd, IOC_CREATE_GUEST_MEMFD, CreateGuestMemfd(size, _flags(abi)).pack())
            return fd
        if b"guest" not in os.getxattr(fd, XATTR_SEALS).split(b","):
            os.setxattr(fd, XATTR_SEALS, b"guest")
        os.setxattr(fd, XATTR_PAGE_SIZE, str(page_bytes).encode())
        os.ftruncate(fd, size)
    except OSError as error:
        os.close(fd)
        os.unlink(path)
        foreign = error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOTTY)
        why = "not on a memfsd mount" if foreign else error.strerror
        raise Refused(error.errno or errno.EIO, f"{directory}: {why}") from None
    return fd


def _flags(abi: Abi) -> GmemFlag:
    """The host maps what is shared, if that is the file's."""
    return GmemFlag.MMAP if abi.attributes is Attributes.FILE else GmemFlag(0)


def _set_gmem(machine: VirtualMachine, file: GmemFd) -> None:
    machine.kvm.guest_memfds.own(file)
    if _flags(machine.vm.abi):
        space = Userspace(MappedFile(os.dup(file.fd), RAM_BYTES), 0, "(mapped)", owned=True)
    else:
        space = Userspace(AnonymousMemory(RAM_BYTES), 0, "(anonymous)", owned=True)
    machine.vmm.memory.set_region2(Region2(0, SlotFlag.GUEST_MEMFD, 0, RAM_BYTES), space, file)
    if machine.vm.abi.attributes is Attributes.VM:
        machine.kvm.attributes.set(AttributesRange(0, RAM_BYTES, ATTRIBUTE_PRIVATE))


def _is_memfsd(directory: Path) -> bool:
    try:
        os.getxattr(directory, XATTR_SOCKET)
    except OSError:
        return False  # which is said when the file cannot be made
    return True


def _check_room(directory: Path) -> None:
    """ENOSPC where no pool can hold the guest's memory, in pages of any size, and as much shared."""
    try:
        pool = os.statvfs(directory)
    except OSError as error:
        raise Refused(error.errno or errno.EIO, f"{directory}: {error.strerror}") from None
    size = pool.f_blocks * pool.f_frsize
    if size < _POOL_BYTES and _is_memfsd(directory):
        have, need = format_size(size), format_size(_POOL_BYTES)
        way_out = f"mount with size={need} or more"
        raise Refused(errno.ENOSPC, f"{directory}: its pool has {have} and {need} are needed: {way_out}")
