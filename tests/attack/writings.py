"""Every way to write through a file handle, and to change a file's size and allocation."""

import ctypes
import fcntl
import os

from tests.attack.syscalls import IOCB_CMD_PWRITE, IoUring, aio, call, iovec
from tests.attack.table import Aim, Attack, writing
from tests.attack.target import FILE_BYTES, HOST_WROTE, PAGE, WORKS, Action, Target

RWF_DSYNC, RWF_SYNC, RWF_NOWAIT, RWF_APPEND, RWF_NOAPPEND, RWF_ATOMIC = 0x2, 0x4, 0x8, 0x10, 0x20, 0x40
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE, UNSHARE_RANGE = 1, 2, 8, 16, 32, 64
FICLONE, FICLONERANGE, FIDEDUPERANGE = 0x40049409, 0x4020940D, 0xC0189436


def _write(t: Target) -> None:
    call("write", t.fd, t.payload(), PAGE)


def _write_few_bytes(t: Target) -> None:
    """Less than a page, and not at its start: the kernel must not read the rest of it first."""
    os.pwrite(t.fd, HOST_WROTE[:7], 100)


def _pwrite(t: Target) -> None:
    call("pwrite", t.fd, t.payload(), PAGE, 0)


def _writev(t: Target) -> None:
    call("writev", t.fd, iovec(t.payload(), PAGE), 1)


def _pwritev(t: Target) -> None:
    os.pwritev(t.fd, [HOST_WROTE, HOST_WROTE], 0)


def _pwritev2(flags: int) -> Action:
    def attack(t: Target) -> None:
        os.pwritev(t.fd, [HOST_WROTE], 0, flags)

    return attack


def _with_flag(flag: int, action: Action) -> Action:
    """fcntl(F_SETFL) first: so also a handle that was opened before the seal gets the flag."""

    def attack(t: Target) -> None:
        fcntl.fcntl(t.fd, fcntl.F_SETFL, fcntl.fcntl(t.fd, fcntl.F_GETFL) | flag)
        action(t)

    return attack


def _sendfile_in(t: Target) -> None:
    with open(t.ordinary(content=HOST_WROTE), "rb") as source:
        os.sendfile(t.fd, source.fileno(), 0, PAGE)


def _splice_in(t: Target) -> None:
    out, into = os.pipe()
    os.write(into, HOST_WROTE)
    os.splice(out, t.fd, PAGE, offset_dst=0)


def _vmsplice_in(t: Target) -> None:
    out, into = os.pipe()
    call("vmsplice", into, iovec(t.payload(), PAGE), 1, 0)
    os.splice(out, t.fd, PAGE, offset_dst=0)


def _copy_in(*, same_mount: bool) -> Action:
    def attack(t: Target) -> None:
        with open(t.ordinary(same_mount=same_mount, content=HOST_WROTE), "rb") as source:
            os.copy_file_range(source.fileno(), t.fd, PAGE, 0, 0)

    return attack


def _io_uring(opcode: str) -> Action:
    def attack(t: Target) -> None:
        ring, address = IoUring(), t.payload()
        if opcode == "write_fixed":
            ring.register_buffer(address, PAGE)
        if opcode == "writev":
            vector = iovec(address, PAGE)
            ring.do(opcode, t.fd, ctypes.addressof(vector), 1)
        else:
            ring.do(opcode, t.fd, address, PAGE)

    return attack


def _io_uring_splice(t: Target) -> None:
    out, into = os.pipe()
    os.write(into, HOST_WROTE)
    any_offset = (1 << 64) - 1
    IoUring().do("splice", t.fd, any_offset, PAGE, offset=0, splice_from=out)


def _aio(t: Target) -> None:
    aio(IOCB_CMD_PWRITE, t.fd, t.payload(), PAGE)


def _clone_out(request: int) -> Action:
    """From the target into an ordinary file beside it."""

    def attack(t: Target) -> None:
        path = t.ordinary(same_mount=True)
        with open(path, "r+b") as out:
            fcntl.ioctl(out.fileno(), request, t.fd if request == FICLONE else _range(t.fd))
        t.take_file(path)

    return attack


def _clone_in(request: int) -> Action:
    def attack(t: Target) -> None:
        with open(t.ordinary(same_mount=True, content=HOST_WROTE), "rb") as source:
            fd = source.fileno()
            fcntl.ioctl(t.fd, request, fd if request == FICLONE else _range(fd))

    return attack


def _range(fd: int) -> bytes:
    return b"".join(number.to_bytes(8, "little") for number in (fd, 0, PAGE, 0))


def _dedupe(t: Target) -> None:
    """The target's data compared with, and shared with, a file beside it: the kernel tells per file what came of it."""
    with open(t.ordinary(same_mount=True, content=HOST_WROTE), "r+b") as other:
        request = bytearray(24 + 32)
        request[8:16] = PAGE.to_bytes(8, "little")
        request[16:18] = (1).to_bytes(2, "little")
        request[24:32] = other.fileno().to_bytes(8, "little")
        fcntl.ioctl(t.fd, FIDEDUPERANGE, request)
    status = int.from_bytes(request[48:52], "little", signed=True)
    if status < 0:
        raise OSError(-status, "FIDEDUPERANGE")


def _ftruncate(size: int) -> Action:
    return lambda t: os.ftruncate(t.fd, size)


def _fallocate(mode: int, offset: int = 0, length: int = PAGE) -> Action:
    def attack(t: Target) -> None:
        call("fallocate", t.fd, mode, offset, length)

    return attack


def _handle(call_: str, action: Action, ordinary: str, blind: str, rw: str | None = None) -> Attack:
    return Attack(call_, action, Aim.NEITHER, ordinary, blind, blind if rw is None else rw)


