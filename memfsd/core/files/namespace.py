"""Directories, names and links, with the errnos of tmpfs. Permissions are the kernel's (default_permissions)."""

import errno
import stat
from dataclasses import dataclass
from typing import TypeVar

from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import INODE_BYTES, LINK_MAX, NAME_MAX, SYMLINK_MAX

from .inodes import ROOT_INO, Directory, Inode, InodeTable, Regular, Special, Symlink, symlink_charge

_I = TypeVar("_I", bound=Inode)

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4


@dataclass(frozen=True, slots=True)
class Creds:
    """Who makes a new inode; `umask` is applied to mode."""

    uid: int
    gid: int
    umask: int = 0


class Namespace:
    """The tree from the root. Methods change it wholly or raise Refused and change nothing."""

    def __init__(self, inodes: InodeTable, root_mode: int, creds: Creds, now_ns: int) -> None:
        self._inodes = inodes
        ino = inodes.next_ino(creds.uid)
        assert ino == ROOT_INO
        mode = stat.S_IFDIR | stat.S_IMODE(root_mode)
        inodes.add(Directory(ino, mode, creds.uid, creds.gid, now_ns, now_ns, now_ns, nlink=2, parent=ino))

    def lookup(self, parent: int, name: bytes) -> Inode:
        if name == b".":
            # Of any inode: open_by_handle_at(2) asks so, once the kernel has forgotten it.
            return self._inodes.get(parent)
        directory = self._inodes.directory(parent)
        if name == b"..":
            return self._inodes.get(directory.parent)
        found = directory.entries.get(name)
        if found is None:
            if len(name) > NAME_MAX:
                raise Refused(errno.ENAMETOOLONG, f"a name has at most {NAME_MAX} bytes")
            raise Refused(errno.ENOENT, f"{name!r} does not exist")
        return found

    def name_of(self, inode: Inode) -> bytes:
        """One path of an inode from the root, or its last NAME_MAX bytes; b"" when it has none. Found by looking
        everywhere if it has lost the name that it got last, and has another one."""
        place = self._place_of(inode)
        path = place[1] if place else b""
        while place is not None and place[0].ino != ROOT_INO and len(path) < NAME_MAX:
            place = self._place_of(place[0])
            path = (place[1] if place else b"") + b"/" + path
        return path[-NAME_MAX:]

    def _place_of(self, inode: Inode) -> tuple[Directory, bytes] | None:
        """A directory that has the inode, and under which name."""
        last = self._inodes.find(inode.last_parent)
        if isinstance(last, Directory) and last.nlink > 0 and last.entries.get(inode.last_name) is inode:
            return last, inode.last_name
        if inode.nlink == 0:
            return None
        for directory in self._inodes:
            if isinstance(directory, Directory) and directory.nlink > 0:
                for name, entry in directory.entries.items():
                    if entry is inode:
                        return directory, name
        return None

    def create(self, parent: int, name: bytes, mode: int, creds: Creds, now_ns: int, rdev: int = 0) -> Inode:
        """A new regular file or special file of the type in mode."""
        directory = self._room_for(parent, name)
        mode, gid = self._inherit(directory, mode & ~creds.umask, creds)
        ino = self._inodes.next_ino(creds.uid)
        cls = Regular if stat.S_ISREG(mode) else Special
        inode = cls(ino, mode, creds.uid, gid, now_ns, now_ns, now_ns, rdev=rdev)
        return self._enter(directory, name, inode, now_ns)

    def create_nameless(self, parent: int, mode: int, creds: Creds, now_ns: int) -> Regular:
        """open(O_TMPFILE): a regular file that no directory holds, though one gives it its group."""
        directory = self._inodes.directory(parent)
        mode, gid = self._inherit(directory, mode & ~creds.umask, creds)
        ino = self._inodes.next_ino(creds.uid)
        inode = Regular(ino, mode, creds.uid, gid, now_ns, now_ns, now_ns, nlink=0, nameless=True)
        self._inodes.add(inode)
        return inode

    def mkdir(self, parent: int, name: bytes, mode: int, creds: Creds, now_ns: int) -> Directory:
        directory = self._room_for(parent, name)
        self._check_room_for_directory(directory)
        mode, gid = self._inherit(directory, stat.S_IFDIR | stat.S_IMODE(mode) & ~creds.umask, creds)
        if directory.mode & stat.S_ISGID:
            mode |= stat.S_ISGID
        ino = self._inodes.next_ino(creds.uid)
        inode = Directory(ino, mode, creds.uid, gid, now_ns, now_ns, now_ns, nlink=2, parent=directory.ino)
        self._enter(directory, name, inode, now_ns)
        directory.nlink += 1
        return inode

    def symlink(self, parent: int, name: bytes, target: bytes, creds: Creds, now_ns: int) -> Symlink:
        if len(target) > SYMLINK_MAX:
            raise Refused(errno.ENAMETOOLONG, f"a symbolic link has at most {SYMLINK_MAX} bytes")
        directory = self._room_for(parent, name)
        mode, gid = self._inherit(directory, stat.S_IFLNK | 0o777, creds)
        charge = symlink_charge(target)
        ino = self._inodes.next_ino(creds.uid, charge)
        inode = Symlink(ino, mode, creds.uid, gid, now_ns, now_ns, now_ns, charge=charge, target=target)
        self._enter(directory, name, inode, now_ns)
        return inode

    def link(self, ino: int, parent: int, name: bytes, now_ns: int) -> Inode:
        inode = self._inodes.get(ino)
        if isinstance(inode, Directory):
            raise Refused(errno.EPERM, "a directory has one name")
        nameless = isinstance(inode, Regular) and inode.nameless
        if inode.nlink == 0 and not nameless:
            raise Refused(errno.ENOENT, f"inode {ino} has no name left")
        if inode.nlink >= LINK_MAX:
            raise Refused(errno.EMLINK, f"a file has at most {LINK_MAX} names")
        directory = self._room_for(parent, name)
        if not nameless:
            self._inodes.charge(inode, INODE_BYTES)
        inode.nlink += 1
        inode.ctime_ns = now_ns
        if isinstance(inode, Regular):
            inode.nameless = False
        return self._enter(directory, name, inode, now_ns)

    def unlink(self, parent: int, name: bytes, now_ns: int) -> Inode:
        """The inode that lost a name; its data may have to go."""
        inode = self.lookup(parent, name)
        if isinstance(inode, Directory):
            raise Refused(errno.EISDIR, f"{name!r} is a directory: use rmdir")
        self._leave(self._inodes.directory(parent), name, now_ns)
        self._lose_name(inode, now_ns)
        return inode

    def rmdir(self, parent: int, name: bytes, now_ns: int) -> Inode:
        inode = self.lookup(parent, name)
        if not isinstance(inode, Directory):
            raise Refused(errno.ENOTDIR, f"{name!r} is not a directory")
        if inode.entries:
            raise Refused(errno.ENOTEMPTY, f"{name!r} is not empty")
        directory = self._inodes.directory(parent)
        self._leave(directory, name, now_ns)
        directory.nlink -= 1
        inode.nlink = 0
        inode.ctime_ns = now_ns
        return inode

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, now_ns: int, creds: Creds
    ) -> Inode | None:
        """rename(2), RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT. Returns the inode that lost its name to it."""
        known = RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT
        if flags & ~known or (flags & RENAME_EXCHANGE and flags != RENAME_EXCHANGE):
            raise Refused(errno.EINVAL, f"rename flags {flags:#x} are not NOREPLACE, WHITEOUT or EXCHANGE")
        source = self._inodes.directory(parent)
        target = self._inodes.directory(new_parent)
        moved = self.lookup(parent, name)
        replaced = self._replaced(target, new_name, flags)
        if isinstance(moved, Directory) and self._is_inside(target, moved):
            raise Refused(errno.EINVAL, f"{name!r} cannot move into itself")
        if flags & RENAME_EXCHANGE and isinstance(replaced, Directory) and self._is_inside(source, replaced):
            raise Refused(errno.EINVAL, f"{new_name!r} cannot move into itself")
        if moved is replaced:
            return None
        if isinstance(moved, Directory) and source is not target and not isinstance(replaced, Directory):
            self._check_room_for_directory(target)
        if replaced is not None and not flags & RENAME_EXCHANGE:
            self._check_replace(moved, replaced, new_name)
        whiteout_ino = self._inodes.next_ino(creds.uid) if flags & RENAME_WHITEOUT else None
        if flags & RENAME_EXCHANGE:
            assert replaced is not None
            self._place(source, name, replaced, target)
            self._place(target, new_name, moved, source)
            replaced.ctime_ns = now_ns
        else:
            if replaced is not None:
                self._drop_replaced(target, new_name, replaced, now_ns)
            del source.entries[name]
            self._place(target, new_name, moved, source)
        if whiteout_ino is not None:
            # What overlayfs takes for "this name is gone": a character device 0/0 (WHITEOUT_MODE, WHITEOUT_DEV).
            mode, gid = self._inherit(source, stat.S_IFCHR, creds)
            self._enter(source, name, Special(whiteout_ino, mode, creds.uid, gid, now_ns, now_ns, now_ns), now_ns)
        moved.ctime_ns = now_ns
        for directory in (source, target):
            directory.mtime_ns = directory.ctime_ns = now_ns
        return None if flags & RENAME_EXCHANGE else replaced

    def _replaced(self, target: Directory, new_name: bytes, flags: int) -> Inode | None:
        """What has the new name. ENOENT and EEXIST by the flags; else as for a name that is made."""
        replaced = target.entries.get(new_name)
        if replaced is None:
            if flags & RENAME_EXCHANGE:
                raise Refused(errno.ENOENT, f"{new_name!r} does not exist")
            self._room_for(target.ino, new_name)
        elif flags & RENAME_NOREPLACE:
            raise Refused(errno.EEXIST, f"{new_name!r} exists")
        return replaced

    def _drop_replaced(self, target: Directory, new_name: bytes, replaced: Inode, now_ns: int) -> None:
        del target.entries[new_name]
        if isinstance(replaced, Directory):
            target.nlink -= 1
            replaced.nlink = 0
            replaced.ctime_ns = now_ns
        else:
            self._lose_name(replaced, now_ns)

    @staticmethod
    def _check_replace(moved: Inode, replaced: Inode, new_name: bytes) -> None:
        if isinstance(replaced, Directory):
            if not isinstance(moved, Directory):
                raise Refused(errno.EISDIR, f"{new_name!r} is a directory")
            if replaced.entries:
                raise Refused(errno.ENOTEMPTY, f"{new_name!r} is not empty")
        elif isinstance(moved, Directory):
            raise Refused(errno.ENOTDIR, f"{new_name!r} is not a directory")

    @staticmethod
    def _place(directory: Directory, name: bytes, inode: Inode, came_from: Directory) -> None:
        directory.entries[name] = inode
        inode.last_parent, inode.last_name = directory.ino, name
        if isinstance(inode, Directory) and directory is not came_from:
            inode.parent = directory.ino
            came_from.nlink -= 1
            directory.nlink += 1

    def _is_inside(self, directory: Directory, ancestor: Directory) -> bool:
        while True:
            if directory is ancestor:
                return True
            if directory.ino == ROOT_INO:
                return False
            directory = self._inodes.directory(directory.parent)

    def _room_for(self, parent: int, name: bytes) -> Directory:
        directory = self._inodes.directory(parent)
        if len(name) > NAME_MAX:
            raise Refused(errno.ENAMETOOLONG, f"a name has at most {NAME_MAX} bytes")
        if name in directory.entries or name in (b".", b".."):
            raise Refused(errno.EEXIST, f"{name!r} exists")
        if directory.nlink == 0:
            raise Refused(errno.ENOENT, "the directory was removed")
        return directory

    @staticmethod
    def _check_room_for_directory(directory: Directory) -> None:
        if directory.nlink >= LINK_MAX:
            raise Refused(errno.EMLINK, f"a directory holds at most {LINK_MAX - 2} directories")

    @staticmethod
    def _inherit(directory: Directory, mode: int, creds: Creds) -> tuple[int, int]:
        if directory.mode & stat.S_ISGID:
            return mode, directory.gid
        return mode, creds.gid

    def _enter(self, directory: Directory, name: bytes, inode: _I, now_ns: int) -> _I:
        if self._inodes.find(inode.ino) is None:
            self._inodes.add(inode)
        directory.entries[name] = inode
        inode.last_parent, inode.last_name = directory.ino, name
        directory.mtime_ns = directory.ctime_ns = now_ns
        return inode

    @staticmethod
    def _leave(directory: Directory, name: bytes, now_ns: int) -> None:
        del directory.entries[name]
        directory.mtime_ns = directory.ctime_ns = now_ns

    def _lose_name(self, inode: Inode, now_ns: int) -> None:
        inode.nlink -= 1
        inode.ctime_ns = now_ns
        assert inode.nlink >= 0
        if inode.nlink:
            self._inodes.charge(inode, -INODE_BYTES)
