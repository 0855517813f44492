"""Every way to come to a file without a handle for reading: reopening, renaming, executing, mounting, attaching."""

import ctypes
import errno
import fcntl
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.attack.syscalls import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_FOLLOW, FileHandle, call
from tests.attack.table import Aim, Attack, by_path
from tests.attack.target import OTHER, PAGE, WORKS, Action, Target, child_that_waits

LOOP_CTL_GET_FREE, LOOP_CONFIGURE, LO_FLAGS_AUTOCLEAR = 0x4C82, 0x4C0A, 4
CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 4096, 16384, 1 << 18
FAN_OPEN, FAN_MARK_ADD = 0x20, 1
FS_IOC_FIEMAP, FIBMAP, FS_IOC_GETFLAGS = 0xC020660B, 1, 0x80086601
FS_IOC_FSGETXATTR, FS_IOC_ENABLE_VERITY, FS_IOC_GETVERSION = 0x801C581F, 0x40806685, 0x80087601
IN_ALL_EVENTS = 0xFFF


def _pread(t: Target, fd: int) -> None:
    call("pread", fd, t.address(), PAGE, 0)


def _open_for_reading(flags: int) -> Action:
    return lambda t: _pread(t, t.open(flags))


def _reopen(how: str, flags: int) -> Action:
    """An own handle, opened again through /proc."""

    def attack(t: Target) -> None:
        held = t.open(flags)
        if how == "pid":
            with child_that_waits() as pid:
                _pread(t, os.open(f"/proc/{pid}/fd/{held}", os.O_RDONLY))
        else:
            _pread(t, os.open(f"/proc/self/fd/{held}", os.O_RDONLY))

    return attack


def _read_o_path(t: Target) -> None:
    _pread(t, t.open(os.O_PATH))


def _reopen_after_setuid(t: Target) -> None:
    held = t.open(os.O_WRONLY)
    if os.geteuid() == 0:
        os.setresuid(OTHER, OTHER, OTHER)
        call("prctl", 4, 1, 0, 0, 0)
    _pread(t, os.open(f"/proc/self/fd/{held}", os.O_RDWR))


def _open_with_access_mode_3(t: Target) -> None:
    """3 asks for the permissions of both and gives neither: a handle for ioctls."""
    _pread(t, t.open(3))


def _by_handle(t: Target) -> None:
    directory = os.open(t.here, os.O_RDONLY)
    _pread(t, FileHandle(t.path).open(directory, os.O_RDONLY))


def _truncate(size: int) -> Action:
    return lambda t: os.truncate(t.path, size)


def _open_only(flags: int) -> Action:
    return lambda t: os.close(t.open(flags))


def _tmpfile(t: Target) -> None:
    fd = os.open(t.here, os.O_TMPFILE | os.O_RDWR, 0o600)
    call("linkat", AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, os.fsencode(t.path), AT_SYMLINK_FOLLOW)


def _linkat(t: Target) -> None:
    """A new name for what a write-only handle holds."""
    held = t.open(os.O_WRONLY)
    name = f"{t.here}/{os.getpid()}"
    call("linkat", AT_FDCWD, f"/proc/self/fd/{held}".encode(), AT_FDCWD, name.encode(), AT_SYMLINK_FOLLOW)
    try:
        fd = os.open(name, os.O_RDONLY)
    finally:
        os.unlink(name)
    _pread(t, fd)


def _execve(t: Target) -> None:
    os.execv(t.path, ["x"])


def _execveat(t: Target) -> None:
    """Of an O_PATH handle, which needs no permission to read."""
    arguments = (ctypes.c_char_p * 2)(b"x", None)
    call("execveat", t.open(os.O_PATH), b"", arguments, (ctypes.c_char_p * 1)(None), AT_EMPTY_PATH)


def _swapon(t: Target) -> None:
    call("swapon", os.fsencode(t.path), 0)


def attach_loop(backing: int) -> int:
    """A loop device over a handle; it goes when the returned handle to it is closed."""
    control = os.open("/dev/loop-control", os.O_RDWR)
    try:
        while True:
            device = os.open(f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}", os.O_RDWR)
            config = bytearray(304)
            struct.pack_into("II", config, 0, backing, PAGE)
            struct.pack_into("I", config, 8 + 52, LO_FLAGS_AUTOCLEAR)
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # someone else was quicker
                    raise
            else:
                return device
    finally:
        os.close(control)


