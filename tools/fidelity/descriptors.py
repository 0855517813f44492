"""The ops of recorded cases that are system calls on a file descriptor."""

import array
import ctypes
import fcntl
import os
import resource
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from memfsd.common.linux import fallocate

Args = dict[str, Any]
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long

_FICLONE = 0x40049409
_NR_CACHESTAT, _NR_PIDFD_GETFD, _NR_STATX = 451, 438, 332
_FLOCK = struct.Struct("hhqqi4x")
_TIMES = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")
_INTERRUPT_AFTER_S = 0.02


def checked(result: int) -> int:
    """OSError of errno for -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def inode_number(fd: int) -> int:
    """Without asking the file system."""
    with open(f"/proc/self/fdinfo/{fd}") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("ino:"))


def syscall(number: int, *arguments: int | None) -> int:
    """OSError."""
    return checked(LIBC.syscall(ctypes.c_long(number), *(ctypes.c_long(each or 0) for each in arguments)))


def cachestat(fd: int, offset: int, length: int) -> dict[str, int]:
    """cachestat(2), which says which pages of a guest_memfd are allocated."""
    asked, found = struct.pack("=QQ", offset, length), ctypes.create_string_buffer(40)
    buffer = ctypes.create_string_buffer(asked, len(asked))
    syscall(_NR_CACHESTAT, fd, ctypes.addressof(buffer), ctypes.addressof(found), 0)
    cache, dirty, writeback, _, _ = struct.unpack("=5Q", found.raw)
    return {"nr_cache": cache, "nr_dirty": dirty, "nr_writeback": writeback}


class Descriptors:
    """Which descriptors the ops of one case have made: `fds`. place: a directory for files."""

    def __init__(self, place: str) -> None:
        self.fds: dict[str, int] = {}
        self._place = place
        self._times: tuple[int, ...] = ()

    def fd(self, args: Args, key: str = "fd") -> int:
        """KeyError names a handle that there is not."""
        named = args[key]
        return named if isinstance(named, int) else self.fds[named]

    def find(self, op: str) -> Callable[[Args], Any] | None:
        """What does the op: it returns the result, or raises OSError."""
        found: Callable[[Args], Any] | None = getattr(self, f"_op_{op}", None)
        return found

    def keep(self, args: Args, fd: int) -> str:
        """A new descriptor, under the op's name for it."""
        if args.get("as"):
            self.fds[args["as"]] = fd
        return "fd"

    # -- other files

    def _op_tmpfile(self, args: Args) -> str:
        fd = os.open(self._place, os.O_TMPFILE | os.O_RDWR, 0o600)
        os.write(fd, b"\xa5" * args.get("size", 0))
        os.lseek(fd, 0, os.SEEK_SET)
        return self.keep(args, fd)

    def _op_devnull(self, args: Args) -> str:
        return self.keep(args, os.open("/dev/null", os.O_RDWR))

    def _op_pipe(self, args: Args) -> None:
        self.fds["pipe_r"], self.fds["pipe_w"] = os.pipe()

    def _op_close(self, args: Args) -> None:
        """Its name stays that of its number."""
        os.close(self.fds[args["fd"]])

    def _op_dup(self, args: Args) -> str:
        return self.keep(args, os.dup(self.fd(args)))

    def _op_reopen(self, args: Args) -> str:
        return self.keep(args, os.open(f"/proc/self/fd/{self.fd(args)}", args["flags"]))

    def _op_scm_rights(self, args: Args) -> str:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            socket.send_fds(ours, [b"."], [self.fd(args)])
            return self.keep(args, socket.recv_fds(theirs, 1, 1)[1][0])

    def _op_pidfd_getfd(self, args: Args) -> str:
        pidfd = os.pidfd_open(os.getpid())
        return self.keep(args, syscall(_NR_PIDFD_GETFD, pidfd, self.fd(args), 0))

    # -- attributes

    def _op_fstat(self, args: Args) -> dict[str, object]:
        found = os.fstat(self.fd(args))
        shown = ("nlink", "uid", "gid", "size", "blksize", "blocks", "rdev")
        return {"mode": f"0o{found.st_mode:o}"} | {name: getattr(found, f"st_{name}") for name in shown}

    def _op_fstat_same(self, args: Args) -> dict[str, bool]:
        one, other = os.fstat(self.fd(args, "a")), os.fstat(self.fd(args, "b"))
        return {"same_dev": one.st_dev == other.st_dev, "same_ino": one.st_ino == other.st_ino}

    def _op_fstatfs(self, args: Args) -> dict[str, object]:
        buffer = ctypes.create_string_buffer(120)
        checked(LIBC.fstatfs(self.fd(args), buffer))
        type_, bsize, blocks, bfree = struct.unpack_from("=4q", buffer)
        (namelen,) = struct.unpack_from("=q", buffer, 64)
        return {"f_type": f"{type_:#x}", "bsize": bsize, "blocks": blocks, "bfree": bfree, "namelen": namelen}

    def _op_statx(self, args: Args) -> dict[str, object]:
        buffer, empty = ctypes.create_string_buffer(256), ctypes.create_string_buffer(b"")
        at_empty_path, basic_and_mount = 0x1000, 0x47FF
        where = ctypes.addressof(buffer)
        syscall(_NR_STATX, self.fd(args), ctypes.addressof(empty), at_empty_path, basic_and_mount, where)
        mask, blksize, attributes = struct.unpack_from("=IIQ", buffer)
        (attributes_mask,) = struct.unpack_from("=Q", buffer, 56)
        shown = {"attributes": f"{attributes:#x}", "attributes_mask": f"{attributes_mask:#x}"}
        return {"mask": f"{mask:#x}", "blksize": blksize, **shown}

    def _op_fdinfo(self, args: Args) -> dict[str, str]:
        with open(f"/proc/self/fdinfo/{self.fd(args)}") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return {name: fields[name].strip() for name in ("pos", "flags", "mnt_id", "ino")}

    def _op_readlink(self, args: Args) -> str:
        return os.readlink(f"/proc/self/fd/{self.fd(args)}")

    def _op_cloexec_default(self, args: Args) -> int:
        return fcntl.fcntl(self.fd(args), fcntl.F_GETFD)

    def _op_times_save(self, args: Args) -> None:
        self._times = self._times_of(args)

    def _op_times_changed(self, args: Args) -> dict[str, bool]:
        pairs = zip(("atime", "mtime", "ctime"), self._times, self._times_of(args), strict=True)
        return {name: before != after for name, before, after in pairs}

    def _times_of(self, args: Args) -> tuple[int, ...]:
        found = os.fstat(self.fd(args))
        return tuple(getattr(found, name) for name in _TIMES)

    def _op_fchmod(self, args: Args) -> None:
        os.fchmod(self.fd(args), args["mode"])

    def _op_fchown(self, args: Args) -> None:
        os.fchown(self.fd(args), args["uid"], args["gid"])

    def _op_futimens(self, args: Args) -> None:
        os.utime(self.fd(args), None if args.get("now", True) else (1, 1))

    def _op_setxattr(self, args: Args) -> None:
        os.setxattr(self.fd(args), args["name"], b"v")

    def _op_getxattr(self, args: Args) -> str:
        return os.getxattr(self.fd(args), args["name"]).hex()

    def _op_listxattr(self, args: Args) -> list[str]:
        return os.listxattr(self.fd(args))

    def _op_removexattr(self, args: Args) -> None:
        os.removexattr(self.fd(args), args["name"])

    # -- position and bytes

    def _op_lseek(self, args: Args) -> int:
        return os.lseek(self.fd(args), args["off"], args["whence"])

    def _op_read(self, args: Args) -> str:
        return os.read(self.fd(args), args["n"]).hex()

    def _op_pread(self, args: Args) -> str:
        return os.pread(self.fd(args), args["n"], args["off"]).hex()

    def _op_readv(self, args: Args) -> int:
        return os.readv(self.fd(args), [bytearray(args["n"])])

    def _op_preadv(self, args: Args) -> int:
        return os.preadv(self.fd(args), [bytearray(args["n"])], args["off"])

    def _op_write(self, args: Args) -> int:
        return os.write(self.fd(args), bytes.fromhex(args["data"]))

    def _op_pwrite(self, args: Args) -> int:
        return os.pwrite(self.fd(args), bytes.fromhex(args["data"]), args["off"])

    def _op_writev(self, args: Args) -> int:
        return os.writev(self.fd(args), [bytes.fromhex(args["data"])])

    def _op_pwritev(self, args: Args) -> int:
        return os.pwritev(self.fd(args), [bytes.fromhex(args["data"])], args["off"])

    def _op_sendfile(self, args: Args) -> int:
        return os.sendfile(self.fd(args, "out"), self.fd(args, "inp"), args["off"], args["n"])

    def _op_splice(self, args: Args) -> int:
        places = args.get("off_in"), args.get("off_out")
        return os.splice(self.fd(args, "inp"), self.fd(args, "out"), args["n"], *places, flags=2)  # SPLICE_F_NONBLOCK

    def _op_copy_file_range(self, args: Args) -> int:
        places = args.get("off_in"), args.get("off_out")
        return os.copy_file_range(self.fd(args, "inp"), self.fd(args, "out"), args["n"], *places)

    def _op_ficlone(self, args: Args) -> int:
        return fcntl.ioctl(self.fd(args, "dst"), _FICLONE, self.fd(args, "src"))

    # -- size, pages, durability

    def _op_ftruncate(self, args: Args) -> None:
        os.ftruncate(self.fd(args), args["size"])

    def _op_truncate_path(self, args: Args) -> None:
        os.truncate(f"/proc/self/fd/{self.fd(args)}", args["size"])

    def _op_fallocate(self, args: Args) -> int:
        fallocate(self.fd(args), args["mode"], args["off"], args["len"])
        return 0

    def _op_fallocate_interrupted(self, args: Args) -> dict[str, object]:
        signal.signal(signal.SIGALRM, lambda number, frame: None)
        signal.setitimer(signal.ITIMER_REAL, _INTERRUPT_AFTER_S)
        error = None
        at, size = ctypes.c_int64(args["off"]), ctypes.c_int64(args["len"])
        try:
            checked(LIBC.fallocate(self.fd(args), 1, at, size))
        except InterruptedError:
            error = "EINTR"
        return {"err": error, "partial": 0 < self.allocated(self.fd(args)) < args["len"] >> 12}

    def allocated(self, fd: int) -> int:
        """Pages, in the middle of a case."""
        return cachestat(fd, 0, 0)["nr_cache"]

    def _op_posix_fallocate(self, args: Args) -> None:
        os.posix_fallocate(self.fd(args), args["off"], args["n"])

    def _op_fsync(self, args: Args) -> None:
        os.fsync(self.fd(args))

    def _op_fdatasync(self, args: Args) -> None:
        os.fdatasync(self.fd(args))

    def _op_syncfs(self, args: Args) -> None:
        checked(LIBC.syncfs(self.fd(args)))

    def _op_sync_file_range(self, args: Args) -> None:
        at, size = ctypes.c_int64(args["off"]), ctypes.c_int64(args["n"])
        checked(LIBC.sync_file_range(self.fd(args), at, size, args["flags"]))

    def _op_fadvise(self, args: Args) -> None:
        os.posix_fadvise(self.fd(args), args["off"], args["n"], args["advice"])

    def _op_readahead(self, args: Args) -> int:
        return checked(LIBC.readahead(self.fd(args), ctypes.c_int64(args["off"]), ctypes.c_size_t(args["n"])))

    def _op_cachestat(self, args: Args) -> dict[str, int]:
        return cachestat(self.fd(args), args.get("off", 0), args.get("len", 0))

    # -- the rest

    def _op_fcntl(self, args: Args) -> int:
        return fcntl.fcntl(self.fd(args), args["cmd"], args.get("arg", 0))

    def _op_lock(self, args: Args) -> dict[str, int]:
        answer = fcntl.fcntl(self.fd(args), args["cmd"], _FLOCK.pack(args["type"], 0, 0, 0, 0))
        return {"l_type": _FLOCK.unpack(answer)[0]}

    def _op_flock(self, args: Args) -> None:
        fcntl.flock(self.fd(args), args["operation"])

    def _op_poll(self, args: Args) -> list[int]:
        poller = select.poll()
        poller.register(self.fd(args), args["events"])
        return [events for _, events in poller.poll(0)]

    def _op_epoll_add(self, args: Args) -> None:
        with select.epoll() as epoll:
            epoll.register(self.fd(args))

    def _op_ioctl_int(self, args: Args) -> int:
        buffer = array.array("i", [0] * 1024)
        fcntl.ioctl(self.fd(args), args["req"], buffer)
        return buffer[0]

    def _op_raw_ioctl(self, args: Args) -> int:
        return fcntl.ioctl(self.fd(args), args["req"], 0)

    def _op_sleep_ms(self, args: Args) -> None:
        time.sleep(args["ms"] / 1000)

    def _op_setuid(self, args: Args) -> None:
        os.setgroups([])
        os.setgid(args["uid"])
        os.setuid(args["uid"])

    def _op_rlimit_nofile(self, args: Args) -> None:
        used = {int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}
        limit = free = 0
        while free < args["free"]:
            free += limit not in used
            limit += 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
