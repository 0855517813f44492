"""Mount options, and what must be true of a mount point before and after."""

import contextlib
import ctypes
import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from memfsd.common.quote import quoted
from memfsd.core.options import NAMES, Atime, StoreOptions, SwapOptions, check_options, swap_bytes, with_option
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_INODES
from memfsd.uapi.names import FSTYPE
from memfsd.uapi.units import PAGE_SHIFT

from .mounting import ATTRIBUTES, alone_at

_FLAGS = frozenset(
    (
        *("allow_other", "allow_root", "auto_unmount", "default_permissions", "ro", "rw", "suid", "nosuid"),
        *("dev", "nodev", "exec", "noexec", "sync", "async", "dirsync"),
    )
)
_OPPOSITES = {
    word: other
    for pair in (("ro", "rw"), ("suid", "nosuid"), ("dev", "nodev"), ("exec", "noexec"), ("sync", "async"))
    for word, other in (pair, pair[::-1])
}
"""The last word counts, as of mount(8)."""
_OF_MOUNT = frozenset(
    (
        *("defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev"),
        *("silent", "loud", "quiet", "lazytime", "nolazytime", "mand", "nomand", "iversion", "noiversion", "symfollow"),
    )
)
"""Words that mount(8) and fstab(5) pass on to any file system, and that change nothing here."""
_VALUES = frozenset(("fsname", "subtype"))
_SWAP = ("swap", "swap_size", "swap_reset")
_MNT_DETACH = 2
_STAT_DEADLINE_S = 5.0


@dataclass(frozen=True, slots=True)
class MountOptions:
    """store: for the core; fuse: for libfuse, as written; socket: where guests connect ("": a default).

    swap: the swap file, if there is to be one.

    attributes: names in mounting.ATTRIBUTES, to be set once it is mounted. All but nosymfollow are only for show.
    """

    store: StoreOptions = field(default_factory=StoreOptions)
    fuse: frozenset[str] = frozenset()
    socket: str = ""
    attributes: frozenset[str] = frozenset()
    swap: SwapOptions | None = None


def parse_options(
    words: list[str], default_pool_bytes: int, source: str = FSTYPE, *, page_map: bool = True
) -> MountOptions:
    """Options of all -o words. Refused(EINVAL) names the one that makes no sense. page_map: as StoreOptions has it."""
    # Half as many inodes as the machine has pages, as on tmpfs; size= leaves that alone.
    inode_count = min(default_pool_bytes >> PAGE_SHIFT, MAX_INODES)
    store = StoreOptions(pool_bytes=default_pool_bytes, inode_count=inode_count, page_map=page_map)
    # libfuse splits options at commas.
    escaped = source.replace("\\", "\\\\").replace(",", "\\,")
    fuse = {"default_permissions", f"fsname={escaped}", f"subtype={FSTYPE}"}
    socket, attributes, swap = "", set[str](), dict[str, str | None]()
    for text in (option for word in words for option in word.split(",")):
        name, equals, tail = text.partition("=")
        value = tail if equals else None
        if name in NAMES:
            store = with_option(store, name, value)
            fuse = fuse - {"noatime"} | ({"noatime"} if store.atime is Atime.NEVER else set())
            if name in ATTRIBUTES:
                attributes.add(name)
        elif name in _OF_MOUNT and value is None:
            attributes -= {"nosymfollow"} if name == "symfollow" else set()
        elif name == "nosymfollow" and value is None:
            attributes.add(name)
        elif name.lower().startswith("x-") or name == "comment":
            pass  # mount(8) keeps these for others
        elif name == "remount":
            raise Refused(
                errno.EOPNOTSUPP,
                "remount is not supported: unmount and mount again; ro, nosuid, nodev and noexec can be changed"
                " without memfsd: mount -i -o remount,...",
            )
        elif name == "socket":
            socket = _socket_path(value)
        elif name in _SWAP:
            swap[name] = value
        elif (name in _FLAGS and value is None) or (name in _VALUES and value):
            fuse = {option for option in fuse if option.partition("=")[0] not in (name, _OPPOSITES.get(name))} | {text}
        elif name in _FLAGS | _VALUES:
            raise Refused(errno.EINVAL, f"option {name} {'takes no' if name in _FLAGS else 'needs a'} value")
        else:
            known = ", ".join(sorted({*NAMES, *_SWAP, "socket", "nosymfollow", *_FLAGS, *_VALUES}))
            raise Refused(errno.EINVAL, f"unknown option '{text}': choose from {known}")
    check_options(store)
    if store.abi.is_sized_at_creation and not fuse & {"exec"}:
        fuse = fuse | {"noexec"}  # as the kernel's mount of guest_memfds is
    # strictatime that a later word took back, and the like.
    attributes -= {"strictatime"} if store.atime is not Atime.ALWAYS else set()
    attributes -= {"nodiratime"} if store.diratime else set()
    return MountOptions(store, frozenset(fuse), socket, frozenset(attributes), _swap_options(swap))


