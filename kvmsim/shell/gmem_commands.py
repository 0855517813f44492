"""Script commands of guest_memfd: files by name, slots with both memories, memory attributes."""

import errno
import fcntl
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kvmsim.kvm.region import ATTRIBUTE_PRIVATE, AttributesRange, GmemFd, Region2, SlotFlag, Userspace
from kvmsim.memory.memory import AnonymousMemory, set_file_attributes
from kvmsim.store.link import FileId
from kvmsim.vmm.host import VMM, Host, memory_of
from memfsd.common.quote import quoted
from memfsd.uapi.errors import Refused
from memfsd.uapi.gmem_ioctls import CreateGuestMemfd, MemoryAttributes2
from memfsd.uapi.limits import MAX_GMEM_NAMES
from memfsd.uapi.names import IOC_CREATE_GUEST_MEMFD

from .script import commands as c
from .script.outcome import Outcome
from .script_vm import ScriptVm


class _Open(NamedTuple):
    fd: int
    file: FileId
    path: str


class GmemCommands:
    """User space's open guest_memfds, of all VMs. target: the VM that a command is about."""

    def __init__(self, host: Host, machines: Mapping[str, ScriptVm], target: Callable[[], ScriptVm]) -> None:
        self._host = host
        self._machines = machines
        self._target = target
        self._open: dict[str, _Open] = {}

    def handlers(self) -> dict[type[c.Command], Callable[[Any], Outcome]]:
        return {
            c.GmemCreate: self._create,
            c.GmemOpen: self._open_file,
            c.GmemAttributes: self._convert,
            c.GmemDup: self._dup,
            c.GmemClose: self._close,
            c.SlotSet2: self._slot_set2,
            c.SlotDelete2: self._slot_delete2,
            c.SetAttributes: self._attributes,
        }

    def facts(self) -> list[dict[str, Any]]:
        """What `info gmem` shows."""
        found = list(self._open.items())
        return [{"gmem": name, "file": open_.path, "inode": open_.file.inode} for name, open_ in found]

    def close(self) -> None:
        for open_ in self._open.values():
            os.close(open_.fd)
        self._open.clear()

    def _create(self, command: c.GmemCreate) -> Outcome:
        """If it is refused, no file is left."""
        self._check_free(command.gmem)
        asked = CreateGuestMemfd(command.size, command.flags).pack()
        new = os.open(command.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.ioctl(new, IOC_CREATE_GUEST_MEMFD, asked)
            finally:
                os.close(new)
            return self._keep(command.gmem, command.file)
        except BaseException:
            os.unlink(command.file)
            raise

    def _open_file(self, command: c.GmemOpen) -> Outcome:
        self._check_free(command.gmem)
        return self._keep(command.gmem, command.file)

    def _keep(self, name: str, path: str) -> Outcome:
        fd = _open_gmem(path)
        try:
            self._target().kvm.guest_memfds.own(GmemFd(fd, path))
        except BaseException:
            os.close(fd)
            raise
        status = os.fstat(fd)
        self._open[name] = _Open(fd, FileId(status.st_dev, status.st_ino), path)
        return Outcome(ok=True)

    def _convert(self, command: c.GmemAttributes) -> Outcome:
        open_ = self._named(command.gmem)
        attributes = ATTRIBUTE_PRIVATE if command.private else 0
        try:
            set_file_attributes(open_.fd, MemoryAttributes2(command.offset, command.size, attributes))
        except Refused as refused:
            raise Refused(refused.errno, f"{quoted(open_.path)}: {refused.reason}") from None
        return Outcome(ok=True)

    def _dup(self, command: c.GmemDup) -> Outcome:
        found = self._named(command.gmem)
        self._check_free(command.to)
        self._open[command.to] = found._replace(fd=os.dup(found.fd))
        return Outcome(ok=True)

    def _close(self, command: c.GmemClose) -> Outcome:
        """With its last descriptor the file goes, whatever slots there are."""
        closed = self._named(command.gmem)
        del self._open[command.gmem]
        os.close(closed.fd)
        if all(open_.file != closed.file for open_ in self._open.values()):
            for machine in self._machines.values():
                machine.kvm.guest_memfds.release(closed.file)
        return Outcome(ok=True)

    def _slot_set2(self, command: c.SlotSet2) -> Outcome:
        flags = command.flags | (0 if command.gmem is None else SlotFlag.GUEST_MEMFD)
        region = Region2(command.id, flags, command.gpa, command.size, command.hva or 0, command.offset)
        open_ = None if command.gmem is None else self._open.get(command.gmem)
        file = None if open_ is None else GmemFd(open_.fd, open_.path)
        guest = self._target().vmm.memory
        with guest.lock:
            guest.set_region2(region, self._userspace(command), file)
        return Outcome(ok=True)

    def _userspace(self, command: c.SlotSet2) -> Userspace:
        if not command.size or command.hva == 0:
            return Userspace()
        if command.hva is None:
            return Userspace(AnonymousMemory(command.size), 0, "(anonymous)", owned=True)
        try:
            vma = self._host.processes[VMM].backing(command.hva, command.size)
        except Refused:
            return Userspace()  # KVM asks what is there when it is accessed
        return Userspace(memory_of(vma), vma.memory_offset + command.hva - vma.start, str(vma))

    def _slot_delete2(self, command: c.SlotDelete2) -> Outcome:
        guest = self._target().vmm.memory
        with guest.lock:
            guest.set_region2(Region2(command.id, 0, 0, 0), Userspace())
        return Outcome(ok=True)

    def _attributes(self, command: c.SetAttributes) -> Outcome:
        attributes = ATTRIBUTE_PRIVATE if command.private else 0
        self._target().kvm.attributes.set(AttributesRange(command.gpa, command.size, attributes))
        return Outcome(ok=True)

    def _named(self, name: str) -> _Open:
        found = self._open.get(name)
        if found is None:
            raise Refused(errno.EBADF, f"no guest_memfd {quoted(name)} is open: gmem open it")
        return found

    def _check_free(self, name: str) -> None:
        if name in self._open:
            raise Refused(errno.EEXIST, f"guest_memfd {quoted(name)} is open: close it, or choose another name")
        if len(self._open) >= MAX_GMEM_NAMES:
            raise Refused(errno.EMFILE, f"{MAX_GMEM_NAMES} open guest_memfds are the limit: close some")


def _open_gmem(path: str) -> int:
    """To read and write, as KVM's is; a sealed file of a strict mount can be opened to write only."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
