"""The pyfuse3 handlers: requests to use cases of the store, refusals to errnos.

Handlers run on one trio loop. A use case takes Service.lock for a moment; what it leaves to be done and waits (for a
VM's acknowledgement, a large punch, the kernel's cache) runs in a worker thread. lookup, getattr, getxattr and statfs
never wait on a VM.
"""

import contextlib
import errno
import functools
import itertools
import logging
import os
import struct
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import trio

from memfsd.common.linux import dirty_bytes
from memfsd.core.files.inodes import ROOT_INO, Changes
from memfsd.core.files.namespace import Creds
from memfsd.store.attributes import Attributes
from memfsd.store.files import Opened, SealedState
from memfsd.store.guest_memfds import AttributesRefused
from memfsd.store.invalidator import VmWork
from memfsd.store.seeking import Hole
from memfsd.store.store import Store
from memfsd.store.work import Work
from memfsd.uapi import names
from memfsd.uapi.abi import GmemFlag
from memfsd.uapi.errors import Refused
from memfsd.uapi.gmem_ioctls import CreateGuestMemfd, MemoryAttributes2
from memfsd.uapi.limits import NAME_MAX
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SIZE, Ino

from .closing import after_closing, until_closed
from .hook import IoctlReply, clears_setid, has_pending, is_by_handle, is_writeback, pyfuse3, write_back
from .waiters import Waiters

log = logging.getLogger("memfsd.fuse")

_CACHE_S = 3600.0
"""Names, and attributes of what only the kernel changes, may be cached; sealed files change behind its back."""
_WORKERS = 32
_MOVE_PAGES = struct.Struct(names.MOVE_PAGES_ENTRY)
_MAX_SEALED = 256
_WRITE_BACK_PARTS = 64
"""In which a range is written back at most when the pool has not room for all of it."""

EntryAttributes = pyfuse3.EntryAttributes
FileInfo = pyfuse3.FileInfo
FUSEError = pyfuse3.FUSEError

P = ParamSpec("P")
R = TypeVar("R")

Ways = Iterator[Callable[[], Awaitable[bool]]]
"""To make room in a full pool; True: another try may do better."""


async def _one_works(ways: Ways) -> bool:
    """Tries the rest of them until one works."""
    for way in ways:
        if await way():
            return True
    return False


