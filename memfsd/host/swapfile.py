"""The swap file: a header, then slots of one blob each.

    offset 0      magic, version, state, slots, bytes of a blob, id of the run, CRC-32 of all that
    offset 4096   slot 0, slot 1, ... of SWAP_BLOB_BYTES each

A daemon marks the file as in use while it runs, and as clean when it ends. One that was killed leaves the mark: the
blobs belong to VMs that are gone, with their keys, so nobody may take them for anything. The file is used again only
when the mount says swap_reset, as mkswap(8) would be run again.
"""

import contextlib
import errno
import fcntl
import logging
import os
import stat
import struct
import zlib
from typing import Protocol

from memfsd.common.linux import fallocate
from memfsd.common.quote import quoted
from memfsd.core.options import SwapOptions
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_SWAP_BYTES, SWAP_BLOB_BYTES
from memfsd.uapi.units import PAGE_SHIFT, format_size

log = logging.getLogger("memfsd")

_MAGIC = b"memfsdSW"
_VERSION = 1
_CLEAN, _IN_USE = 1, 2
_HEADER = struct.Struct("<8sIIQI16s")
_CRC = struct.Struct("<I")
_HEADER_BYTES = 4096


class SwapSpace(Protocol):
    """Blobs of SWAP_BLOB_BYTES by slot. Refused: ENOSPC the disk is full, EIO and others what the file says."""

    slot_count: int

    def write(self, slot: int, blob: bytes) -> None: ...
    def read(self, slot: int) -> bytes: ...
    def close(self) -> None: ...


class SwapFile:
    """An open swap file that is marked as in use. Safe from any thread: a blob is one pread or pwrite."""

    def __init__(self, fd: int, path: str, slot_count: int) -> None:
        self.slot_count = slot_count
        self._fd = fd
        self._path = path
        self._run = os.urandom(16)
        self._mark(_IN_USE)

    def write(self, slot: int, blob: bytes) -> None:
        assert 0 <= slot < self.slot_count and len(blob) == SWAP_BLOB_BYTES
        view, at = memoryview(blob), _offset_of(slot)
        try:
            while view:  # short when the disk gets full: the next one says so
                done = os.pwrite(self._fd, view, at)
                view, at = view[done:], at + done
        except OSError as error:
            raise self._failed("written", error) from None

    def read(self, slot: int) -> bytes:
        assert 0 <= slot < self.slot_count
        try:
            blob = os.pread(self._fd, SWAP_BLOB_BYTES, _offset_of(slot))
        except OSError as error:
            raise self._failed("read", error) from None
        if len(blob) != SWAP_BLOB_BYTES:
            raise Refused(errno.EIO, f"swap file {quoted(self._path)} was truncated: slot {slot} is lost")
        return blob

    def close(self) -> None:
        """Nobody's pages are in it any more."""
        with contextlib.suppress(OSError):
            self._mark(_CLEAN)
        os.close(self._fd)

    def _mark(self, state: int) -> None:
        _write_header(self._fd, state, self.slot_count, self._run)

    def _failed(self, what: str, error: OSError) -> Refused:
        return Refused(error.errno or errno.EIO, f"swap file {quoted(self._path)} cannot be {what}: {error.strerror}")


