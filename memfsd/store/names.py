"""The use cases of directories and names, as the system calls of the same names. Refused says the errno."""

from collections.abc import Callable

from memfsd.core.files.namespace import Creds
from memfsd.core.service import Service
from memfsd.host.effect_runner import EffectRunner

from .attributes import Attributes, attributes_of
from .work import EffectsWork, Work

Reply = Callable[[bytes, Attributes, int], bool]
"""Takes one directory entry: its name, its inode's attributes, the offset of the next. False: no more room."""


class Names:
    """Times are now_ns's."""

    def __init__(self, service: Service, runner: EffectRunner, now_ns: Callable[[], int]) -> None:
        self._service = service
        self._lock = service.lock
        self._runner = runner
        self._now_ns = now_ns

    def lookup(self, parent: int, name: bytes) -> Attributes:
        """Also counts it, as mknod, mkdir and the like do: the kernel holds the inode until it says `forget`."""
        with self._lock:
            return attributes_of(self._service.lookup(parent, name))

    def forget(self, ino: int, count: int) -> Work:
        with self._lock:
            return EffectsWork(self._runner, self._service.forget(ino, count))

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, creds: Creds) -> Attributes:
        with self._lock:
            return attributes_of(self._service.mknod(parent, name, mode, rdev, creds, self._now_ns()))

    def mkdir(self, parent: int, name: bytes, mode: int, creds: Creds) -> Attributes:
        with self._lock:
            return attributes_of(self._service.mkdir(parent, name, mode, creds, self._now_ns()))

    def symlink(self, parent: int, name: bytes, target: bytes, creds: Creds) -> Attributes:
        with self._lock:
            return attributes_of(self._service.symlink(parent, name, target, creds, self._now_ns()))

    def link(self, ino: int, parent: int, name: bytes, uid: int) -> Attributes:
        with self._lock:
            return attributes_of(self._service.link(ino, parent, name, self._now_ns(), uid=uid))

    def unlink(self, parent: int, name: bytes) -> Work:
        with self._lock:
            return EffectsWork(self._runner, self._service.unlink(parent, name, self._now_ns()))

    def rmdir(self, parent: int, name: bytes) -> Work:
        with self._lock:
            return EffectsWork(self._runner, self._service.rmdir(parent, name, self._now_ns()))

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, creds: Creds) -> Work:
        """flags: renameat2(2)'s RENAME_*."""
        with self._lock:
            now = self._now_ns()
            return EffectsWork(
                self._runner, self._service.rename(parent, name, new_parent, new_name, flags, now, creds)
            )

    def readlink(self, ino: int) -> bytes:
        with self._lock:
            target = self._service.readlink(ino)
            self._service.accessed(self._service.inodes.get(ino), self._now_ns())
            return target

    def opendir(self, ino: int, uid: int) -> int:
        with self._lock:
            return self._service.opendir(ino, uid)

    def readdir(self, handle: int, offset: int, reply: Reply) -> None:
        """Entries from an offset on, until there are no more or reply takes no more; offset 0 reads the directory
        again. reply is called with Service.lock held; each entry that it takes counts as looked up, but for "." and
        "..", which the kernel never forgets."""
        if offset == 0:
            self._list(handle)
        with self._lock:
            self._service.accessed(self._service.handles.directory(handle).directory, self._now_ns())
            for next_offset, name, inode in self._service.entries(handle, offset):
                if not reply(name, attributes_of(inode), next_offset):
                    break
                if name not in (b".", b".."):
                    self._service.inodes.looked_up(inode)

    def _list(self, handle: int) -> None:
        with self._lock:
            names = self._service.listing(handle)
        size_bytes = sum(map(len, names))
        with self._lock:
            self._service.keep_listing(handle, names, size_bytes)

    def releasedir(self, handle: int) -> Work:
        with self._lock:
            return EffectsWork(self._runner, self._service.releasedir(handle))
