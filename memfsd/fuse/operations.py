"""The pyfuse3 handlers: requests to calls of the core, refusals to errnos.

Handlers run on one trio loop. They hold Service.lock for a call, never across an await; what waits (a VM's
acknowledgement, a large punch, the kernel's cache) runs in a worker thread. lookup, getattr, getxattr and
statfs never wait on a VM.
"""

import contextlib
import errno
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

import trio

from memfsd.core.effects import Effect
from memfsd.core.files.inodes import ROOT_INO, Inode, Regular
from memfsd.core.files.namespace import Creds
from memfsd.core.files.ordinary import Plan
from memfsd.core.files.seeking import Seek
from memfsd.core.gmem import guest_of
from memfsd.core.service import Changes, Service
from memfsd.host.effect_runner import EffectRunner
from memfsd.host.windows import Windows
from memfsd.uapi import names
from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.limits import NAME_MAX
from memfsd.uapi.messages import Reason
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SIZE, Ino, Pgoff

from .closing import after_closing
from .hook import kills, pyfuse3, queued, stores, write_back
from .waiters import Waiters

log = logging.getLogger("memfsd.fuse")

_CACHE_S = 3600.0
"""Names, and attributes of what only the kernel changes, may be cached; sealed files change behind its back."""
_WORKERS = 32
_MAX_SEALED = 256
_WRITE_BACK_PARTS = 64
"""In which a range is written back at most when the pool has not room for all of it."""

EntryAttributes = pyfuse3.EntryAttributes
FileInfo = pyfuse3.FileInfo
FUSEError = pyfuse3.FUSEError

P = ParamSpec("P")
R = TypeVar("R")
Finish = Callable[[Regular], None]


class Invalidations(Protocol):
    """What waits for VMs: blocks, and so runs in worker threads."""

    def invalidate(self, ino: Ino, start: Pgoff, end: Pgoff, reason: Reason, finish: Finish, /) -> None: ...

    def invalidate_unpaired(self, ino: Ino, start: Pgoff, end: Pgoff, reason: Reason, finish: Finish, /) -> bool:
        """False, and nothing done, when it would wait."""


