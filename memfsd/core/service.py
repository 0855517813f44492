"""The file system as one object: what the use cases in memfsd.store call, and nobody else.

Every method is one request, runs to completion, and either changes everything it says or raises Refused and
changes nothing. Methods that need work outside return effects, to be done in order.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from memfsd.common import sync, trace
from memfsd.uapi import names
from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.proof import ID_BYTES, Token, ino_of, key_of, make_token
from memfsd.uapi.seals import Seal, parse_seals
from memfsd.uapi.units import PAGE_SHIFT, Ino, PgoffRange

from .effects import Cut, Discard, Effect, Fill, ForgetCache, Quarantine, ReturnSlots, Scrub
from .files.handles import HandleTable, handle_shares, listed_shares
from .files.inodes import Changes, Directory, Inode, InodeTable, Regular, Symlink
from .files.namespace import Creds, Namespace
from .files.ordinary import IoVec, OrdinaryData
from .files.seeking import Seek
from .files.shares import ROOT_UID
from .files.xattrs import Xattrs
from .gmem import GuestMemory
from .host_access import HostAccess
from .memory.frames import FramePool
from .memory.swap_slots import SwapSlots
from .options import Atime, StoreOptions
from .sealing import check_abi, check_add

_I = TypeVar("_I", bound=Inode)
NAMELESS = b"/"
_DAY_NS = 86_400 * 10**9


class Service:
    """Guarded by `lock`: hold it around every call and every use of what a call returned."""

    def __init__(
        self, options: StoreOptions, *, root_mode: int, creds: Creds, now_ns: int, socket_path: str, swap_slots: int = 0
    ) -> None:
        self.lock = sync.lock("Service.lock")
        self.options = options
        self.pool = FramePool(options.pool_bytes >> PAGE_SHIFT, options.nodes, options.distances)
        self.slots = SwapSlots(swap_slots)
        self.inodes = InodeTable(options.inode_count, creds.uid)
        self.names = Namespace(self.inodes, root_mode, creds, now_ns)
        self.handles = HandleTable(handle_shares(creds.uid), listed_shares(creds.uid))
        self.data = OrdinaryData(self.pool)
        self.gmem = GuestMemory(self.pool, self.slots, self.inodes, self.data, options)
        self.host = HostAccess(self.pool)
        self.xattrs = Xattrs(self.pool, self.slots, self.inodes, socket_path, options.abi)

    # -- names

    def lookup(self, parent: int, name: bytes) -> Inode:
        inode = self.names.lookup(parent, name)
        self.inodes.looked_up(inode)
        return inode

    def forget(self, ino: int, count: int) -> list[Effect]:
        inode = self.inodes.find(ino)
        if inode is None:
            return []
        self.inodes.forgotten(inode, count)
        return self._reap(inode)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, creds: Creds, now_ns: int) -> Inode:
        return self._born(self.names.create(parent, name, mode, creds, now_ns, rdev))

    def _born(self, inode: _I) -> _I:
        if self.options.born_guest and isinstance(inode, Regular):
            self.gmem.seal(inode)
        self.inodes.looked_up(inode)
        return inode

    def create(self, parent: int, name: bytes, mode: int, flags: int, creds: Creds, now_ns: int) -> tuple[Regular, int]:
        """open(O_CREAT) of a new file: the inode and a handle. On `-o guest` the open rules hold at birth.

        The name NAMELESS means open(O_TMPFILE) in that directory.
        """
        readable, _ = _access(flags)
        if self.options.born_guest and readable and not self.options.open_rw:
            raise Refused(errno.EPERM, "files here are born sealed: create them write-only")
        self.handles.check_room(creds.uid)
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        if name == NAMELESS:
            inode: Inode = self._born(self.names.create_nameless(parent, mode, creds, now_ns))
        else:
            inode = self.mknod(parent, name, mode, 0, creds, now_ns)
        assert isinstance(inode, Regular)
        return inode, self._open(inode, flags, creds.uid)

    def mkdir(self, parent: int, name: bytes, mode: int, creds: Creds, now_ns: int) -> Inode:
        inode = self.names.mkdir(parent, name, mode, creds, now_ns)
        self.inodes.looked_up(inode)
        return inode

    def symlink(self, parent: int, name: bytes, target: bytes, creds: Creds, now_ns: int) -> Inode:
        inode = self.names.symlink(parent, name, target, creds, now_ns)
        self.inodes.looked_up(inode)
        return inode

    def link(self, ino: int, parent: int, name: bytes, now_ns: int, *, uid: int = ROOT_UID) -> Inode:
        """EPERM for who neither owns the file nor is root: its owner pays for each name of it."""
        owner = self.inodes.get(ino).uid
        if uid not in (ROOT_UID, owner):
            raise Refused(
                errno.EPERM, f"inode {ino} is of uid {owner}, who is charged for its names: link(2) is for the owner"
            )
        inode = self.names.link(ino, parent, name, now_ns)
        self.inodes.looked_up(inode)
        return inode

    def unlink(self, parent: int, name: bytes, now_ns: int) -> list[Effect]:
        return self._reap(self.names.unlink(parent, name, now_ns))

    def rmdir(self, parent: int, name: bytes, now_ns: int) -> list[Effect]:
        return self._reap(self.names.rmdir(parent, name, now_ns))

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, now_ns: int, creds: Creds
    ) -> list[Effect]:
        replaced = self.names.rename(parent, name, new_parent, new_name, flags, now_ns, creds)
        return [] if replaced is None else self._reap(replaced)

    def readlink(self, ino: int) -> bytes:
        inode = self.inodes.get(ino)
        if not isinstance(inode, Symlink):
            raise Refused(errno.EINVAL, f"inode {ino} is not a symbolic link")
        return inode.target

    def _reap(self, inode: Inode) -> list[Effect]:
        """Give back what nobody holds any more."""
        effects: list[Effect] = []
        if not inode.pinned and isinstance(inode, Regular):
            effects = self.data.drop_all(inode) if inode.guest is None else self.gmem.drop_all(inode)
        self.inodes.drop_if_unused(inode)
        return effects

    # -- attributes

    def setattr(self, ino: int, changes: Changes, now_ns: int) -> Inode:
        inode = self.inodes.get(ino)
        if isinstance(inode, Regular) and inode.guest is not None and inode.guest.memfd is not None:
            raise Refused(errno.EINVAL, f"inode {ino} is a guest_memfd: its mode, owner and times cannot be set")
        if changes.mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(changes.mode)
        if changes.uid is not None:
            self.inodes.chown(inode, changes.uid)
        inode.gid = inode.gid if changes.gid is None else changes.gid
        inode.atime_ns = inode.atime_ns if changes.atime_ns is None else changes.atime_ns
        inode.mtime_ns = inode.mtime_ns if changes.mtime_ns is None else changes.mtime_ns
        inode.ctime_ns = now_ns if changes.ctime_ns is None else changes.ctime_ns
        return inode

    def clear_setid(self, ino: int, *, keeps_lock: bool = True) -> bool:
        """A write, a truncate and a chown take setuid away, and setgid if the group may execute. True: some was.

        Setgid without that means mandatory locking: only root and members of the group keep it (`keeps_lock`).
        """
        inode = self.inodes.get(ino)
        cleared = stat.S_ISUID | (stat.S_ISGID if inode.mode & stat.S_IXGRP or not keeps_lock else 0)
        changed = not isinstance(inode, Directory) and inode.mode & cleared != 0
        if changed:
            inode.mode &= ~cleared
        return changed

    def clear_setid_by_chown(self, ino: int, uid: int, in_group: Callable[[int], bool], *, changes: bool) -> bool:
        """As `clear_setid`, for chown(2) by a user.

        Who is not the owner and changes none is left alone: that may be chown(2), EPERM on tmpfs, but as well what the
        kernel asks before a write, and then the write says what to clear.
        """
        inode = self.inodes.get(ino)
        mode = inode.mode
        if not changes and uid not in (0, inode.uid):
            return False
        keeps_lock = uid == 0 or not mode & stat.S_ISGID or in_group(inode.gid)
        return self.clear_setid(ino, keeps_lock=keeps_lock)

    def resize(
        self, ino: int, size: int, now_ns: int, *, opened: bool = True
    ) -> tuple[list[Effect], PgoffRange | None]:
        """ftruncate(2), or truncate(2) when not `opened`: that leaves the times if it changes nothing, as on tmpfs.

        For a sealed file that shrinks: the range to take back first, then `set_size`.
        """
        file = self.inodes.regular(ino)
        effects: list[Effect] = []
        if file.guest is not None:
            taken = self.gmem.check_resize(file, size)
            if taken is not None:
                return effects, taken
            self.gmem.set_size(file, size)
        else:
            unchanged = size == file.size and not file.pages.page_count and not opened
            effects = self.data.resize(file, size)
            if unchanged:
                return effects, None
        file.mtime_ns = file.ctime_ns = now_ns
        return effects, None

    # -- open files

    def open(self, ino: int, flags: int, uid: int, now_ns: int) -> tuple[Regular, int, list[Effect]]:
        """EPERM for reading a sealed file (open=strict); O_TRUNC truncates, with all its refusals."""
        file = self.inodes.regular(ino)
        readable, _ = _access(flags)
        if file.guest is not None and file.guest.memfd is not None:
            if flags & os.O_TRUNC:
                raise Refused(errno.EINVAL, f"inode {ino} is a guest_memfd: its size is fixed")
        elif file.guest is not None and readable and not self.options.open_rw:
            raise Refused(errno.EPERM, f"inode {ino} is guest private memory: open it write-only")
        self.handles.check_room(uid)
        effects: list[Effect] = []
        # Also of a handle that only reads: the kernel has asked for the right to write.
        if flags & os.O_TRUNC and (file.size or file.guest is None):
            if file.guest is not None:
                raise Refused(errno.EPERM, f"inode {ino} is guest private memory: O_TRUNC cannot empty it")
            effects, _ = self.resize(ino, 0, now_ns)
        return file, self._open(file, flags, uid), effects

    def _open(self, file: Regular, flags: int, uid: int) -> int:
        readable, writable = _access(flags)
        noatime = flags & os.O_NOATIME != 0
        return self.handles.open_file(file, uid, readable=readable, writable=writable, noatime=noatime)

    def release(self, handle: int) -> list[Effect]:
        return self._reap(self.handles.release_file(handle))

    def opendir(self, ino: int, uid: int) -> int:
        return self.handles.open_directory(self.inodes.directory(ino), uid)

    def listing(self, handle: int) -> list[bytes]:
        """All names of the directory as it is now, "." and ".." first: for `keep_listing`."""
        return [b".", b"..", *self.handles.directory(handle).directory.entries]

    def keep_listing(self, handle: int, names: list[bytes], size_bytes: int) -> None:
        """What `entries` shows from now on. size_bytes: of all names. ENOMEM when this user keeps too many."""
        self.handles.list_names(self.handles.directory(handle), names, size_bytes)

    def entries(self, handle: int, offset: int) -> Iterator[tuple[int, bytes, Inode]]:
        """Directory entries from an offset in what is kept: (next offset, name, inode)."""
        opened = self.handles.directory(handle)
        directory = opened.directory
        dots = {b".": directory, b"..": self.inodes.find(directory.parent) or directory}
        for index in range(offset, len(opened.names)):
            name = opened.names[index]
            inode = dots.get(name) or directory.entries.get(name)
            if inode is not None:
                yield index + 1, name, inode

    def releasedir(self, handle: int) -> list[Effect]:
        return self._reap(self.handles.release_directory(handle))

    def read(self, handle: int, offset: int, size: int, now_ns: int) -> IoVec:
        """EPERM on a sealed file, whoever asks."""
        opened = self.handles.file(handle)
        file = opened.file
        if file.guest is not None and file.guest.memfd is not None:
            return self.host.read(file, file.guest, offset, size)
        if file.guest is not None:
            raise Refused(errno.EPERM, f"inode {file.ino} is guest private memory: only its VM may access it")
        if not opened.noatime:
            self.accessed(file, now_ns)
        return self.data.read(file, offset, size)

    def accessed(self, inode: Inode, now_ns: int) -> None:
        """It was read: what mount(8) says of noatime, relatime, strictatime and nodiratime."""
        rule = self.options.atime
        if rule is Atime.NEVER or (isinstance(inode, Directory) and not self.options.diratime):
            return
        if (
            rule is Atime.ALWAYS
            or inode.atime_ns <= max(inode.mtime_ns, inode.ctime_ns)
            or now_ns - inode.atime_ns > _DAY_NS
        ):
            inode.atime_ns = now_ns

    def place_write(self, handle: int, offset: int, size: int, now_ns: int) -> int | None:
        """The plan of a write that is one run in a file without seals, as most are. None: ask `write`.

        Below 0 it is refused: -EPERM on a sealed file, whoever asks. An exception takes longer than all else here.
        """
        file = self.handles.file(handle).file
        if (guest := file.guest) is not None:
            return None if guest.memfd is not None else -errno.EPERM
        if file.seals:
            return None
        at = self.data.place(file, offset, size)
        if at is not None:
            file.mtime_ns = file.ctime_ns = now_ns
        return at

    def write(self, handle: int, offset: int, size: int, now_ns: int, *, stored: bool = False) -> IoVec:
        """Where the bytes go; the plan may be shorter than asked when the pool gets full.

        stored: through a mapping, which a later F_SEAL_FUTURE_WRITE leaves alone.
        """
        file = self.handles.file(handle).file
        if file.guest is not None and file.guest.memfd is not None:
            if not stored:
                raise Refused(errno.EINVAL, f"inode {file.ino} is a guest_memfd, which has no write(2): map it")
            stored_in = self.host.write(file, file.guest, offset, size)
            file.mtime_ns = file.ctime_ns = now_ns
            return stored_in
        if file.guest is not None:
            raise Refused(errno.EPERM, f"inode {file.ino} is guest private memory: only its VM may access it")
        plan = self.data.write(file, offset, size, stored=stored)
        file.mtime_ns = file.ctime_ns = now_ns
        return plan

    def fallocate(
        self, ino: int, mode: int, offset: int, length: int, now_ns: int
    ) -> tuple[list[Effect], PgoffRange | None]:
        """fallocate(2). For a punch in a sealed file: the range to take back."""
        file = self.inodes.regular(ino)
        if file.guest is not None:
            filled, taken = self.gmem.fallocate(file, mode, offset, length)
            if taken is None:
                file.ctime_ns = now_ns
                if file.guest.memfd is not None:
                    file.mtime_ns = now_ns
            return list(filled), taken
        effects = self.data.fallocate(file, mode, offset, length)
        file.mtime_ns = file.ctime_ns = now_ns
        return effects, None

    def seek(self, ino: int, offset: int, whence: int) -> Seek:
        """SEEK_DATA and SEEK_HOLE in bytes, as lseek(2): ENXIO past the end or past the last data."""
        return Seek(self.inodes.regular(ino), offset, whence)

    # -- seals and attributes

    def add_seals(
        self, ino: int, seals: Seal, now_ns: int, *, truncate: bool = False, own_handle: int | None = None
    ) -> list[Effect]:
        """Add seals (xattr, ioctl and creation flag all end here)."""
        file = self.inodes.regular(ino)
        if own_handle is not None and not self.handles.file(own_handle).writable:
            raise Refused(errno.EPERM, "seals need a writable handle: open the file for writing")
        check_abi(file, seals, self.options.abi)
        if seals & ~file.seals & (Seal.WRITE | Seal.FUTURE_WRITE | Seal.SHRINK) and self.data.is_cutting(file):
            raise Refused(errno.EBUSY, f"inode {file.ino} is being truncated or punched: try again")
        drop = check_add(file, seals, truncate=truncate or self.options.truncate_nonempty)
        effects: list[Effect] = self.data.drop_all(file) if drop else []
        if seals & ~file.seals & (Seal.GUEST | Seal.WRITE):
            # Pages that someone pinned through a mapping that is gone leave the cache: no reader sees them change.
            effects.append(ForgetCache(file.ino))
        if Seal.GUEST in seals and file.guest is None:
            self.gmem.seal(file)
        file.seals |= seals
        file.ctime_ns = now_ns
        return effects

    def create_guest_memfd(self, ino: int, handle: int, size: int, flags: int, now_ns: int) -> None:
        """The new, empty file becomes a guest_memfd. Its window must be there by then. EPERM for a handle that only
        reads, and as GuestMemory.check_guest_memfd."""
        file = self.inodes.regular(ino)
        self.check_guest_memfd(ino, handle, size, flags)
        self.gmem.make_guest_memfd(file, size, flags)
        file.mtime_ns = file.ctime_ns = now_ns

    def check_guest_memfd(self, ino: int, handle: int, size: int, flags: int) -> None:
        if not self.handles.file(handle).writable:
            raise Refused(errno.EPERM, "a guest_memfd is made through a writable handle: open the file for writing")
        self.gmem.check_guest_memfd(self.inodes.regular(ino), size, flags)

    def getxattr(self, ino: int, name: bytes, random_bytes: Callable[[], bytes], populated: int | None = None) -> bytes:
        """random_bytes makes 16 of them, for a pairing token."""
        inode = self.inodes.get(ino)
        if name == names.XATTR_TOKEN and isinstance(inode, Regular) and inode.guest is not None:
            guest = inode.guest
            guest.secret = guest.secret or random_bytes()
            return b"".join(make_token(guest.secret, inode.ino, random_bytes()))
        return self.xattrs.get(inode, name, populated)

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int, now_ns: int) -> list[Effect]:
        inode = self.inodes.get(ino)
        effects: list[Effect] = []
        if name == names.XATTR_SEALS:
            try:
                seals, truncate = parse_seals(value.decode("ascii", "replace"))
            except ValueError as error:
                raise Refused(errno.EINVAL, str(error)) from None
            effects = self.add_seals(ino, seals, now_ns, truncate=truncate)
        elif name.startswith(names.XATTR_PREFIX):
            self.xattrs.set_own(inode, name, value)
        else:
            self.xattrs.set(inode, name, value, flags)
        inode.ctime_ns = now_ns
        return effects

    def removexattr(self, ino: int, name: bytes, now_ns: int) -> None:
        inode = self.inodes.get(ino)
        self.xattrs.remove(inode, name)
        inode.ctime_ns = now_ns

    def counts(self) -> dict[str, int]:
        """What is held now, to see leaks: each goes back when its users are gone. And large pages split, and merged."""
        return {
            "inodes": len(self.inodes),
            "handles": len(self.handles),
            "lookups": self.inodes.lookup_count,
            "splits": self.pool.split_count,
            "merges": self.pool.merge_count,
            "punched": sum(file.guest.punched_count for file in self.inodes.sealed_files() if file.guest),
        }

    # -- after the effects

    def discard(self, effect: Discard) -> list[Scrub]:
        """The next part of the pages that a file has lost; [] when there are no more."""
        return self.data.discard(effect)

    def quarantine(self, effect: Quarantine) -> bool:
        """Some more of the pages that a file has lost; False when there are no more."""
        return self.gmem.quarantine(effect)

    def fill(self, effect: Fill) -> Sequence[Effect]:
        """Some more of a file's holes. Then: the effect itself, while there are more."""
        return self.data.fill(effect)

    def cut(self, effect: Cut) -> list[Scrub] | None:
        """The next part of the pages that an ordinary file is to lose; None when it has."""
        return self.data.cut(effect)

    def return_slots(self, effect: ReturnSlots) -> bool:
        """Some more slots of the swap file; False when there are no more."""
        return self.gmem.return_slots(effect)

    def scrubbed(self, effect: Scrub) -> None:
        """The frames are zero in their window: now, and only now, they are free (R6, R8), or out of service."""
        if effect.into is not FrameState.FREE:
            for pfn, count in effect.runs:
                self.pool.set_state(pfn, count, effect.into)
            return
        if trace.store is not None:
            trace.store.frames_freed(effect.window, effect.runs)
        for pfn, count in effect.runs:
            self.pool.free(pfn, count)
        if trace.store is not None:
            trace.store.frames_counted(self.pool.by_state)

    def leaked(self, effect: Scrub) -> None:
        """What the frames hold could not be erased: nobody gets them any more."""
        for pfn, count in effect.runs:
            self.pool.set_state(pfn, count, FrameState.LEAKED)
        file = None if effect.window is None else self.inodes.find(effect.window)
        if isinstance(file, Regular) and file.guest is not None:
            file.guest.leaked_count += effect.frame_count

    def file_by_token(self, token_id: bytes) -> tuple[Regular, Token]:
        """The file that a token's id names, and the token. EACCES when no file can have made it."""
        file = self.inodes.find(Ino(ino_of(token_id))) if len(token_id) == ID_BYTES else None
        if not isinstance(file, Regular) or file.guest is None or not file.guest.secret:
            raise Refused(
                errno.EACCES, "this is the token of no file: read user.memfsd.token through an fd of the file"
            )
        return file, Token(token_id, key_of(file.guest.secret, token_id))

    def release_guest(self, ino: Ino) -> list[Effect]:
        """The VM of a sealed file is gone; the file itself may go with it."""
        file = self.inodes.regular(ino)
        effects = self.gmem.release(file)
        return [*effects, *self._reap(file)]


def _access(flags: int) -> tuple[bool, bool]:
    mode = flags & os.O_ACCMODE
    return mode in (os.O_RDONLY, os.O_RDWR), mode in (os.O_WRONLY, os.O_RDWR)