def _loop(flags: int, *, write: bool = False) -> Action:
    """The kernel reads a loop device's file without asking whether its handle may."""

    def attack(t: Target) -> None:
        os.close(os.open("/dev/loop-control", os.O_RDWR))
        device = attach_loop(t.open(flags))
        if write:
            call("pwrite", device, t.payload(), PAGE, 0)
            os.fsync(device)
        else:
            _pread(t, device)

    return attack


def _bind_mount(t: Target) -> None:
    """In a mount namespace of its own, bound over another file."""
    _own_mount_namespace()
    place = t.ordinary()
    call("mount", os.fsencode(t.path), place.encode(), None, MS_BIND, None)
    t.take_file(place)


def _overlay(t: Target) -> None:
    """Its directory as the lower layer of an overlay."""
    _own_mount_namespace()
    place = Path(t.outside, f"overlay{os.getpid()}")
    place.mkdir()
    call("mount", b"tmpfs", os.fsencode(place), b"tmpfs", 0, None)
    for name in ("upper", "work", "merged"):
        (place / name).mkdir()
    options = f"lowerdir={Path(t.path).parent},upperdir={place}/upper,workdir={place}/work"
    call("mount", b"overlay", os.fsencode(place / "merged"), b"overlay", 0, options.encode())
    t.take_file(str(place / "merged" / Path(t.path).name))


def _own_mount_namespace() -> None:
    call("unshare", CLONE_NEWNS)
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)


def _fanotify(t: Target) -> None:
    """Every event brings its listener a handle of its own to the file."""
    group = call("fanotify_init", 0, os.O_RDONLY)
    call("fanotify_mark", group, FAN_MARK_ADD, FAN_OPEN, AT_FDCWD, os.fsencode(t.path))
    os.close(t.open(os.O_WRONLY))
    event = os.read(group, 24)
    (fd,) = struct.unpack_from("i", event, 16)
    _pread(t, fd)


def _inotify(t: Target) -> None:
    watcher = call("inotify_init1", 0)
    call("inotify_add_watch", watcher, os.fsencode(t.path), IN_ALL_EVENTS)
    os.close(t.open(os.O_WRONLY))
    t.take(os.read(watcher, PAGE))


def _xattrs(t: Target) -> None:
    for name in os.listxattr(t.path):
        t.take(os.getxattr(t.path, name))
    t.take(os.getxattr(t.path, "user.memfsd.seals"))


def _ioctl(request: int, argument: bytes) -> Action:
    return lambda t: t.take(fcntl.ioctl(t.fd, request, argument))


def _handle_ioctl(name: str, request: int, argument: bytes, outcome: str, **more: Any) -> Attack:
    return Attack(
        f"ioctl({name})", _ioctl(request, argument), Aim.NEITHER, outcome, more.pop("blind", outcome), outcome, **more
    )


def _read_by_path(call_: str, action: Action, unprivileged: str | None = None) -> Attack:
    return by_path(call_, action, Aim.READ, WORKS, "EPERM", "EPERM", unprivileged)