def _swap_options(said: dict[str, str | None]) -> SwapOptions | None:
    path = said.get("swap")
    if "swap" in said and (not path or "\0" in path):
        raise Refused(errno.EINVAL, "option swap needs the path of a file: swap=FILE")
    if said.get("swap_reset") is not None:
        raise Refused(errno.EINVAL, "option swap_reset takes no value")
    if said and not path:
        raise Refused(errno.EINVAL, f"option {next(iter(said))} is about a swap file: name it with swap=FILE")
    size_bytes = swap_bytes(said["swap_size"] or "") if "swap_size" in said else 0
    return SwapOptions(os.path.abspath(path), size_bytes, "swap_reset" in said) if path else None


def _socket_path(value: str | None) -> str:
    if not value or len(os.fsencode(value)) > 107 or "\0" in value:
        raise Refused(errno.EINVAL, "option socket needs a path of 1 to 107 bytes: socket=PATH")
    return os.path.abspath(value)


_FUSE_CONF = "/etc/fuse.conf"


def check_fuse(options: frozenset[str] = frozenset()) -> None:
    """Refused names what the machine lacks for a mount with these FUSE options."""
    if not os.path.exists("/dev/fuse"):
        raise Refused(errno.ENODEV, "/dev/fuse is missing: load the fuse module (modprobe fuse)")
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        way_out = ": mount as root, or let users open it (chmod 666 /dev/fuse)" if os.geteuid() != 0 else ""
        raise Refused(error.errno or errno.EIO, f"/dev/fuse cannot be opened: {error.strerror}{way_out}") from None
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise Refused(errno.ENOENT, "fusermount3 is missing: install the package fuse3, or mount as root")
    if os.geteuid() != 0 and "nosymfollow" in options:
        raise Refused(errno.EPERM, "nosymfollow is root's: fusermount3 does not know it")
    if os.geteuid() != 0 and options & {"allow_other", "allow_root"} and not _users_may_allow_others():
        raise Refused(errno.EPERM, f"allow_other and allow_root are root's: put user_allow_other into {_FUSE_CONF}")


def _users_may_allow_others() -> bool:
    try:
        with open(_FUSE_CONF) as lines:
            return any(line.strip() == "user_allow_other" for line in lines)
    except OSError:
        return False


def prepare_mountpoint(path: str) -> str:
    """The absolute path of an empty directory; a dead daemon's mount there is replaced."""
    if not path:
        raise Refused(errno.ENOENT, "the mount point has no name: give a directory")
    path = os.path.realpath(path)
    with alone_at(path):
        if mounted_type(path) == f"fuse.{FSTYPE}":
            if _is_alive(path):
                raise Refused(errno.EBUSY, f"{quoted(path)} is mounted already: umount it first")
            detach(path)
    try:
        entries = os.listdir(path)
    except OSError as error:
        raise Refused(error.errno or errno.EIO, f"mount point {quoted(path)}: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise Refused(errno.EACCES, f"mount point {quoted(path)}: you may not write there, and so not mount there")
    if entries:
        raise Refused(errno.ENOTEMPTY, f"mount point {quoted(path)} is not empty: choose an empty directory")
    return path


@contextlib.contextmanager
def mounting_at(path: str) -> Iterator[None]:
    """Mount in it. EBUSY when another memfsd was faster since `prepare_mountpoint`: the mounts would be stacked."""
    with alone_at(path):
        if mounted_type(path) == f"fuse.{FSTYPE}":
            raise Refused(errno.EBUSY, f"{quoted(path)}: another memfsd has just mounted there: umount it first")
        yield


def mounted_type(path: str) -> str | None:
    """The type of the topmost mount exactly at path, without touching it."""
    found = None
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            fields, _, tail = line.rstrip(b"\n").partition(b" - ")
            if _unescape(fields.split(b" ")[4]) == os.fsencode(path):
                found = tail.split(b" ")[0].decode()
    return found


def detach(path: str) -> None:
    """umount -l; for who is not root through fusermount3, which takes away what the same user mounted."""
    if os.geteuid() != 0:
        done = subprocess.run(
            ["fusermount3", "-u", "-z", "--", path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise Refused(errno.EPERM, f"the dead mount at {quoted(path)} cannot be removed: {done.stderr.strip()}")
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _MNT_DETACH) != 0:
        number = ctypes.get_errno()
        raise Refused(number, f"the dead mount at {quoted(path)} cannot be removed: {os.strerror(number)}")


def _is_alive(path: str) -> bool:
    """False only for the mount of a dead daemon (ENOTCONN). A daemon that does not answer counts as alive."""
    alive = threading.Event()
    dead = threading.Event()

    def look() -> None:
        try:
            os.statvfs(path)  # never answered from the kernel's cache
        except OSError as error:
            (dead if error.errno in (errno.ENOTCONN, errno.ECONNABORTED) else alive).set()
        else:
            alive.set()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(_STAT_DEADLINE_S)
    return not dead.is_set()


def _unescape(text: bytes) -> bytes:
    for code in (b"040", b"011", b"012", b"134"):
        text = text.replace(b"\\" + code, bytes([int(code, 8)]))
    return text