WRITINGS: tuple[Attack, ...] = (
    writing("write", _write),
    writing("pwrite of a few bytes", _write_few_bytes),
    writing("pwrite", _pwrite),
    writing("writev", _writev),
    writing("pwritev, two buffers", _pwritev),
    writing("pwritev2(RWF_DSYNC)", _pwritev2(RWF_DSYNC)),
    writing("pwritev2(RWF_SYNC)", _pwritev2(RWF_SYNC)),
    writing("pwritev2(RWF_APPEND)", _pwritev2(RWF_APPEND)),
    writing("pwritev2(RWF_NOAPPEND), O_APPEND", _with_flag(os.O_APPEND, _pwritev2(RWF_NOAPPEND))),
    Attack("pwritev2(RWF_NOWAIT)", _pwritev2(RWF_NOWAIT), Aim.WRITE, "EOPNOTSUPP", "EOPNOTSUPP", "EOPNOTSUPP"),
    Attack("pwritev2(RWF_ATOMIC)", _pwritev2(RWF_ATOMIC), Aim.WRITE, "EOPNOTSUPP", "EOPNOTSUPP", "EOPNOTSUPP"),
    writing("write, O_APPEND", _with_flag(os.O_APPEND, _write)),
    writing("write, O_DIRECT", _with_flag(os.O_DIRECT, _write)),
    writing("write, O_DIRECT and O_APPEND", _with_flag(os.O_DIRECT | os.O_APPEND, _write)),
    writing("write, O_SYNC", _write, flags=os.O_SYNC),
    writing("sendfile from a file", _sendfile_in),
    writing("splice from a pipe", _splice_in),
    writing("vmsplice and splice", _vmsplice_in),
    writing("copy_file_range from a file of the mount", _copy_in(same_mount=True)),
    Attack("copy_file_range from elsewhere", _copy_in(same_mount=False), Aim.WRITE, "EXDEV", "EXDEV", "EXDEV"),
    writing("io_uring WRITE", _io_uring("write")),
    writing("io_uring WRITEV", _io_uring("writev")),
    writing("io_uring WRITE_FIXED, registered buffer", _io_uring("write_fixed")),
    writing("io_uring SPLICE from a pipe", _io_uring_splice),
    writing("io_submit PWRITE (AIO)", _aio),
    writing("io_submit PWRITE (AIO), O_DIRECT", _with_flag(os.O_DIRECT, _aio)),
)

UNSUPPORTED = "EOPNOTSUPP"
CLONES: tuple[Attack, ...] = (
    Attack("ioctl(FICLONE) to a file of the mount", _clone_out(FICLONE), Aim.READ, "EOPNOTSUPP", "EBADF", "EOPNOTSUPP"),
    Attack("ioctl(FICLONERANGE) likewise", _clone_out(FICLONERANGE), Aim.READ, "EOPNOTSUPP", "EBADF", "EOPNOTSUPP"),
    Attack(
        "ioctl(FICLONE) from a file of the mount", _clone_in(FICLONE), Aim.WRITE, UNSUPPORTED, UNSUPPORTED, UNSUPPORTED
    ),
    Attack(
        "ioctl(FICLONERANGE) likewise, from", _clone_in(FICLONERANGE), Aim.WRITE, UNSUPPORTED, UNSUPPORTED, UNSUPPORTED
    ),
    Attack("ioctl(FIDEDUPERANGE) with a file of the mount", _dedupe, Aim.NEITHER, "EOPNOTSUPP", "EINVAL", "EOPNOTSUPP"),
)

SIZES: tuple[Attack, ...] = (
    _handle("ftruncate to 0", _ftruncate(0), WORKS, "EPERM"),
    _handle("ftruncate, one page less", _ftruncate(FILE_BYTES - PAGE), WORKS, "EPERM"),
    _handle("ftruncate, one page more", _ftruncate(FILE_BYTES + PAGE), WORKS, "EPERM"),
    _handle("ftruncate, not to a page", _ftruncate(FILE_BYTES - 1), WORKS, "EINVAL"),
    _handle("fallocate(PUNCH_HOLE) of half a page", _fallocate(PUNCH_HOLE | KEEP_SIZE, 0, PAGE // 2), WORKS, "EINVAL"),
    _handle("fallocate(PUNCH_HOLE) past the end", _fallocate(PUNCH_HOLE | KEEP_SIZE, FILE_BYTES), WORKS, WORKS),
    _handle("fallocate(0) over what is there", _fallocate(0), WORKS, WORKS),
    _handle("fallocate(0) past the end", _fallocate(0, FILE_BYTES), WORKS, "EINVAL"),
    _handle("fallocate(KEEP_SIZE) past the end", _fallocate(KEEP_SIZE, FILE_BYTES), WORKS, "EINVAL"),
    _handle("fallocate(ZERO_RANGE)", _fallocate(ZERO_RANGE), "EOPNOTSUPP", "EOPNOTSUPP"),
    _handle("fallocate(ZERO_RANGE, KEEP_SIZE)", _fallocate(ZERO_RANGE | KEEP_SIZE), "EOPNOTSUPP", "EOPNOTSUPP"),
    _handle("fallocate(COLLAPSE_RANGE)", _fallocate(COLLAPSE_RANGE), "EOPNOTSUPP", "EOPNOTSUPP"),
    _handle("fallocate(INSERT_RANGE)", _fallocate(INSERT_RANGE), "EOPNOTSUPP", "EOPNOTSUPP"),
    _handle("fallocate(UNSHARE_RANGE)", _fallocate(UNSHARE_RANGE), "EOPNOTSUPP", "EOPNOTSUPP"),
)
