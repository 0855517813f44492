"""One directory under test: open files and mappings of it, and what a caller can see of it."""

import ctypes
import errno
import mmap
import os
import pickle
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
libc.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
libc.utimensat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int]

AT_FDCWD = -100
HANDLES_MAX = 12
MAPPINGS_MAX = 4
LONG_AGO_NS = 10**18
"""September 2001: an older time was set by an operation, a younger one came from a clock."""

Outcome = Any
Seen = dict[str, Any]


def checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class Mapping:
    """A mapping lives on when its handle is closed, so its file is asked through a handle of its own."""

    def __init__(self, world: "World", fd: int, offset: int, length: int, *, shared: bool, writable: bool) -> None:
        flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.memory = mmap.mmap(fd, length, flags=flags, prot=prot, offset=offset)
        self.fd = os.dup(fd)
        self.offset = offset
        self.length = length
        self.writable = writable
        world.mapped.add(os.fstat(fd).st_ino)

    def reaches(self, at: int, count: int) -> bool:
        """Whether the bytes are before the end of the file's last page, so that no access is SIGBUS."""
        size = os.fstat(self.fd).st_size
        return self.offset + at + count <= -(-size // mmap.PAGESIZE) * mmap.PAGESIZE

    def close(self) -> None:
        self.memory.close()
        os.close(self.fd)


class World:
    """Everything an operation may act on. `apply` never raises: errnos are outcomes."""

    def __init__(self, root: Path) -> None:
        self._outside = os.fsencode(root)
        self.root = self._outside + b"/root"
        for path in self._outside, self.root:
            os.mkdir(path)
            os.chmod(path, 0o777)
        self.handles: list[int] = []
        self.mappings: list[Mapping] = []
        self.mapped: set[int] = set()
        """Inodes that were ever mapped."""
        self.allocated: list[int] = []
        """Inodes of which a range was allocated, once for each time."""
        self.umask = 0o022
        self._times: dict[int, tuple[int, int]] = {}

    def close(self) -> None:
        for mapping in self.mappings:
            mapping.close()
        for fd in self.handles:
            os.close(fd)
        _remove_tree(self._outside)

    def path(self, name: bytes) -> bytes:
        return self.root + b"/" + name if name else b""

    def handle(self, index: int) -> int:
        if not self.handles:
            raise Missing
        return self.handles[index % len(self.handles)]

    def keep(self, fd: int) -> int:
        """Handles are numbered; the oldest goes when there are too many."""
        if len(self.handles) == HANDLES_MAX:
            os.close(self.handles.pop(0))
        self.handles.append(fd)
        return len(self.handles) - 1

    def mapping(self, index: int) -> Mapping:
        if not self.mappings:
            raise Missing
        return self.mappings[index % len(self.mappings)]

    def apply(self, run: Callable[["World"], Outcome]) -> Outcome:
        before = os.umask(self.umask)
        try:
            return run(self)
        except Missing:
            return "nothing to act on"
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        finally:
            os.umask(before)

    def see_path(self, name: bytes, *, atime: bool = False) -> Seen:
        try:
            return self._seen(os.lstat(self.path(name)), atime=atime)
        except OSError as error:
            return {"lstat": errno.errorcode[error.errno or 0]}

    def see_handle(self, index: int, *, atime: bool = False) -> Seen:
        try:
            return self._seen(os.fstat(self.handle(index)), atime=atime)
        except Missing:
            return {}

    def _seen(self, found: os.stat_result, *, atime: bool) -> Seen:
        """Times that a clock gave are compared by whether they changed since they were last seen."""
        before = self._times.get(found.st_ino)
        self._times[found.st_ino] = (found.st_mtime_ns, found.st_ctime_ns)
        seen: Seen = {
            "mode": oct(found.st_mode),
            "nlink": found.st_nlink,
            "uid": found.st_uid,
            "gid": found.st_gid,
            "size": found.st_size,
            "blocks": found.st_blocks,
            "blksize": found.st_blksize,
            "mapped": found.st_ino in self.mapped,
            "allocated again": self.allocated.count(found.st_ino) > 1,
            "mtime": _told(found.st_mtime_ns),
        }
        if atime:
            seen["atime"] = _told(found.st_atime_ns)
        if before is not None:
            seen["mtime changed"] = before[0] != found.st_mtime_ns
            seen["ctime changed"] = before[1] != found.st_ctime_ns
        return seen

    def see_all(self) -> Seen:
        """The whole tree, and every open file, with contents."""
        seen: Seen = {}
        for name in _walk(self.root, b""):
            seen[f"path {name!r}"] = self.see_path(name) | _contents(self.path(name))
        for index, fd in enumerate(self.handles):
            mode = os.fstat(fd).st_mode
            seen[f"handle {index}"] = self.see_handle(index)
            if stat.S_ISREG(mode):
                seen[f"handle {index}"] |= _contents(b"/proc/self/fd/%d" % fd) | {
                    "position": os.lseek(fd, 0, os.SEEK_CUR)
                }
        for index, mapping in enumerate(self.mappings):
            reach = next((n for n in range(mapping.length, 0, -mmap.PAGESIZE) if mapping.reaches(0, n)), 0)
            seen[f"mapping {index}"] = {"bytes": mapping.memory[:reach]}
        return seen


class Missing(Exception):
    """There is no handle or no mapping to act on."""


def _told(time_ns: int) -> int | str:
    return time_ns if time_ns < LONG_AGO_NS else "a clock's"


def _walk(root: bytes, name: bytes) -> Iterator[bytes]:
    yield name or b"."
    for entry in sorted(os.listdir(root + b"/" + name)):
        inner = name + b"/" + entry if name else entry
        if stat.S_ISDIR(os.lstat(root + b"/" + inner).st_mode):
            yield from _walk(root, inner)
        else:
            yield inner


def _contents(path: bytes) -> Seen:
    mode = os.stat(path).st_mode if path.startswith(b"/proc/self/fd/") else os.lstat(path).st_mode
    seen: Seen = {}
    if stat.S_ISLNK(mode):
        return {"target": os.readlink(path)}
    if stat.S_ISREG(mode):
        fd = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            seen["data"] = data = list(_data(fd, size))
            seen["bytes"] = [os.pread(fd, min(end - start, 1 << 20), start) for start, end in data]
            seen["head"] = os.pread(fd, 1 << 16, 0)
        finally:
            os.close(fd)
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        names = sorted(os.listxattr(path))
        seen["xattrs"] = {name: os.getxattr(path, name) for name in names}
    return seen


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The data extents that SEEK_DATA and SEEK_HOLE tell."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at


def _remove_tree(path: bytes) -> None:
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            _remove_tree(entry.path)
        else:
            os.unlink(entry.path)
    os.rmdir(path)


@contextmanager
def as_user(uid: int, gid: int, groups: list[int]) -> Iterator[None]:
    """Permission checks as another user; the effective ids decide, and those of root come back."""
    before = os.getgroups()
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


def elsewhere(act: Callable[[], bytes]) -> bytes | str:
    """What another process gets when it does this: its result, or the signal that ended it."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        os.write(write_end, pickle.dumps(act()))
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as answer:
        report = answer.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return pickle.loads(report) if status == 0 else signal.Signals(-status).name
