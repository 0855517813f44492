"""Open files and directories, by the number the kernel keeps for us."""

import errno
from dataclasses import dataclass, field

from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import (
    LISTED_NAME_BYTES,
    MAX_HANDLES,
    MAX_HANDLES_PER_UID,
    MAX_LISTED_BYTES,
    MAX_LISTED_BYTES_PER_UID,
    RESERVED_HANDLES,
    RESERVED_LISTED_BYTES,
)
from memfsd.uapi.seals import Seal

from .inodes import Directory, Regular
from .shares import Shares


@dataclass(slots=True, eq=False)
class FileHandle:
    """What open(2) made."""

    file: Regular
    readable: bool
    writable: bool
    mappable_writer: bool
    """A shared mapping of it may store: not if the file was sealed against that before."""
    uid: int
    """Of who opened it."""
    noatime: bool = False


@dataclass(slots=True, eq=False)
class DirectoryHandle:
    """names: what the directory held when it was opened or rewound; offsets index into it."""

    directory: Directory
    uid: int
    names: list[bytes] = field(default_factory=list)
    listed_bytes: int = 0


def handle_shares(owner_uid: int) -> Shares:
    return Shares(MAX_HANDLES, MAX_HANDLES_PER_UID, RESERVED_HANDLES, owner_uid)


def listed_shares(owner_uid: int) -> Shares:
    return Shares(MAX_LISTED_BYTES, MAX_LISTED_BYTES_PER_UID, RESERVED_LISTED_BYTES, owner_uid)


class HandleTable:
    """A handle lives from open to release; a mapping keeps its handle open."""

    def __init__(self, shares: Shares, listed: Shares) -> None:
        """shares: of handles; listed: of bytes of the names that open directories keep."""
        self._shares, self._listed = shares, listed
        self._handles: dict[int, FileHandle | DirectoryHandle] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._handles)

    def open_file(self, file: Regular, uid: int, *, readable: bool, writable: bool, noatime: bool = False) -> int:
        mappable_writer = readable and writable and not file.seals & (Seal.WRITE | Seal.FUTURE_WRITE)
        number = self._add(FileHandle(file, readable, writable, mappable_writer, uid, noatime))
        file.opens += 1
        file.readers += readable
        file.mappable_writers += mappable_writer
        return number

    def open_directory(self, directory: Directory, uid: int) -> int:
        number = self._add(DirectoryHandle(directory, uid))
        directory.opens += 1
        return number

    def list_names(self, handle: DirectoryHandle, names: list[bytes], size_bytes: int) -> None:
        """Keep these names, of so many bytes. ENOMEM, and nothing kept, when this user's handles are full."""
        self._forget_names(handle)
        size_bytes += LISTED_NAME_BYTES * len(names)
        if not self._listed.take(handle.uid, size_bytes):
            mine = self._listed.held(handle.uid)
            raise Refused(
                errno.ENOMEM,
                f"uid {handle.uid} keeps {mine} bytes of names in open directories and cannot keep {size_bytes} more:"
                " close some",
            )
        handle.names, handle.listed_bytes = names, size_bytes

    def _forget_names(self, handle: DirectoryHandle) -> None:
        self._listed.give(handle.uid, handle.listed_bytes)
        handle.names, handle.listed_bytes = [], 0

    def check_room(self, uid: int) -> None:
        """ENFILE when this user can open no more."""
        if not self._shares.take(uid):
            mine, all_ = self._shares.held(uid), self._shares.used
            raise Refused(errno.ENFILE, f"uid {uid} has {mine} of {all_} open handles, and gets no more: close some")
        self._shares.give(uid)

    def _add(self, handle: FileHandle | DirectoryHandle) -> int:
        self.check_room(handle.uid)
        self._shares.take(handle.uid)
        number = self._next
        self._next += 1
        self._handles[number] = handle
        return number

    def _remove(self, number: int) -> None:
        self._shares.give(self._handles.pop(number).uid)

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
        self._remove(number)
        file = handle.file
        file.opens -= 1
        file.readers -= handle.readable
        file.mappable_writers -= handle.mappable_writer
        assert file.opens >= file.readers >= file.mappable_writers >= 0
        return file

    def release_directory(self, number: int) -> Directory:
        handle = self.directory(number)
        self._forget_names(handle)
        self._remove(number)
        handle.directory.opens -= 1
        assert handle.directory.opens >= 0
        return handle.directory
