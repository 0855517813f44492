"""fallocate(2), lseek(2) and ioctl(2) on a pyfuse3 mount.

pyfuse3 has no handlers for them. The extension `_hook` adds them to the operation table that pyfuse3 gives
to libfuse (its opening comment says how); that works only when it is loaded before pyfuse3, so import this
module first, and call `check_active` after `pyfuse3.init`.

    async with serving(handlers):
        await pyfuse3.main()
    pyfuse3.close()

Every request is answered once: with the handler's result, with the errno of `Refused` or
`pyfuse3.FUSEError`, with EIO and a logged traceback for any other exception, with ENOTCONN when the
serving ends first. ENOSYS would turn the operation off for the life of the mount (fs/fuse/file.c).
"""

import errno
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple, Protocol

import trio

from memfsd.uapi.errors import Refused

if "pyfuse3" in sys.modules and "memfsd.fuse._hook" not in sys.modules:
    raise ImportError("import memfsd.fuse.hook before pyfuse3: pyfuse3 is bound to libfuse already")
_flags = sys.getdlopenflags()
sys.setdlopenflags(_flags | os.RTLD_GLOBAL)
try:
    from . import _hook
finally:
    sys.setdlopenflags(_flags)

import pyfuse3 as pyfuse3  # noqa: E402 - bound to libfuse after _hook; others import it from here

log = logging.getLogger("memfsd.fuse")

_MAX_ERRNO = 511
"""The kernel takes no larger one (fs/fuse/dev.c)."""


class IoctlReply(NamedTuple):
    """data reaches the caller also with an errno: it is what ioctl(2) copies out before it fails."""

    data: bytes = b""
    errno: int = 0


class Handlers(Protocol):
    """What serves the requests. Offsets and lengths in bytes; ino and fh as pyfuse3 gave them out."""

    async def fallocate(self, ino: int, fh: int, mode: int, offset: int, length: int, clears_setid: bool) -> None:
        """Runs as its own task and may wait; cancelled when the serving ends. clears_setid: see `clears_setid`.

        The kernel lets through the modes KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE with offset >= 0, length > 0.
        """

    async def lseek(self, ino: int, fh: int, offset: int, whence: int) -> int:
        """The offset for SEEK_DATA or SEEK_HOLE, the only ones that reach a FUSE server. A task too."""

    async def ioctl(self, ino: int, fh: int, cmd: int, flags: int, data: bytes, out_size: int) -> "IoctlReply":
        """At most out_size bytes for the caller; data and out_size follow from the number cmd. A task too.

        flags are the kernel's FUSE_IOCTL_*: COMPAT 1, DIR 16 (ino is a directory).
        """

    def write_in_place(self, fh: int, offset: int, data: memoryview) -> int | None:
        """A write(2), now: bytes written, or below 0 an errno that refuses it. data is libfuse's, until it returns.

        None leaves it to pyfuse3's handler `write`, and so do exceptions.
        """


def check_active() -> None:
    """RuntimeError when pyfuse3.init did not come through the hook."""
    if not _hook.active():
        raise RuntimeError(
            "fallocate, lseek and ioctl did not get into libfuse: import memfsd.fuse.hook before pyfuse3"
            " and call this after pyfuse3.init"
        )


def clears_setid() -> bool:
    """Whether the request that just came takes away the file's setuid and setgid bits, as a write by one who may not
    keep them does. Ask before the handler's first await: it is about the last request received.
    """
    return _hook.clears_setid()


def is_writeback() -> bool:
    """Whether the write that just came is the kernel's, of what was stored through a mapping. Ask as `clears_setid`."""
    return _hook.is_writeback()


def is_by_handle() -> bool:
    """Whether the getattr that just came is one of read(2), and none of stat(2). Ask as `clears_setid`."""
    return _hook.is_by_handle()


