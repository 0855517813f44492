"""Open files and directories, by the number the kernel keeps for us."""

import errno
from dataclasses import dataclass, field

from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_HANDLES

from .inodes import Directory, Regular


@dataclass(slots=True, eq=False)
class FileHandle:
    file: Regular
    readable: bool
    writable: bool
    noatime: bool = False


@dataclass(slots=True, eq=False)
class DirectoryHandle:
    """names: what the directory held when it was opened or rewound; offsets index into it."""

    directory: Directory
    names: list[bytes] = field(default_factory=list)


class HandleTable:
    """A handle lives from open to release; a mapping keeps its handle open."""

    def __init__(self) -> None:
        self._handles: dict[int, FileHandle | DirectoryHandle] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._handles)

    def open_file(self, file: Regular, *, readable: bool, writable: bool, noatime: bool = False) -> int:
        number = self._add(FileHandle(file, readable, writable, noatime))
        file.opens += 1
        file.readers += readable
        file.mappable_writers += readable and writable
        return number

    def open_directory(self, directory: Directory) -> int:
        number = self._add(DirectoryHandle(directory))
        directory.opens += 1
        return number

    def check_room(self) -> None:
        """ENFILE when no more can be opened."""
        if len(self._handles) >= MAX_HANDLES:
            raise Refused(errno.ENFILE, f"{MAX_HANDLES} open handles are the limit")

    def _add(self, handle: FileHandle | DirectoryHandle) -> int:
        self.check_room()
        number = self._next
        self._next += 1
        self._handles[number] = handle
        return number

    def file(self, number: int) -> FileHandle:
        handle = self._handles.get(number)
        if not isinstance(handle, FileHandle):
            raise Refused(errno.EBADF, f"handle {number} is not an open file")
        return handle

    def directory(self, number: int) -> DirectoryHandle:
        handle = self._handles.get(number)
        if not isinstance(handle, DirectoryHandle):
            raise Refused(errno.EBADF, f"handle {number} is not an open directory")
        return handle

    def release_file(self, number: int) -> Regular:
        handle = self.file(number)
        del self._handles[number]
        file = handle.file
        file.opens -= 1
        file.readers -= handle.readable
        file.mappable_writers -= handle.readable and handle.writable
        assert file.opens >= file.readers >= file.mappable_writers >= 0
        return file

    def release_directory(self, number: int) -> Directory:
        handle = self.directory(number)
        del self._handles[number]
        handle.directory.opens -= 1
        assert handle.directory.opens >= 0
        return handle.directory