def _door(handler: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Errors to errnos. Anything unexpected is EIO and one logged traceback: no exception ends the daemon."""

    @functools.wraps(handler)
    async def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(*args, **kwargs)
        except Exception as error:
            raise _fuse_error(handler.__name__, error) from None

    return wrapped


def _fuse_error(name: str, error: Exception) -> Exception:
    if isinstance(error, Refused):
        log.debug("%s: %s", name, error)
        return FUSEError(error.errno)
    if isinstance(error, FUSEError):
        return error
    log.error("%s failed", name, exc_info=error)
    return FUSEError(error.errno or errno.EIO if isinstance(error, OSError) else errno.EIO)


class Operations(pyfuse3.Operations):
    """reclaim: take back what no guest touched; True if any frame came free. It blocks, as `invalidations` do."""

    enable_writeback_cache = False

    def __init__(
        self,
        service: Service,
        windows: Windows,
        runner: EffectRunner,
        invalidations: Invalidations,
        reclaim: Callable[[], bool],
        owner_uid: int,
    ) -> None:
        super().__init__()
        self._service = service
        self._lock = service.lock
        self._windows = windows
        self._runner = runner
        self._invalidations = invalidations
        self._reclaim = reclaim
        self._reclaiming: trio.Event | None = None
        self._workers = trio.CapacityLimiter(_WORKERS)
        self._waiters = Waiters(owner_uid)
        self._background = 0
        """Requests under way that the kernel sends behind its callers' backs, and only some at a time."""
        self._sealed: dict[Ino, tuple[tuple[object, ...], EntryAttributes]] = {}
        """Sealed files that were looked at: what they showed, and that made for the kernel."""

    async def _perform(self, effects: Sequence[Effect]) -> None:
        if not effects:
            return
        if self._runner.is_quick(effects):
            self._runner.perform(effects)
        else:
            await trio.to_thread.run_sync(self._runner.perform, effects, limiter=self._workers)

    @contextlib.contextmanager
    def _in_background(self) -> Iterator[None]:
        self._background += 1
        try:
            yield
        finally:
            self._background -= 1

    async def _with_room(self, call: Callable[[], R]) -> R:
        """Run a call that allocates; when the pool is full, once more after taking back untouched grants."""
        try:
            with self._lock:
                return call()
        except Refused as refused:
            if refused.errno != errno.ENOSPC or not await self._made_room():
                raise
        with self._lock:
            return call()

    async def _without_the_closed(self, add_seals: Callable[[], R]) -> R:
        """Add seals; EBUSY only for handles that are still open, not for those whose RELEASE is under way."""

        def locked() -> R:
            with self._lock:
                return add_seals()

        return await after_closing(locked, lambda: self._background > 0 or queued())

    async def _made_room(self) -> bool:
        if self._reclaiming is None:
            with self._lock:
                if self._service.pool.count(FrameState.PENDING) == 0:
                    return False
            self._reclaiming = trio.Event()
            try:
                return await trio.to_thread.run_sync(self._reclaim, limiter=trio.CapacityLimiter(1))
            finally:
                self._reclaiming.set()
                self._reclaiming = None
        # All who find the pool full wait for the same: one thread, however many they are.
        await self._reclaiming.wait()
        with self._lock:
            return self._service.pool.free_count > 0

    # -- names

    @_door
    async def lookup(self, parent: int, name: bytes, ctx: Any) -> EntryAttributes:
        with self._lock:
            return _attributes(self._service.lookup(parent, name))

    @_door
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            with self._lock:
                effects = self._service.forget(ino, count)
            await self._perform(effects)

    @_door
    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, ctx: Any) -> EntryAttributes:
        with self._lock:
            return _attributes(self._service.mknod(parent, name, mode, rdev, _creds(ctx), time.time_ns()))

    @_door
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> EntryAttributes:
        with self._lock:
            return _attributes(self._service.mkdir(parent, name, mode, _creds(ctx), time.time_ns()))

    @_door
    async def symlink(self, parent: int, name: bytes, target: bytes, ctx: Any) -> EntryAttributes:
        with self._lock:
            return _attributes(self._service.symlink(parent, name, target, _creds(ctx), time.time_ns()))

    @_door
    async def link(self, inode: int, new_parent: int, new_name: bytes, ctx: Any) -> EntryAttributes:
        with self._lock:
            return _attributes(self._service.link(inode, new_parent, new_name, time.time_ns()))

    @_door
    async def unlink(self, parent: int, name: bytes, ctx: Any) -> None:
        with self._lock:
            effects = self._service.unlink(parent, name, time.time_ns())
        await self._perform(effects)

    @_door
    async def rmdir(self, parent: int, name: bytes, ctx: Any) -> None:
        with self._lock:
            effects = self._service.rmdir(parent, name, time.time_ns())
        await self._perform(effects)

    @_door
    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: Any) -> None:
        with self._lock:
            effects = self._service.rename(parent, name, new_parent, new_name, flags, time.time_ns(), _creds(ctx))
        await self._perform(effects)

    @_door
    async def readlink(self, inode: int, ctx: Any) -> bytes:
        with self._lock:
            target = self._service.readlink(inode)
            self._service.accessed(self._service.inodes.get(inode), time.time_ns())
            return target

    # -- attributes

    async def getattr(self, inode: int, ctx: Any = None) -> EntryAttributes:
        # Its own door: the kernel caches nothing of a sealed file, and a second coroutine is felt at each stat(2).
        try:
            with self._lock:
                found = self._service.inodes.get(inode)
                if isinstance(found, Regular) and found.guest is not None:
                    return self._sealed_attributes(found)
                if not _seems_empty(found):
                    return _attributes(found)
            is_known = await self._write_back(inode, 0, found.size)
            with self._lock:
                found = self._service.inodes.get(inode)
                attributes = _attributes(found)
                if not is_known and _seems_empty(found):
                    attributes.st_blocks = PAGE_SIZE // 512  # who copies it looks for data, and `lseek` says "perhaps"
                return attributes
        except Exception as error:
            raise _fuse_error("getattr", error) from None

    def _sealed_attributes(self, file: Regular) -> EntryAttributes:
        """The kernel asks for these at each stat(2), and to make them anew takes longer than all else here."""
        owner, times = (file.mode, file.nlink, file.uid, file.gid), (file.atime_ns, file.mtime_ns, file.ctime_ns)
        shows = (file.size, file.block_count, owner, times)
        made = self._sealed.get(file.ino)
        if made is None or made[0] != shows:
            if len(self._sealed) >= _MAX_SEALED:
                self._sealed.clear()
            made = self._sealed[file.ino] = shows, _attributes(file)
        return made[1]

    @_door
    async def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> EntryAttributes:
        now = time.time_ns()
        if kills():
            self._clear_setid(inode)
        elif _is_chown(fields):
            self._clear_setid_by_chown(inode, fields, ctx)
        if fields.update_size:
            await self._resize(inode, attr.st_size, ctx.uid, now, opened=fh is not None)
        changes = Changes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        )
        with self._lock:
            file = self._service.inodes.get(inode)
            if changes == Changes() and (fields.update_size or ctx.uid not in (0, file.uid)):
                return _attributes(file)
            return _attributes(self._service.setattr(inode, changes, now))

    def _clear_setid_by_chown(self, inode: int, fields: Any, ctx: Any) -> None:
        def in_group(gid: int) -> bool:
            return gid == ctx.gid or gid in pyfuse3.get_sup_groups(ctx.pid)

        changes = fields.update_uid or fields.update_gid
        with self._lock:
            self._service.clear_setid_by_chown(inode, ctx.uid, in_group, changes=changes)

    def _clear_setid(self, inode: int) -> None:
        with self._lock:
            changed = self._service.clear_setid(inode)
        if changed:
            # Before our answer, so that nobody executes what changed with the old mode.
            self._forget_attributes(inode)

    @staticmethod
    def _forget_attributes(inode: int) -> None:
        """The kernel asks anew. Waits for no lock, and so may run on the loop."""
        with contextlib.suppress(OSError):
            pyfuse3.invalidate_inode(inode, attr_only=True)

    async def _resize(self, inode: int, size: int, uid: int, now_ns: int, *, opened: bool) -> None:
        with self._lock:
            effects, taken = self._service.resize(inode, size, now_ns, opened=opened)
        await self._perform(effects)
        if taken is not None:

            def finish(file: Regular) -> None:
                self._service.gmem.set_size(file, size)
                file.mtime_ns = file.ctime_ns = now_ns

            await self._invalidate(inode, uid, taken, Reason.TRUNCATE, finish)

    async def _invalidate(
        self, inode: int, uid: int, taken: tuple[Pgoff, Pgoff], reason: Reason, finish: Finish
    ) -> None:
        """For the user uid. What needs no VM does not queue with what does."""
        arguments = Ino(inode), taken[0], taken[1], reason, finish
        if not self._has_vm(inode) and await trio.to_thread.run_sync(
            self._invalidations.invalidate_unpaired, *arguments, limiter=self._workers
        ):
            return
        async with self._waiters.turn(uid):
            await trio.to_thread.run_sync(self._invalidations.invalidate, *arguments, limiter=trio.CapacityLimiter(1))

    def _has_vm(self, inode: int) -> bool:
        with self._lock:
            return guest_of(self._service.inodes.regular(inode)).active is not None

    @_door
    async def statfs(self, ctx: Any) -> Any:
        data = pyfuse3.StatvfsData()
        with self._lock:
            pool = self._service.pool
            data.f_bsize = data.f_frsize = PAGE_SIZE
            data.f_blocks = pool.frame_count
            data.f_bfree = data.f_bavail = pool.free_count
            data.f_files = self._service.options.inode_count
            data.f_ffree = data.f_favail = self._service.inodes.free_count
        data.f_namemax = NAME_MAX
        return data

    @_door
    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        if name == names.XATTR_COUNTS and inode == ROOT_INO:
            return self._counts()
        populated = self._windows.populated_count(Ino(inode)) if name == names.XATTR_FRAMES else None
        with self._lock:
            return self._service.getxattr(inode, name, _random_bytes, populated)

    def _counts(self) -> bytes:
        with self._lock:
            held = self._service.counts()
        held |= {"windows": self._windows.window_count(), "fds": len(os.listdir("/proc/self/fd"))}
        held |= {"threads": threading.active_count()}
        return " ".join(f"{name}={count}" for name, count in held.items()).encode()

    @_door
    async def listxattr(self, inode: int, ctx: Any) -> Sequence[bytes]:
        with self._lock:
            listed = self._service.xattrs.list(self._service.inodes.get(inode))
        # The kernel keeps others from reading and setting these, but leaves the list to us.
        return listed if ctx.uid == 0 else [name for name in listed if not name.startswith(b"trusted.")]

    @_door
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:
        value = bytes(value)
        effects = await self._without_the_closed(lambda: self._service.setxattr(inode, name, value, 0, time.time_ns()))
        await self._perform(effects)

    @_door
    async def removexattr(self, inode: int, name: bytes, ctx: Any) -> None:
        with self._lock:
            self._service.removexattr(inode, name, time.time_ns())

    # -- open files

    @_door
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[FileInfo, EntryAttributes]:
        with self._lock:
            file, handle = self._service.create(parent, name, mode, flags, _creds(ctx), time.time_ns())
            return _file_info(file, handle, flags), _attributes(file)

    @_door
    async def open(self, inode: int, flags: int, ctx: Any) -> FileInfo:
        if kills():
            self._clear_setid(inode)
        with self._lock:
            file, handle, effects = self._service.open(inode, flags, ctx.uid, time.time_ns())
            info = _file_info(file, handle, flags)
            seems_empty = _seems_empty(file)
        await self._perform(effects)
        if seems_empty:
            self._forget_attributes(inode)  # from here on it is for us to say how many blocks it has
        return info

    @_door
    async def release(self, fh: int) -> None:
        with self._lock:
            effects = self._service.release(fh)
        if effects:
            with self._in_background():
                await self._perform(effects)

    @_door
    async def read(self, fh: int, off: int, size: int) -> bytes:
        with self._lock:
            plan = self._service.read(fh, off, size, time.time_ns())
            return self._windows.read(plan)

    @_door
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        size, stored = len(buf), stores()
        if kills():
            self._clear_setid(self._service.handles.file(fh).file.ino)
        with self._lock:
            # Planned and written in one go, so that no truncate frees the frames between.
            written = self._write_now(fh, off, buf, stored)
        if written == size:
            return written
        with self._in_background():
            made_room = await self._made_room()
        with self._lock:
            if made_room:
                written = self._write_now(fh, off, buf, stored)
            if stored and written < size:
                self._service.handles.file(fh).file.is_cached_only = True
        if written == 0 and size:
            raise FUSEError(errno.ENOSPC)
        return written

    def _write_now(self, fh: int, off: int, buf: bytes, stored: bool) -> int:
        plan: Plan = []
        try:
            plan = self._service.write(fh, off, len(buf), time.time_ns(), stored=stored)
        except Refused as refused:
            if refused.errno != errno.ENOSPC:
                raise
        return self._windows.write(plan, buf)

    @_door
    async def opendir(self, inode: int, ctx: Any) -> int:
        with self._lock:
            return self._service.opendir(inode, ctx.uid)

    @_door
    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        with self._lock:
            self._service.accessed(self._service.handles.directory(fh).directory, time.time_ns())
            for next_id, name, inode in self._service.entries(fh, start_id):
                if not pyfuse3.readdir_reply(token, name, _attributes(inode), next_id):
                    break
                if name not in (b".", b".."):  # the kernel never forgets those two
                    self._service.inodes.looked_up(inode)

    @_door
    async def releasedir(self, fh: int) -> None:
        with self._lock:
            effects = self._service.releasedir(fh)
        await self._perform(effects)

    # -- what pyfuse3 lacks (hook.Handlers)

    async def fallocate(self, ino: int, fh: int, mode: int, offset: int, length: int, killing: bool) -> None:
        now = time.time_ns()
        if killing:
            self._clear_setid(ino)
        effects, taken = await self._with_room(lambda: self._service.fallocate(ino, mode, offset, length, now))
        await self._perform(effects)
        if taken is not None:

            def finish(file: Regular) -> None:
                file.mtime_ns = file.ctime_ns = now

            with self._lock:
                uid = self._service.handles.file(fh).uid
            await self._invalidate(ino, uid, taken, Reason.PUNCH, finish)

    def place_write(self, fh: int, offset: int, size: int) -> tuple[int, int] | int | None:
        try:
            with self._lock:
                at = self._service.place_write(fh, offset, size, time.time_ns())
        except Refused as refused:
            log.debug("write: %s", refused)
            return refused.errno
        return None if at is None else (self._windows.pool_fd, at)

    async def lseek(self, ino: int, fh: int, offset: int, whence: int) -> int:
        """What mappings stored is data, also before the kernel writes it back: holes are answered after it did."""
        written_back_to = 0
        while True:
            with self._lock:
                seek = self._service.seek(ino, offset, whence)
            while not self._step(seek):
                await trio.lowlevel.checkpoint()
            with self._lock:
                hole = seek.doubtful_hole()
                if hole is None or hole[1] <= written_back_to:
                    return seek.answer()
                size = self._service.inodes.regular(ino).size
            if not await self._write_back(ino, max(hole[0], written_back_to), hole[1]):
                # What may be data is data, and a file always ends with a hole.
                return hole[0] if whence == os.SEEK_DATA else size
            written_back_to = hole[1]

    def _step(self, seek: Seek) -> bool:
        with self._lock:
            return seek.step(self._windows)

    async def _write_back(self, ino: int, start: int, end: int) -> bool:
        """What mappings stored in bytes [start, end) is written back. False, and it may not be, when there might be no
        room: it would leave the kernel's cache all the same, and be lost.
        """
        while start < end:
            with self._lock:
                room = self._service.pool.free_count // 2 * PAGE_SIZE
                is_cached_only = self._service.inodes.regular(ino).is_cached_only
            if is_cached_only or room * _WRITE_BACK_PARTS < end - start:
                return False
            stop = min(start + room, end)
            await trio.to_thread.run_sync(write_back, ino, start, stop - start, limiter=self._workers)
            start = stop
        return True

    async def ioctl(self, ino: int, fh: int, cmd: int, flags: int, data: bytes, out_size: int) -> bytes:
        with self._lock:
            if not isinstance(self._service.inodes.get(ino), Regular):
                raise Refused(errno.ENOTTY, f"inode {ino} takes no ioctl")
            if cmd == names.IOC_GET_SEALS:
                return int(self._service.inodes.regular(ino).seals).to_bytes(4, "little")
            if cmd != names.IOC_ADD_SEALS:
                raise Refused(errno.ENOTTY, f"ioctl {cmd:#x} does not exist")
        seals = Seal(int.from_bytes(data, "little"))
        effects = await self._without_the_closed(
            lambda: self._service.add_seals(ino, seals, time.time_ns(), own_handle=fh)
        )
        await self._perform(effects)
        self._forget_attributes(ino)  # the kernel does not know that an ioctl changes any
        return b""