def open_swap(asked: SwapOptions, mountpoint: str) -> SwapFile:
    """The swap file of this mount, marked as in use.

    An empty or absent file is made for swap_size; one of ours that is clean is used again; any other is refused, with
    nothing changed: EUCLEAN one that a daemon left behind that did not end, EBUSY one in use, EINVAL on the mount
    itself, foreign, truncated, too small, or no regular file; ENOSPC no room for it on its disk.
    """
    shown = quoted(asked.path)
    real = os.path.realpath(asked.path)
    if os.path.commonpath([real, mountpoint]) == mountpoint:
        raise Refused(
            errno.EINVAL, f"swap file {shown} is on the mount itself, which would wait for itself: choose another place"
        )
    existed = os.path.lexists(real)
    try:
        fd = os.open(real, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
    except OSError as error:
        raise Refused(error.errno or errno.EIO, f"swap file {shown}: {error.strerror}") from None
    try:
        slot_count = _claim(fd, asked, shown)
        return SwapFile(fd, asked.path, slot_count)
    except (Refused, OSError) as error:
        if not existed:
            with contextlib.suppress(OSError):
                os.unlink(real)
        os.close(fd)
        if isinstance(error, OSError):
            raise Refused(error.errno or errno.EIO, f"swap file {shown}: {error.strerror}") from None
        raise


def _claim(fd: int, asked: SwapOptions, shown: str) -> int:
    """How many slots it has for us. The lock belongs to the open file description: a fork inherits it."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise Refused(errno.EINVAL, f"swap file {shown} is not a regular file: name one, or a name that is free")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Refused(errno.EBUSY, f"swap file {shown} is in use by another memfsd: name another file") from None
    if status.st_mode & 0o077:
        log.warning("swap file %s: others may open it (mode %03o): chmod 600 it", shown, status.st_mode & 0o777)
    if status.st_size == 0:
        return _make(fd, asked, shown)
    state, slot_count = _read_header(fd, shown)
    if asked.reset:
        return _make(fd, asked if asked.size_bytes else SwapOptions(asked.path, slot_count << PAGE_SHIFT), shown)
    if state != _CLEAN:
        raise Refused(
            errno.EUCLEAN,
            f"swap file {shown} was left by a memfsd that did not end, and what it holds belongs to nobody: mount with"
            " swap_reset to empty it, or remove it",
        )
    if status.st_size < _offset_of(slot_count):
        raise Refused(
            errno.EINVAL,
            f"swap file {shown} is truncated: {status.st_size} of {_offset_of(slot_count)} bytes: mount with swap_reset"
            " to make it again, or remove it",
        )
    wanted = asked.size_bytes >> PAGE_SHIFT
    if wanted > slot_count:
        raise Refused(
            errno.EINVAL,
            f"swap file {shown} holds {format_size(slot_count << PAGE_SHIFT)}, less than swap_size: leave that out, or"
            " mount with swap_reset to make it larger",
        )
    return wanted or slot_count


def _make(fd: int, asked: SwapOptions, shown: str) -> int:
    """Initialize it: all of its space is allocated now, so that a disk that fills up later cannot fail a page-out."""
    if not asked.size_bytes:
        raise Refused(errno.EINVAL, f"swap file {shown} is empty: say how much it is to hold with swap_size=SIZE")
    slot_count = asked.size_bytes >> PAGE_SHIFT
    size = _offset_of(slot_count)
    os.ftruncate(fd, 0)
    try:
        fallocate(fd, 0, 0, size)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
            raise Refused(
                error.errno or errno.EIO,
                f"swap file {shown}: its disk has no room for {size} bytes ({error.strerror}): give less swap_size",
            ) from None
        os.ftruncate(fd, size)
    return slot_count


def _read_header(fd: int, shown: str) -> tuple[int, int]:
    """State and slots. EINVAL: it is no swap file of ours, or of another version."""
    head = os.pread(fd, _HEADER.size + _CRC.size, 0)
    if len(head) < _HEADER.size + _CRC.size or not head.startswith(_MAGIC):
        raise Refused(errno.EINVAL, f"{shown} is not a swap file of memfsd: name an empty file, or a name that is free")
    _, version, state, slot_count, blob_bytes, _ = _HEADER.unpack_from(head)
    (crc,) = _CRC.unpack_from(head, _HEADER.size)
    is_sound = crc == zlib.crc32(head[: _HEADER.size]) and 0 < slot_count <= MAX_SWAP_BYTES >> PAGE_SHIFT
    if version != _VERSION or blob_bytes != SWAP_BLOB_BYTES or not is_sound:
        raise Refused(errno.EINVAL, f"swap file {shown} has a header of another version, or a damaged one: remove it")
    return state, slot_count


def _write_header(fd: int, state: int, slot_count: int, run: bytes) -> None:
    head = _HEADER.pack(_MAGIC, _VERSION, state, slot_count, SWAP_BLOB_BYTES, run)
    os.pwrite(fd, head + _CRC.pack(zlib.crc32(head)), 0)
    os.fdatasync(fd)


def _offset_of(slot: int) -> int:
    return _HEADER_BYTES + slot * SWAP_BLOB_BYTES