async def _run(work: Work, limiter: trio.CapacityLimiter) -> None:
    if work.is_quick:
        work.run()
    else:
        await trio.to_thread.run_sync(work.run, limiter=limiter)


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
    """One handler for each request of the kernel. owner_uid: who mounted."""

    enable_writeback_cache = False

    def __init__(self, store: Store, owner_uid: int) -> None:
        super().__init__()
        self._names = store.names
        self._files = store.files
        self._reclaimer = store.reclaimer
        self._mover = store.mover
        self._guest_memfds = store.guest_memfds
        self._has_guest_memfds = store.service.options.abi.is_sized_at_creation
        self._making_room: dict[Callable[[], bool], trio.Event] = {}
        """What makes room just now, and when it is over."""
        self._workers = trio.CapacityLimiter(_WORKERS)
        self._enders = trio.CapacityLimiter(_WORKERS)
        """Of releases alone: a write waits for them in a full pool, and a worker, in the kernel, for a write."""
        self._waiters = Waiters(owner_uid)
        self._endings: set[trio.Event] = set()
        """Of handles and inodes whose frames are being freed: close(2) waits for none of them."""
        store.reclaimer.has_releases = self._is_closing
        self._background = 0
        """Requests under way that the kernel sends behind its callers' backs, and only some at a time."""
        self._sealed: dict[int, tuple[SealedState, EntryAttributes]] = {}
        """Sealed files that were looked at: what they showed, and that made for the kernel."""

    async def _finish(self, work: Work) -> None:
        """What waits for no VM."""
        await _run(work, self._workers)

    async def _finish_for(self, uid: int, work: Work) -> None:
        """Also what may wait for a VM, on behalf of the user uid. What does not queues with no such waiters."""
        if not isinstance(work, VmWork):
            await self._finish(work)
            return
        if not work.has_vm() and await trio.to_thread.run_sync(work.run_unpaired, limiter=self._workers):
            return
        async with self._waiters.turn(uid):
            await trio.to_thread.run_sync(work.run, limiter=trio.CapacityLimiter(1))

    @contextlib.contextmanager
    def _in_background(self) -> Iterator[None]:
        self._background += 1
        try:
            yield
        finally:
            self._background -= 1

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        over = trio.Event()
        self._endings.add(over)
        try:
            yield
        finally:
            self._endings.discard(over)
            over.set()

    async def _with_room(self, call: Callable[[], R]) -> R:
        """Run a use case that allocates; when the pool is full, once more when files that were closed have given their
        frames back, and once more after taking back untouched grants.

        PairedFile.get_pfn does the like for a VM: on the VM's own thread, and without a call around its first try.
        """
        ways: Ways | None = None
        while True:
            try:
                return call()
            except Refused as refused:
                ways = ways or self._ways_to_room()
                if refused.errno != errno.ENOSPC or not await _one_works(ways):
                    raise

    def _ways_to_room(self) -> Ways:
        return iter((self._released, self._made_room, self._ended, self._has_room))

    async def _has_room(self) -> bool:
        """What came free since the last try may be enough, and then nothing is under way any more."""
        return self._reclaimer.free_count() > 0

    async def _released(self) -> bool:
        """After what was ending when the pool was full; False: there was none."""
        endings = list(self._endings)
        for over in endings:
            await over.wait()
        return bool(endings)

    async def _without_the_closed(self, refusal: int, call: Callable[[], R]) -> R:
        """The call; refused with this errno for what is still open, not for what was closed and is still on its way."""
        return await after_closing(call, refusal, self._may_close)

    def _may_close(self) -> bool:
        """Requests are queued or under way that may be a RELEASE or a FORGET, or end in one."""
        return self._background > 0 or self._is_closing()

    def _is_closing(self) -> bool:
        """Requests are queued or under way that may be a RELEASE or a FORGET: none that waits for a VM."""
        return bool(self._endings) or has_pending()

    async def _new_entry(self, make: Callable[[], Attributes]) -> EntryAttributes:
        return _entry(await self._without_the_closed(errno.ENOSPC, make))

    async def _made_room(self) -> bool:
        return await self._for_all(self._reclaimer.may_help, self._reclaimer.reclaim)

    async def _ended(self) -> bool:
        """After VMs that have ended: who killed one has waited for its process, not for us."""
        return await self._for_all(self._reclaimer.has_endings, self._reclaimer.await_endings)

    async def _for_all(self, may_help: Callable[[], bool], make_room: Callable[[], bool]) -> bool:
        """All who find the pool full wait for the same: one thread, however many they are."""
        if make_room not in self._making_room:
            if not may_help():
                return False
            over = self._making_room[make_room] = trio.Event()
            try:
                return await trio.to_thread.run_sync(make_room, limiter=trio.CapacityLimiter(1))
            finally:
                del self._making_room[make_room]
                over.set()
        await self._making_room[make_room].wait()
        return True

    # -- names

    @_door
    async def lookup(self, parent: int, name: bytes, ctx: Any) -> EntryAttributes:
        return _entry(self._names.lookup(parent, name))

    @_door
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        with self._ending():
            for ino, count in inode_list:
                await _run(self._names.forget(ino, count), self._enders)

    @_door
    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, ctx: Any) -> EntryAttributes:
        return await self._new_entry(lambda: self._names.mknod(parent, name, mode, rdev, _creds(ctx)))

    @_door
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> EntryAttributes:
        return await self._new_entry(lambda: self._names.mkdir(parent, name, mode, _creds(ctx)))

    @_door
    async def symlink(self, parent: int, name: bytes, target: bytes, ctx: Any) -> EntryAttributes:
        return await self._new_entry(lambda: self._names.symlink(parent, name, target, _creds(ctx)))

    @_door
    async def link(self, inode: int, new_parent: int, new_name: bytes, ctx: Any) -> EntryAttributes:
        return await self._new_entry(lambda: self._names.link(inode, new_parent, new_name, ctx.uid))

    @_door
    async def unlink(self, parent: int, name: bytes, ctx: Any) -> None:
        await self._finish(self._names.unlink(parent, name))

    @_door
    async def rmdir(self, parent: int, name: bytes, ctx: Any) -> None:
        await self._finish(self._names.rmdir(parent, name))

    @_door
    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: Any) -> None:
        await self._finish(self._names.rename(parent, name, new_parent, new_name, flags, _creds(ctx)))

    @_door
    async def readlink(self, inode: int, ctx: Any) -> bytes:
        return self._names.readlink(inode)

    # -- attributes

    async def getattr(self, inode: int, ctx: Any = None) -> EntryAttributes:
        # Not wrapped by @_door: every stat(2) of a sealed file would pay for a second coroutine.
        try:
            made = self._sealed.get(inode)
            if made is not None and made[0] == self._files.sealed_state(inode):
                return made[1]
            shown = self._files.getattr(inode)
            if shown.is_memfd and is_by_handle():
                raise Refused(errno.EINVAL, f"inode {inode} is a guest_memfd, which has no read(2): map it")
            if shown.is_sealed:
                return self._sealed_entry(inode)
            if not shown.seems_empty:
                return _entry(shown)
            is_known = await self._write_back(inode, 0, shown.size)
            shown = self._files.getattr(inode)
            entry = _entry(shown)
            if not is_known and shown.seems_empty:
                entry.st_blocks = PAGE_SIZE // 512  # who copies it looks for data, and `lseek` says "perhaps"
            return entry
        except Exception as error:
            raise _fuse_error("getattr", error) from None

    def _sealed_entry(self, inode: int) -> EntryAttributes:
        """The kernel asks for these at each stat(2), and making them again takes longer than all else here."""
        state = self._files.sealed_state(inode)
        entry = _entry(self._files.getattr(inode))  # it shows what has changed since, and is then made again
        if state is not None:
            if len(self._sealed) >= _MAX_SEALED:
                self._sealed.clear()
            self._sealed[inode] = state, entry
        return entry

    @_door
    async def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> EntryAttributes:
        if clears_setid():
            self._clear_setid(inode)
        elif _is_chown(fields):
            self._clear_setid_by_chown(inode, fields, ctx)
        if fields.update_size:
            await self._finish_for(ctx.uid, self._files.truncate(inode, attr.st_size, opened=fh is not None))
        changes = Changes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        )
        return _entry(self._files.setattr(inode, changes, ctx.uid, resized=fields.update_size))

    def _clear_setid_by_chown(self, inode: int, fields: Any, ctx: Any) -> None:
        def in_group(gid: int) -> bool:
            return gid == ctx.gid or gid in pyfuse3.get_sup_groups(ctx.pid)

        changes = fields.update_uid or fields.update_gid
        self._files.clear_setid_by_chown(inode, ctx.uid, in_group, changes=changes)

    def _clear_setid(self, inode: int) -> None:
        if self._files.clear_setid(inode):
            # Before our answer, so that nobody executes what changed with the old mode.
            self._forget_attributes(inode)

    @staticmethod
    def _forget_attributes(inode: int) -> None:
        """The kernel asks again. Waits for no lock, and so may run on the loop."""
        with contextlib.suppress(OSError):
            pyfuse3.invalidate_inode(inode, attr_only=True)

    @_door
    async def statfs(self, ctx: Any) -> Any:
        await until_closed(self._is_closing)
        data, space = pyfuse3.StatvfsData(), self._files.space()
        data.f_bsize = data.f_frsize = PAGE_SIZE
        data.f_blocks = space.frame_count
        data.f_bfree = data.f_bavail = space.free_frames
        data.f_files = space.inode_count
        data.f_ffree = data.f_favail = space.free_inodes
        data.f_namemax = NAME_MAX
        return data

    @_door
    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        if inode == ROOT_INO:
            await until_closed(self._is_closing)  # as statfs: there are the pool's counts
        return self._files.getxattr(inode, name)

    @_door
    async def listxattr(self, inode: int, ctx: Any) -> Sequence[bytes]:
        listed = self._files.listxattr(inode)
        # The kernel keeps others from reading and setting these, but leaves the list to us.
        return listed if ctx.uid == 0 else [name for name in listed if not name.startswith(b"trusted.")]

    @_door
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:
        value = bytes(value)
        await self._finish(
            await self._without_the_closed(errno.EBUSY, lambda: self._files.setxattr(inode, name, value))
        )

    @_door
    async def removexattr(self, inode: int, name: bytes, ctx: Any) -> None:
        self._files.removexattr(inode, name)

    # -- open files

    @_door
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[FileInfo, EntryAttributes]:
        opened, shown = await self._without_the_closed(
            errno.ENOSPC, lambda: self._files.create(parent, name, mode, flags, _creds(ctx))
        )
        return _file_info(opened, flags), _entry(shown)

    @_door
    async def open(self, inode: int, flags: int, ctx: Any) -> FileInfo:
        if clears_setid():
            self._clear_setid(inode)
        opened, work = self._files.open(inode, flags, ctx.uid)
        await self._finish(work)
        if opened.seems_empty:
            self._forget_attributes(inode)  # from here on it is for us to say how many blocks it has
        return _file_info(opened, flags)

    @_door
    async def release(self, fh: int) -> None:
        with self._in_background(), self._ending():
            await _run(self._files.release(fh), self._enders)

    @_door
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._with_room(lambda: self._files.read(fh, off, size))

    @_door
    async def fsync(self, fh: int, datasync: bool) -> None:
        if not self._has_guest_memfds:
            raise FUSEError(errno.ENOSYS)  # the kernel does not ask again
        self._files.check_fsync(fh)

    @_door
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        size, stored = len(buf), is_writeback()
        if clears_setid():
            self._clear_setid(self._files.opener(fh)[0])
        written = self._files.write(fh, off, buf, stored=stored)
        if written == size:
            return written
        with self._in_background():
            ways = self._ways_to_room()
            while written < size and await _one_works(ways):
                written = self._files.write(fh, off, buf, stored=stored)
        if stored and written < size:
            self._files.keep_cached(fh)
        if written == 0 and size:
            raise FUSEError(errno.ENOSPC)
        return written

    @_door
    async def opendir(self, inode: int, ctx: Any) -> int:
        return self._names.opendir(inode, ctx.uid)

    @_door
    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        def reply(name: bytes, shown: Attributes, next_id: int) -> bool:
            return bool(pyfuse3.readdir_reply(token, name, _entry(shown), next_id))

        self._names.readdir(fh, start_id, reply)

    @_door
    async def releasedir(self, fh: int) -> None:
        await self._finish(self._names.releasedir(fh))

    # -- what pyfuse3 lacks (hook.Handlers)

    async def fallocate(self, ino: int, fh: int, mode: int, offset: int, length: int, killing: bool) -> None:
        if killing:
            self._clear_setid(ino)
        _, uid = self._files.opener(fh)
        ways: Ways = itertools.chain((self._has_room,), self._ways_to_room())
        while True:
            try:
                await self._finish_for(uid, self._files.fallocate(ino, mode, offset, length))
                return
            except Refused as refused:
                if refused.errno != errno.ENOSPC or not await _one_works(ways):
                    raise self._files.out_of_room(ino, refused) from None

    def write_in_place(self, fh: int, offset: int, data: memoryview) -> int | None:
        try:
            done = self._files.write_in_place(fh, offset, data)
        except Refused as refused:
            log.debug("write: %s", refused)
            return -refused.errno
        if done is not None and done < 0 and log.isEnabledFor(logging.DEBUG):
            return None  # `write` refuses it, too, and logs why
        return done

    async def lseek(self, ino: int, fh: int, offset: int, whence: int) -> int:
        """What mappings stored is data, also before the kernel writes it back: holes are answered after it did."""
        written_back_to = 0
        while True:
            seeking = self._files.seek(ino, offset, whence)
            while not seeking.step():
                await trio.lowlevel.checkpoint()
            found = seeking.answer(written_back_to)
            if not isinstance(found, Hole):
                return found
            if not await self._write_back(ino, max(found.start, written_back_to), found.end):
                return found.answer
            written_back_to = found.end

    async def _write_back(self, ino: int, start: int, end: int) -> bool:
        """What mappings stored in bytes [start, end) is written back. False, and it may not be, when there might be no
        room: it would leave the kernel's cache all the same, and be lost.
        """
        while start < end:
            room = self._files.room_to_write_back(ino)
            if room >= end - start or room > dirty_bytes():
                stop = end
            elif room * _WRITE_BACK_PARTS < end - start:
                return False
            else:
                stop = min(start + room, end)
            await trio.to_thread.run_sync(write_back, ino, start, stop - start, limiter=self._workers)
            start = stop
        return True

    async def ioctl(self, ino: int, fh: int, cmd: int, flags: int, data: bytes, out_size: int) -> IoctlReply:
        seals = self._files.seals(ino)
        if seals is None:
            raise Refused(errno.ENOTTY, f"inode {ino} takes no ioctl: they are for regular files")
        if cmd == names.IOC_GET_SEALS:
            return IoctlReply(int(seals).to_bytes(4, "little"))
        if cmd == names.IOC_MOVE_PAGES:
            return IoctlReply(await self._move_pages(ino, fh, data))
        if cmd == names.IOC_CREATE_GUEST_MEMFD:
            return await self._create_guest_memfd(ino, fh, CreateGuestMemfd.unpack(data))
        if cmd == names.IOC_SET_MEMORY_ATTRIBUTES2:
            return await self._set_attributes(ino, fh, MemoryAttributes2.unpack(data))
        if cmd != names.IOC_ADD_SEALS:
            raise Refused(errno.ENOTTY, f"ioctl {cmd:#x} does not exist: see memfsd.uapi.names")
        new = Seal(int.from_bytes(data, "little"))
        await self._finish(
            await self._without_the_closed(errno.EBUSY, lambda: self._files.add_seals(ino, new, own_handle=fh))
        )
        self._forget_attributes(ino)  # the kernel does not know that an ioctl changes any
        return IoctlReply()

    async def _create_guest_memfd(self, ino: int, fh: int, asked: CreateGuestMemfd) -> IoctlReply:
        await self._without_the_closed(errno.EBUSY, lambda: self._guest_memfds.create(ino, fh, asked))
        self._forget_attributes(ino)
        return IoctlReply()

    async def _set_attributes(self, ino: int, fh: int, asked: MemoryAttributes2) -> IoctlReply:
        async with self._waiters.turn(self._files.writer(fh)):
            try:
                await trio.to_thread.run_sync(
                    self._guest_memfds.set_attributes, ino, asked, limiter=trio.CapacityLimiter(1)
                )
            except AttributesRefused as refused:
                log.debug("ioctl: %s", refused)
                return IoctlReply(asked._replace(error_offset=refused.error_offset).pack(), refused.errno)
        return IoctlReply(asked.pack())

    async def _move_pages(self, ino: int, fh: int, data: bytes) -> bytes:
        entries = [(page, node) for page, node, _ in _MOVE_PAGES.iter_unpack(data)]
        used = [(page, node) for page, node in entries if page != names.NO_PAGE]
        pages, nodes = [page for page, _ in used], [node for _, node in used]
        if all(node == names.ANY_NODE for node in nodes):
            found = self._mover.where(Ino(ino), pages)
        else:
            async with self._waiters.turn(self._files.writer(fh)):
                found = await trio.to_thread.run_sync(
                    self._mover.move, Ino(ino), pages, nodes, limiter=trio.CapacityLimiter(1)
                )
        statuses = iter(found)
        return b"".join(
            _MOVE_PAGES.pack(page, node, 0 if page == names.NO_PAGE else next(statuses)) for page, node in entries
        )


