"""The use cases of files: attributes, seals, bytes and pages. Refused says the errno.

What only takes memory from a sealed file that no VM has is done in the same way as when one has it: by an invalidation.
"""

import errno
import os
import threading
from collections.abc import Callable
from typing import NamedTuple

from memfsd.core.effects import Effect
from memfsd.core.files.inodes import ROOT_INO, Changes, Regular
from memfsd.core.files.namespace import Creds
from memfsd.core.files.ordinary import IoVec
from memfsd.core.private.strategies import PUNCH, TRUNCATE, Strategy
from memfsd.core.service import Service
from memfsd.host.effect_runner import EffectRunner
from memfsd.host.windows import Windows
from memfsd.uapi import names
from memfsd.uapi.abi import GmemFlag
from memfsd.uapi.errors import Refused
from memfsd.uapi.names import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SIZE, Ino, PgoffRange

from .attributes import Attributes, attributes_of, seems_empty
from .invalidator import InvalidateRange, Invalidator, VmWork
from .seeking import Seeking
from .work import EffectsWork, Work


class Opened(NamedTuple):
    """A new handle of a file, and what says how the kernel may cache it. memfd: the flags of a guest_memfd."""

    handle: int
    seals: Seal
    seems_empty: bool
    memfd: GmemFlag | None


def _opened(file: Regular, handle: int) -> Opened:
    memfd = None if file.guest is None else file.guest.memfd
    return Opened(handle, file.seals, seems_empty(file), None if memfd is None else memfd.flags)


SealedState = tuple[int, ...]


class Space(NamedTuple):
    """What statfs(2) shows: frames of 4096 bytes, and inodes."""

    frame_count: int
    free_frames: int
    inode_count: int
    free_inodes: int


