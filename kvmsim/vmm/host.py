"""The simulated host processes of a run: their address spaces, and the memory behind their anonymous mappings."""

import errno
import os
from collections.abc import Sequence

from kvmsim.memory.memory import AnonymousMemory
from kvmsim.store.link import FileId, store_of_sealed
from memfsd.common.quote import quoted
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_HOST_PROCESSES
from memfsd.uapi.units import PAGE_SIZE

from .hva import TASK_SIZE, HostAddressSpace, Vma

VMM = "vmm"
"""The process that runs the VMs; the others are its children."""


class Host:
    """`current` is the process that mmap and the like are about."""

    def __init__(self) -> None:
        self._owners: dict[object, str] = {}
        self.processes = {VMM: HostAddressSpace(VMM, self._owners)}
        self.current = self.processes[VMM]

    def map_file(self, path: str, *, length: int | None, offset: int, shared: bool, at: int | None) -> Vma:
        """mmap(2) of a sealed file. length None: all of it. EINVAL when the file is not guest private memory."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # else a FIFO waits for a reader
        try:
            status = os.fstat(fd)
            store_of_sealed(fd)
            wanted = status.st_size if length is None else length
            file = FileId(status.st_dev, status.st_ino)
            return self.current.map_encrypted(
                file, path, status.st_size, fd, length=wanted, offset=offset, shared=shared, at=at
            )
        except Refused as refused:
            os.close(fd)
            name = quoted(path)
            raise Refused(refused.errno, f"{name}: {refused.reason.removeprefix(f'{name}: ')}") from None

    def map_anonymous(self, length: int, at: int | None) -> Vma:
        """length: bytes, rounded up to pages. EINVAL 0."""
        if length <= 0:
            raise Refused(errno.EINVAL, "a mapping of 0 bytes: give a length")
        if length > TASK_SIZE:
            raise Refused(errno.ENOMEM, f"{length:#x} bytes are more than an address space holds: give less")
        length = -(-length // PAGE_SIZE) * PAGE_SIZE
        memory = AnonymousMemory(length)
        try:
            return self.current.map_anonymous(length, memory, at)
        except Refused:
            memory.close()
            raise

    def unmap(self, start: int, length: int, in_use: Sequence[object]) -> None:
        """munmap(2). EBUSY while an ordinary slot shows a memory of the range (in_use): delete the slot first."""
        for vma in self.current.within(start, start + length):
            if any(vma.memory is memory for memory in in_use):
                raise Refused(errno.EBUSY, f"a shared slot uses {vma}: delete the slot first")
        self._forget(self.current.unmap(start, length))

    def read(self, address: int, length: int) -> bytes:
        """The process reads its own memory: EFAULT where that would be a signal."""
        vma = self.current.backing(address, length)
        return memory_of(vma).read(vma.memory_offset + address - vma.start, length)

    def write(self, address: int, data: bytes) -> None:
        vma = self.current.backing(address, len(data))
        memory_of(vma).write(vma.memory_offset + address - vma.start, data)

    def fork(self, name: str) -> None:
        """A child of the current process; it becomes the current one."""
        if name in self.processes:
            raise Refused(errno.EEXIST, f"process {quoted(name)} exists: choose another name")
        if len(self.processes) >= MAX_HOST_PROCESSES:
            raise Refused(errno.EAGAIN, f"{MAX_HOST_PROCESSES} processes are the limit: end one with 'hva exit'")
        self.current = self.processes[name] = self.current.fork(name)

    def exit(self) -> None:
        """The current process ends; the VMM's is current again. EPERM for the VMM's own: it ends with the run."""
        if self.current.process == VMM:
            raise Refused(errno.EPERM, "the VMM's process ends with the run: only a child (hva fork) can exit")
        ended = self.processes.pop(self.current.process)
        self.current = self.processes[VMM]
        vmas = list(ended)
        ended.exit()
        self._forget(vmas)

    def close(self) -> None:
        vmas = [vma for space in self.processes.values() for vma in space]
        self.processes.clear()
        self._forget(vmas)

    def _forget(self, vmas: list[Vma]) -> None:
        """Close what no mapping of any process has any more: memories, and files (by their fds)."""
        mapped = {id(vma.memory) for space in self.processes.values() for vma in space}
        for memory in {id(vma.memory): vma.memory for vma in vmas}.values():
            if id(memory) in mapped:
                continue
            if isinstance(memory, AnonymousMemory):
                memory.close()
            elif isinstance(memory, int):
                os.close(memory)


def memory_of(vma: Vma) -> AnonymousMemory:
    """Behind an anonymous mapping."""
    assert isinstance(vma.memory, AnonymousMemory)
    return vma.memory


def encrypted_of(space: HostAddressSpace, start: int, length: int) -> tuple[str, int]:
    """Name and fd of the file that the mapping at start shows: EINVAL unless the range is all of one."""
    vma = space.encrypted(start, length)
    assert isinstance(vma.memory, int)
    return vma.name, vma.memory