def _attributes(inode: Inode) -> EntryAttributes:
    """An EntryAttributes begins with generation 0 and blocks of 4096 bytes; Linux asks for no time of birth."""
    attr = EntryAttributes()
    attr.st_ino = inode.ino
    attr.st_mode = inode.mode
    attr.st_nlink = inode.nlink
    attr.st_uid = inode.uid
    attr.st_gid = inode.gid
    attr.st_rdev = inode.rdev
    attr.st_size = inode.size
    attr.st_blocks = inode.block_count
    attr.st_atime_ns = inode.atime_ns
    attr.st_mtime_ns = inode.mtime_ns
    attr.st_ctime_ns = inode.ctime_ns
    attr.entry_timeout = _CACHE_S
    is_sealed = isinstance(inode, Regular) and inode.guest is not None
    attr.attr_timeout = 0.0 if is_sealed or _seems_empty(inode) else _CACHE_S
    return attr


def _seems_empty(inode: Inode) -> bool:
    """A size and no blocks, but the kernel may hold what a mapping stored. tar takes such a file for one hole."""
    return isinstance(inode, Regular) and inode.size > 0 and inode.mappable_writers > 0 and not inode.pages.page_count


def _is_chown(fields: Any) -> bool:
    """The kernel says no more about chown(2), which always clears setuid. With (-1, -1) it sets no field at all."""
    others = (fields.update_mode, fields.update_size, fields.update_atime, fields.update_mtime, fields.update_ctime)
    return fields.update_uid or fields.update_gid or not any(others)


def _file_info(file: Regular, handle: int, flags: int) -> FileInfo:
    """Sealed files bypass the page cache, so every access reaches us and MAP_SHARED is ENODEV.

    So do those who open a write-sealed file for writing: what they stored through a mapping, readers would see.
    """
    if file.guest is not None or (file.seals & (Seal.WRITE | Seal.FUTURE_WRITE) and flags & os.O_ACCMODE):
        return FileInfo(fh=handle, direct_io=True)
    return FileInfo(fh=handle, keep_cache=True)


def _creds(ctx: Any) -> Creds:
    return Creds(ctx.uid, ctx.gid)


def _random_bytes() -> bytes:
    return os.urandom(16)