def no_readahead() -> None:
    """Call before the mount. The kernel asks for pages of files one by one, as they are touched, and for a file's
    attributes before each read(2) of a file whose attributes it does not cache."""
    _hook.no_readahead()


def has_pending() -> bool:
    """Whether the kernel has requests for us that were not received yet."""
    return _hook.has_pending()


def write_back(ino: int, offset: int, length: int) -> None:
    """Have the kernel write back what was stored through mappings in a range, and drop its pages; length 0: to the end.

    Waits for our answers to those writes and to reads of the same pages: never call it on the loop. What cannot be
    written (ENOSPC) is dropped all the same, and lost.
    """
    _hook.write_back(ino, offset, length)


@asynccontextmanager
async def serving(handlers: Handlers) -> AsyncIterator[None]:
    """Serve the three operations for the body of the `async with`; leave it before pyfuse3.close()."""
    async with trio.open_nursery() as nursery:
        server = _Server(handlers, nursery)
        _hook.set_handlers(server.fallocate, server.lseek, server.ioctl, handlers.write_in_place)
        try:
            yield
        finally:
            # Requests that come now get ENOTCONN from _hook; those under way from their cancelled tasks.
            _hook.set_handlers(None, None, None)
            nursery.cancel_scope.cancel()


class _Server:
    """Takes requests from _hook, in the trio thread, and sees to it that each is answered."""

    def __init__(self, handlers: Handlers, nursery: trio.Nursery) -> None:
        self._handlers = handlers
        self._nursery = nursery

    def fallocate(self, request: int, ino: int, fh: int, mode: int, offset: int, length: int) -> None:
        self._nursery.start_soon(
            self._fallocate, request, ino, fh, mode, offset, length, clears_setid(), name="fallocate"
        )

    async def _fallocate(
        self, request: int, ino: int, fh: int, mode: int, offset: int, length: int, killing: bool
    ) -> None:
        try:
            await self._handlers.fallocate(ino, fh, mode, offset, length, killing)
        except Exception as error:
            _hook.reply_err(request, _errno_of(error, "fallocate"))
        except BaseException:
            _hook.reply_err(request, errno.ENOTCONN)
            raise
        else:
            _hook.reply_err(request, 0)

    def lseek(self, request: int, ino: int, fh: int, offset: int, whence: int) -> None:
        self._nursery.start_soon(self._lseek, request, ino, fh, offset, whence, name="lseek")

    async def _lseek(self, request: int, ino: int, fh: int, offset: int, whence: int) -> None:
        try:
            _hook.reply_lseek(request, await self._handlers.lseek(ino, fh, offset, whence))
        except Exception as error:
            _hook.reply_err(request, _errno_of(error, "lseek"))
        except BaseException:
            _hook.reply_err(request, errno.ENOTCONN)
            raise

    def ioctl(self, request: int, ino: int, fh: int, cmd: int, flags: int, data: bytes, out_size: int) -> None:
        self._nursery.start_soon(self._ioctl, request, ino, fh, cmd, flags, data, out_size, name="ioctl")

    async def _ioctl(self, request: int, ino: int, fh: int, cmd: int, flags: int, data: bytes, out_size: int) -> None:
        try:
            reply = await self._handlers.ioctl(ino, fh, cmd, flags, data, out_size)
            if len(reply.data) > out_size:
                raise ValueError(f"ioctl {cmd:#x} has room for {out_size} bytes, not {len(reply.data)}")
            _hook.reply_ioctl(request, -reply.errno, reply.data)
        except Exception as error:
            _hook.reply_err(request, _errno_of(error, "ioctl"))
        except BaseException:
            _hook.reply_err(request, errno.ENOTCONN)
            raise


def _errno_of(error: Exception, operation: str) -> int:
    if isinstance(error, Refused | pyfuse3.FUSEError) and 0 < error.errno <= _MAX_ERRNO:
        return error.errno
    log.error("%s failed", operation, exc_info=error)
    return errno.EIO