PATHS: tuple[Attack, ...] = (
    _read_by_path("open(O_RDONLY), pread", _open_for_reading(os.O_RDONLY)),
    _read_by_path("open(O_RDWR), pread", _open_for_reading(os.O_RDWR)),
    _read_by_path("open(O_RDWR|O_DIRECT|O_APPEND), pread", _open_for_reading(os.O_RDWR | os.O_DIRECT | os.O_APPEND)),
    _read_by_path("open(O_RDWR|O_CREAT), pread", _open_for_reading(os.O_RDWR | os.O_CREAT)),
    by_path("open with access mode 3, pread", _open_with_access_mode_3, Aim.NEITHER, "EBADF", "EBADF", "EBADF"),
    by_path("open(O_PATH), pread", _read_o_path, Aim.NEITHER, "EBADF", "EBADF", "EBADF"),
    _read_by_path("open(O_PATH), reopen /proc/self/fd/N", _reopen("self", os.O_PATH)),
    _read_by_path("open(O_WRONLY), reopen /proc/self/fd/N", _reopen("self", os.O_WRONLY)),
    _read_by_path("open(O_WRONLY), reopen /proc/PID/fd/N of another process", _reopen("pid", os.O_WRONLY)),
    _read_by_path("open(O_WRONLY), setuid, reopen read-write", _reopen_after_setuid),
    _read_by_path("name_to_handle_at, open_by_handle_at", _by_handle, unprivileged="EPERM"),
    replace(_read_by_path("linkat of a write-only handle, open the new name", _linkat), stranger="EPERM"),
    by_path("open(O_WRONLY|O_TRUNC)", _open_only(os.O_WRONLY | os.O_TRUNC), Aim.NEITHER, WORKS, "EPERM", "EPERM"),
    by_path("open(O_RDWR|O_TRUNC)", _open_only(os.O_RDWR | os.O_TRUNC), Aim.NEITHER, WORKS, "EPERM", "EPERM"),
    by_path("creat", _open_only(os.O_WRONLY | os.O_CREAT | os.O_TRUNC), Aim.NEITHER, WORKS, "EPERM", "EPERM"),
    by_path("open(O_TMPFILE), linkat over it", _tmpfile, Aim.NEITHER, "EEXIST", "EEXIST", "EEXIST"),
    by_path("truncate to 0", _truncate(0), Aim.NEITHER, WORKS, "EPERM", "EPERM"),
    by_path("truncate, not to a page", _truncate(1), Aim.NEITHER, WORKS, "EINVAL", "EINVAL"),
    by_path("execve", _execve, Aim.NEITHER, "ENOEXEC", "EPERM", "ETXTBSY"),
    by_path("execveat of an O_PATH handle", _execveat, Aim.NEITHER, "ENOEXEC", "EPERM", "ETXTBSY"),
    by_path("swapon", _swapon, Aim.NEITHER, "EINVAL", "EPERM", "EPERM", unprivileged="EPERM"),
    by_path(
        "loop device, write-only handle, read", _loop(os.O_WRONLY), Aim.READ, WORKS, "EIO", "EIO", unprivileged="EACCES"
    ),
    by_path(
        "loop device, read-write handle, read", _loop(os.O_RDWR), Aim.READ, WORKS, "EPERM", "EIO", unprivileged="EACCES"
    ),
    by_path(
        "loop device, write-only handle, write",
        _loop(os.O_WRONLY, write=True),
        Aim.WRITE,
        WORKS,
        "EIO",
        "EIO",
        unprivileged="EACCES",
    ),
    _read_by_path("bind mount, open, read", _bind_mount, unprivileged="EPERM"),
    _read_by_path("overlayfs with it below, open, read", _overlay, unprivileged="EPERM"),
    _read_by_path("fanotify event's handle, pread", _fanotify, unprivileged="EPERM"),
    by_path("inotify", _inotify, Aim.NEITHER, WORKS, WORKS, WORKS),
    by_path("listxattr, getxattr of each", _xattrs, Aim.NEITHER, WORKS, WORKS, WORKS),
)

IOCTLS: tuple[Attack, ...] = (
    _handle_ioctl("FS_IOC_FIEMAP", FS_IOC_FIEMAP, struct.pack("QQIIII", 0, PAGE, 0, 0, 0, 0), "EOPNOTSUPP"),
    _handle_ioctl("FIBMAP", FIBMAP, bytes(4), WORKS, unprivileged=dict.fromkeys(("ordinary", "blind", "rw"), "EPERM")),
    # For these two the kernel opens the file again, for reading.
    _handle_ioctl("FS_IOC_GETFLAGS", FS_IOC_GETFLAGS, bytes(8), "ENOTTY", blind="EPERM", blind_rw="ENOTTY"),
    _handle_ioctl("FS_IOC_FSGETXATTR", FS_IOC_FSGETXATTR, bytes(28), "ENOTTY", blind="EPERM", blind_rw="ENOTTY"),
    _handle_ioctl("FS_IOC_GETVERSION", FS_IOC_GETVERSION, bytes(8), "ENOTTY"),
    _handle_ioctl("FS_IOC_ENABLE_VERITY", FS_IOC_ENABLE_VERITY, bytes(128), "ENOTTY"),
    _handle_ioctl("of an unknown number", 0xC008DEAD, bytes(8), "ENOTTY"),
)