class Files:
    """now_ns: the time of all that changes. random_bytes makes 16 of them, for pairing tokens."""

    def __init__(
        self,
        service: Service,
        windows: Windows,
        runner: EffectRunner,
        invalidator: Invalidator,
        now_ns: Callable[[], int],
        random_bytes: Callable[[], bytes],
    ) -> None:
        self._service = service
        self._lock = service.lock
        self._inodes = service.inodes
        self._windows = windows
        self._runner = runner
        self._invalidator = invalidator
        self._now_ns = now_ns
        self._random_bytes = random_bytes

    def _work(
        self, ino: int, effects: list[Effect], taken: PgoffRange | None, strategy: Strategy, size: int | None, now: int
    ) -> Work:
        if taken is None:
            return EffectsWork(self._runner, effects)
        return VmWork(self._invalidator, InvalidateRange(Ino(ino), *taken, strategy, size, now))

    # -- attributes

    def getattr(self, ino: int) -> Attributes:
        with self._lock:
            return attributes_of(self._inodes.get(ino))

    def sealed_state(self, ino: int) -> SealedState | None:
        """What `getattr` shows of a file that was sealed, and that may change; None: it is none, or a guest_memfd.
        Each stat(2) of one asks for it."""
        self._lock.acquire()  # a `with` takes twice as long
        try:
            file = self._inodes.find(ino)
            if not isinstance(file, Regular) or file.guest is None or file.guest.memfd is not None:
                return None
            return (
                file.mode,
                file.nlink,
                file.uid,
                file.gid,
                file.size,
                file.pages.page_count,
                file.atime_ns,
                file.mtime_ns,
                file.ctime_ns,
            )
        finally:
            self._lock.release()

    def setattr(self, ino: int, changes: Changes, uid: int, *, resized: bool = False) -> Attributes:
        """What chmod(2), chown(2) and utimensat(2) of this user change. None at all also changes ctime, but not after
        `truncate` (resized), which has done so."""
        with self._lock:
            inode = self._service.inodes.get(ino)
            if changes != Changes() or not (resized or uid not in (0, inode.uid)):
                self._service.setattr(ino, changes, self._now_ns())
            return attributes_of(inode)

    def clear_setid(self, ino: int) -> bool:
        """Take setuid and setgid away, as a write by another user does. True if there were any."""
        with self._lock:
            return self._service.clear_setid(ino)

    def clear_setid_by_chown(self, ino: int, uid: int, in_group: Callable[[int], bool], *, changes: bool) -> None:
        """As Service.clear_setid_by_chown."""
        with self._lock:
            self._service.clear_setid_by_chown(ino, uid, in_group, changes=changes)

    def space(self) -> Space:
        with self._lock:
            pool, inodes = self._service.pool, self._service.inodes
            return Space(pool.frame_count, pool.free_count, self._service.options.inode_count, inodes.free_count)

    # -- extended attributes and seals

    def getxattr(self, ino: int, name: bytes) -> bytes:
        if name == names.XATTR_COUNTS and ino == ROOT_INO:
            return " ".join(f"{name}={count}" for name, count in self._counts().items()).encode()
        populated = self._windows.populated_count(Ino(ino)) if name == names.XATTR_FRAMES else None
        with self._lock:
            return self._service.getxattr(ino, name, self._random_bytes, populated)

    def _counts(self) -> dict[str, int]:
        """What is held now, to see leaks."""
        with self._lock:
            held = self._service.counts()
        populated = sum(map(self._windows.populated_count, self._windows.files()))
        held |= {"windows": self._windows.window_count(), "populated": populated}
        held |= {"fds": len(os.listdir("/proc/self/fd"))}
        return held | {"threads": threading.active_count()}

    def listxattr(self, ino: int) -> list[bytes]:
        with self._lock:
            return self._service.xattrs.list(self._service.inodes.get(ino))

    def setxattr(self, ino: int, name: bytes, value: bytes) -> Work:
        """user.memfsd.seals adds seals, with all refusals of `add_seals`."""
        with self._lock:
            return EffectsWork(self._runner, self._service.setxattr(ino, name, value, 0, self._now_ns()))

    def removexattr(self, ino: int, name: bytes) -> None:
        with self._lock:
            self._service.removexattr(ino, name, self._now_ns())

    def seals(self, ino: int) -> Seal | None:
        """None: not a regular file."""
        with self._lock:
            inode = self._service.inodes.get(ino)
            return inode.seals if isinstance(inode, Regular) else None

    def add_seals(self, ino: int, seals: Seal, own_handle: int | None = None) -> Work:
        """EPERM and EBUSY as for a memfd; own_handle: the one that asks, which must be able to write."""
        with self._lock:
            return EffectsWork(self._runner, self._service.add_seals(ino, seals, self._now_ns(), own_handle=own_handle))

    # -- handles

    def create(self, parent: int, name: bytes, mode: int, flags: int, creds: Creds) -> tuple[Opened, Attributes]:
        with self._lock:
            file, handle = self._service.create(parent, name, mode, flags, creds, self._now_ns())
            return _opened(file, handle), attributes_of(file)

    def open(self, ino: int, flags: int, uid: int) -> tuple[Opened, Work]:
        with self._lock:
            file, handle, effects = self._service.open(ino, flags, uid, self._now_ns())
            return _opened(file, handle), EffectsWork(self._runner, effects)

    def writer(self, handle: int) -> int:
        """The user who opened this handle, which may move or convert pages. EPERM for one that only reads."""
        with self._lock:
            opened = self._service.handles.file(handle)
            if not opened.writable:
                raise Refused(
                    errno.EPERM, "moving or converting pages needs a writable handle: open the file for writing"
                )
            return opened.uid

    def opener(self, handle: int) -> tuple[Ino, int]:
        """Which file it is of, and which user opened it."""
        with self._lock:
            opened = self._service.handles.file(handle)
            return opened.file.ino, opened.uid

    def check_fsync(self, handle: int) -> None:
        """EINVAL for a guest_memfd."""
        with self._lock:
            file = self._service.handles.file(handle).file
            if file.guest is not None and file.guest.memfd is not None:
                raise Refused(errno.EINVAL, f"inode {file.ino} is a guest_memfd, which has no fsync(2)")

    def release(self, handle: int) -> Work:
        with self._lock:
            return EffectsWork(self._runner, self._service.release(handle))

    # -- bytes

    def read(self, handle: int, offset: int, size: int) -> bytes:
        with self._lock:
            plan = self._service.read(handle, offset, size, self._now_ns())
            return self._windows.read(plan, self._window(handle))

    def _window(self, handle: int) -> Ino | None:
        """Where the bytes of a guest_memfd are. Call with Service.lock held."""
        file = self._service.handles.file(handle).file
        return None if file.guest is None else file.ino

    def write_in_place(self, handle: int, offset: int, data: memoryview) -> int | None:
        """A write into one run of frames, as most are: bytes written, or below 0 the errno that refuses it. None: ask
        `write`."""
        size = len(data)
        self._lock.acquire()
        try:
            # Planned and written in one go, as in `write`.
            at = self._service.place_write(handle, offset, size, self._now_ns())
            return at if at is None or at < 0 else self._windows.write([(at, size)], data)
        finally:
            self._lock.release()

    def write(self, handle: int, offset: int, data: bytes, *, stored: bool = False) -> int:
        """Bytes written: fewer, and 0, when the pool gets full. stored: the kernel writes what a mapping stored."""
        plan: IoVec = []
        with self._lock:
            # Planned and written in one go, so that no truncate frees the frames between.
            try:
                plan = self._service.write(handle, offset, len(data), self._now_ns(), stored=stored)
            except Refused as refused:
                if refused.errno != errno.ENOSPC:
                    raise
            window = self._window(handle)
            return self._windows.write(plan, data) if window is None else self._windows.write_window(window, plan, data)

    # -- pages

    def truncate(self, ino: int, size: int, *, opened: bool = True) -> Work:
        """ftruncate(2), or truncate(2) when not `opened`: that leaves the times if it changes nothing, as on tmpfs."""
        with self._lock:
            now = self._now_ns()
            effects, taken = self._service.resize(ino, size, now, opened=opened)
            return self._work(ino, effects, taken, TRUNCATE, size, now)

    def fallocate(self, ino: int, mode: int, offset: int, length: int) -> Work:
        """ENOSPC changes nothing, and is final only if Reclaimer.reclaim does not help."""
        with self._lock:
            now = self._now_ns()
            effects, taken = self._service.fallocate(ino, mode, offset, length, now)
            return self._work(ino, effects, taken, PUNCH, None, now)

    def out_of_room(self, ino: int, refused: Refused) -> Refused:
        """GuestMemory.out_of_room."""
        with self._lock:
            return self._service.gmem.out_of_room(self._service.inodes.regular(ino), refused)

    def allocate(self, ino: int, offset: int, length: int) -> Work:
        """fallocate(FALLOC_FL_KEEP_SIZE)."""
        return self.fallocate(ino, FALLOC_FL_KEEP_SIZE, offset, length)

    def punch(self, ino: int, offset: int, length: int) -> Work:
        """fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)."""
        return self.fallocate(ino, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)

    def seek(self, ino: int, offset: int, whence: int) -> Seeking:
        """lseek(2) with SEEK_DATA or SEEK_HOLE: EINVAL; ENXIO outside the file."""
        with self._lock:
            return Seeking(self._lock, self._service.seek(ino, offset, whence), self._windows)

    def room_to_write_back(self, ino: int) -> int:
        """How many bytes that a mapping of this file stored are surely taken; 0 also once some were not."""
        with self._lock:
            file, pool = self._service.inodes.regular(ino), self._service.pool
            # A policy may bind the pages to any of the nodes.
            room = pool.free_count if file.policies is None else min(pool.node_free_counts())
            return 0 if file.is_cached_only else room // 2 * PAGE_SIZE

    def keep_cached(self, handle: int) -> None:
        """What a mapping of the handle's file stored found no room: it is in the kernel's cache only."""
        with self._lock:
            self._service.handles.file(handle).file.is_cached_only = True
