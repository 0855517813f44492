"""The store of `kvmsim vmms`, with files of any size and flags.

A memfd stands for each file. Where it is mapped it is the kernel's page cache, too: written back and dropped when the
store says so, and filled when pages become shared.
"""

import os
from dataclasses import dataclass

from kvmsim.instruments.vmms.store import LocalStore
from kvmsim.kvm.region import GmemFd
from memfsd.common.intervals import subtract
from memfsd.common.linux import next_data, punch_hole
from memfsd.core.files.inodes import ROOT_INO
from memfsd.uapi.abi import Abi
from memfsd.uapi.errors import Refused
from memfsd.uapi.gmem_ioctls import ATTRIBUTE_PRIVATE, CreateGuestMemfd, MemoryAttributes2
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Ino


@dataclass(frozen=True, slots=True)
class File:
    """handle: in the store, to write. fd: the memfd that stands for the file."""

    name: str
    ino: Ino
    handle: int
    fd: int

    @property
    def gmem(self) -> GmemFd:
        return GmemFd(self.fd, self.name)

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self.fd}"


class AbiStore(LocalStore):
    """Close its VMs first, then it."""

    def __init__(self, frame_count: int, abi: Abi) -> None:
        super().__init__(frame_count, abi)
        self._files: dict[Ino, File] = {}
        self._store.runner.forget_cache = self._forget_cache

    def new(self, name: str) -> File:
        """An ordinary file, empty."""
        opened, shown = self._store.files.create(ROOT_INO, name.encode(), 0o600, os.O_WRONLY, self._creds)
        file = self._files[shown.ino] = File(name, shown.ino, opened.handle, self._stand_in(name, shown.ino))
        return file

    def create_guest_memfd(self, file: File, size: int, flags: int) -> None:
        """KVM_CREATE_GUEST_MEMFD."""
        self._store.guest_memfds.create(file.ino, file.handle, CreateGuestMemfd(size, flags))
        os.truncate(file.fd, size)

    def seal(self, file: File) -> None:
        self._store.files.add_seals(file.ino, Seal.GUEST, own_handle=file.handle).run()

    def truncate(self, file: File, size: int) -> None:
        self._store.files.truncate(file.ino, size).run()
        os.truncate(file.fd, size)

    def fallocate(self, file: File, offset: int, length: int) -> None:
        try:
            self._store.files.allocate(file.ino, offset, length).run()
        except Refused as refused:
            raise self._store.files.out_of_room(file.ino, refused) from None

    def punch_file(self, file: File, offset: int, length: int) -> None:
        """fallocate(2), with which the kernel drops what it has cached."""
        self._store.files.punch(file.ino, offset, length).run()
        punch_hole(file.fd, offset, length)

    def read(self, file: File, offset: int, length: int) -> bytes:
        """What a mapping of another descriptor reads."""
        opened, work = self._store.files.open(file.ino, os.O_RDONLY, self._creds.uid)
        try:
            work.run()
            return self._store.files.read(opened.handle, offset, length)
        finally:
            self._store.files.release(opened.handle).run()

    def write(self, file: File, offset: int, data: bytes) -> int:
        """write(2)."""
        return self._store.files.write(file.handle, offset, data)

    def poison(self, file: File, pgoff: int) -> None:
        """What `memfs poison` does."""
        self._store.failures.poison(file.ino, pgoff)

    def set_attributes(self, file: File, asked: MemoryAttributes2) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES2. Pages that become shared are touched at once."""
        shared = self._store.guest_memfds.shared_ranges(file.ino)
        self._store.guest_memfds.set_attributes(file.ino, asked)
        if not asked.attributes & ATTRIBUTE_PRIVATE:
            start, end = asked.offset >> PAGE_SHIFT, asked.offset + asked.size >> PAGE_SHIFT
            for low, high in subtract(start, end, shared):
                for page in range(low << PAGE_SHIFT, high << PAGE_SHIFT, PAGE_SIZE):
                    os.pwrite(file.fd, self.read(file, page, PAGE_SIZE), page)

    def _forget_cache(self, ino: Ino, offset: int, length: int) -> None:
        file = self._files[ino]
        end = offset + length if length else os.fstat(file.fd).st_size
        for page in range(offset, end, PAGE_SIZE):
            if next_data(file.fd, page) == page:
                self._store.files.write(file.handle, page, os.pread(file.fd, PAGE_SIZE, page), stored=True)
                punch_hole(file.fd, page, PAGE_SIZE)