def _entry(shown: Attributes) -> EntryAttributes:
    """An EntryAttributes begins with generation 0 and blocks of 4096 bytes; Linux asks for no time of birth."""
    attr = EntryAttributes()
    attr.st_ino = shown.ino
    attr.st_mode = shown.mode
    attr.st_nlink = shown.nlink
    attr.st_uid = shown.uid
    attr.st_gid = shown.gid
    attr.st_rdev = shown.rdev
    attr.st_size = shown.size
    attr.st_blocks = shown.block_count
    attr.st_atime_ns = shown.atime_ns
    attr.st_mtime_ns = shown.mtime_ns
    attr.st_ctime_ns = shown.ctime_ns
    attr.entry_timeout = _CACHE_S
    attr.attr_timeout = 0.0 if shown.is_sealed or shown.seems_empty else _CACHE_S
    return attr


def _is_chown(fields: Any) -> bool:
    """The kernel says no more about chown(2), which always clears setuid. With (-1, -1) it sets no field at all."""
    others = (fields.update_mode, fields.update_size, fields.update_atime, fields.update_mtime, fields.update_ctime)
    return fields.update_uid or fields.update_gid or not any(others)


def _file_info(opened: Opened, flags: int) -> FileInfo:
    """Sealed files bypass the page cache, so every access reaches us and MAP_SHARED is ENODEV.

    So do those who open a write-sealed file for writing: what they stored through a mapping, readers would see. A
    guest_memfd has neither read(2) nor a position; one that can be mapped has its shared pages in the page cache.
    """
    if opened.memfd is not None:
        is_mappable = GmemFlag.MMAP in opened.memfd
        return FileInfo(fh=opened.handle, direct_io=not is_mappable, keep_cache=is_mappable, nonseekable=True)
    bypassing = Seal.GUEST | (Seal.WRITE | Seal.FUTURE_WRITE if flags & os.O_ACCMODE else Seal(0))
    if opened.seals & bypassing:
        return FileInfo(fh=opened.handle, direct_io=True)
    return FileInfo(fh=opened.handle, keep_cache=True)


def _creds(ctx: Any) -> Creds:
    return Creds(ctx.uid, ctx.gid)
