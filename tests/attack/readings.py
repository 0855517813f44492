"""Every way to read through a file handle."""

import ctypes
import os
import socket

from tests.attack.syscalls import IOCB_CMD_PREAD, PIDFD_GETFD, IoUring, aio, call, iovec, syscall
from tests.attack.table import Aim, Attack, reading
from tests.attack.target import OTHER, PAGE, WORKS, Action, Target, child_that_waits, in_child

RWF_HIPRI, RWF_NOWAIT, RWF_DONTCACHE = 0x1, 0x8, 0x80


def _read(t: Target) -> None:
    call("read", t.fd, t.address(), PAGE)


def _pread(t: Target) -> None:
    call("pread", t.fd, t.address(), PAGE, 0)


def _readv(t: Target) -> None:
    call("readv", t.fd, iovec(t.address(), PAGE), 1)


def _preadv(t: Target) -> None:
    os.preadv(t.fd, [t.buffer(), t.buffer()], 0)


def _preadv2(flags: int) -> Action:
    def attack(t: Target) -> None:
        os.preadv(t.fd, [t.buffer()], 0, flags)

    return attack


def _sendfile_to_file(t: Target) -> None:
    path = t.ordinary()
    with open(path, "wb") as out:
        os.sendfile(out.fileno(), t.fd, 0, PAGE)
    t.take_file(path)


def _sendfile_to_socket(t: Target) -> None:
    ours, theirs = socket.socketpair()
    os.sendfile(ours.fileno(), t.fd, 0, PAGE)
    theirs.recv_into(t.buffer())


def _splice(t: Target) -> None:
    out, into = os.pipe()
    os.splice(t.fd, into, PAGE, offset_src=0)
    call("read", out, t.address(), PAGE)


def _splice_tee(t: Target) -> None:
    out, into = os.pipe()
    os.splice(t.fd, into, PAGE, offset_src=0)
    second_out, second_in = os.pipe()
    call("tee", out, second_in, PAGE, 0)
    call("read", second_out, t.address(), PAGE)


def _copy_out(*, same_mount: bool) -> Action:
    def attack(t: Target) -> None:
        path = t.ordinary(same_mount=same_mount)
        with open(path, "wb") as out:
            os.copy_file_range(t.fd, out.fileno(), PAGE, 0, 0)
        t.take_file(path)

    return attack


def _io_uring(opcode: str) -> Action:
    def attack(t: Target) -> None:
        ring, address = IoUring(), t.address()
        if opcode == "read_fixed":
            ring.register_buffer(address, PAGE)
        if opcode == "readv":
            vector = iovec(address, PAGE)
            ring.do(opcode, t.fd, ctypes.addressof(vector), 1)
        else:
            ring.do(opcode, t.fd, address, PAGE)

    return attack


def _io_uring_registered_file(t: Target) -> None:
    ring = IoUring()
    ring.register_file(t.fd)
    os.close(t.fd)
    ring.do("read", 0, t.address(), PAGE, flags=1)


def _io_uring_splice(t: Target) -> None:
    out, into = os.pipe()
    # The source's offset goes where the address goes; the sink is a pipe and has none.
    IoUring().do("splice", into, 0, PAGE, offset=(1 << 64) - 1, splice_from=t.fd)
    call("read", out, t.address(), PAGE)


def _aio(t: Target) -> None:
    aio(IOCB_CMD_PREAD, t.fd, t.address(), PAGE)


def _readahead(t: Target) -> None:
    call("readahead", t.fd, 0, PAGE)


def _fadvise(t: Target) -> None:
    os.posix_fadvise(t.fd, 0, PAGE, os.POSIX_FADV_WILLNEED)


def _dup(t: Target) -> None:
    call("pread", os.dup(t.fd), t.address(), PAGE, 0)


def _seek_and_read(t: Target) -> None:
    os.lseek(t.fd, 0, os.SEEK_DATA)
    call("read", t.fd, t.address(), PAGE)


def _pass_over_socket(t: Target) -> None:
    """To another process, which root makes one of another user; it reads."""
    ours, theirs = socket.socketpair()
    socket.send_fds(ours, [b"x"], [t.fd])
    os.close(t.fd)

    def receive_and_read() -> None:
        if os.geteuid() == 0:
            os.setresuid(OTHER, OTHER, OTHER)
        _, (received, *_), _, _ = socket.recv_fds(theirs, 1, 1)
        call("pread", received, t.address(), PAGE, 0)

    in_child(receive_and_read)


def _pidfd_getfd(t: Target) -> None:
    """Taken out of another process that holds the handle."""
    with child_that_waits() as pid:
        stolen = syscall(PIDFD_GETFD, os.pidfd_open(pid), t.fd, 0)
        call("pread", stolen, t.address(), PAGE, 0)


READINGS: tuple[Attack, ...] = (
    reading("read", _read),
    reading("pread", _pread),
    reading("readv", _readv),
    reading("preadv, two buffers", _preadv),
    reading("preadv2(RWF_HIPRI)", _preadv2(RWF_HIPRI)),
    Attack("preadv2(RWF_NOWAIT)", _preadv2(RWF_NOWAIT), Aim.READ, "EOPNOTSUPP", "EBADF", "EOPNOTSUPP"),
    Attack("preadv2(RWF_DONTCACHE)", _preadv2(RWF_DONTCACHE), Aim.READ, "EOPNOTSUPP", "EBADF", "EOPNOTSUPP"),
    reading("read, O_DIRECT", _read, flags=os.O_DIRECT),
    reading("preadv2(RWF_HIPRI), O_DIRECT", _preadv2(RWF_HIPRI), flags=os.O_DIRECT),
    reading("read, O_SYNC", _read, flags=os.O_SYNC),
    reading("lseek(SEEK_DATA) and read", _seek_and_read),
    reading("pread of dup(2)", _dup),
    reading("sendfile to a file", _sendfile_to_file),
    reading("sendfile to a socket", _sendfile_to_socket),
    reading("splice to a pipe", _splice),
    reading("splice and tee", _splice_tee),
    reading("splice, O_DIRECT", _splice, flags=os.O_DIRECT),
    reading("copy_file_range to a file of the mount", _copy_out(same_mount=True)),
    Attack("copy_file_range to another filesystem", _copy_out(same_mount=False), Aim.READ, "EXDEV", "EBADF", "EXDEV"),
    reading("io_uring READ", _io_uring("read")),
    reading("io_uring READV", _io_uring("readv")),
    reading("io_uring READ_FIXED, registered buffer", _io_uring("read_fixed")),
    reading("io_uring READ, registered file", _io_uring_registered_file),
    reading("io_uring SPLICE", _io_uring_splice),
    reading("io_submit PREAD (AIO)", _aio),
    reading("io_submit PREAD (AIO), O_DIRECT", _aio, flags=os.O_DIRECT),
    reading("pass over a Unix socket to another user's process, pread", _pass_over_socket),
    reading("pidfd_getfd and pread", _pidfd_getfd),
    Attack("readahead", _readahead, Aim.NEITHER, WORKS, "EBADF", WORKS),
    Attack("posix_fadvise(WILLNEED)", _fadvise, Aim.NEITHER, WORKS, WORKS, WORKS),
)
