"""The smallest pyfuse3 filesystem: `python -m benchlib.minimal_server [--memfd] MOUNTPOINT`.

A root directory with one file in it. The kernel may cache no attribute and no name, so that every stat is a request.
A write is refused with EPERM; with --memfd the file's data lives in a memfd and can be read, written and truncated.
"""

import argparse
import errno
import os
import signal
import stat
from collections.abc import AsyncIterator

import pyfuse3
import trio

from benchlib.minimal_fuse import FILE_NAME

_FILE_INO = pyfuse3.InodeT(pyfuse3.ROOT_INODE + 1)
_HANDLE = pyfuse3.FileHandleT(1)


class RejectingFile(pyfuse3.Operations):
    """One file that refuses every write; its attributes never change, so they are made once."""

    def __init__(self) -> None:
        super().__init__()
        self._attributes = {
            pyfuse3.ROOT_INODE: _attributes(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755),
            _FILE_INO: _attributes(_FILE_INO, stat.S_IFREG | 0o644),
        }

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        return self._attributes[inode]

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name != FILE_NAME.encode():
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(_FILE_INO, ctx)

    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=_HANDLE, direct_io=True)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        raise pyfuse3.FUSEError(errno.EPERM)


class MemfdFile(RejectingFile):
    """The same with data: reads, writes and truncations go to a memfd, through the kernel's page cache."""

    def __init__(self) -> None:
        super().__init__()
        self._memfd = os.memfd_create(FILE_NAME)

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        attributes = self._attributes[inode]
        if inode == _FILE_INO:
            data = os.fstat(self._memfd)
            attributes.st_size, attributes.st_blocks = data.st_size, data.st_blocks
        return attributes

    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        if fields.update_size and inode == _FILE_INO:
            os.ftruncate(self._memfd, attr.st_size)
        return await self.getattr(inode, ctx)

    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=_HANDLE)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return os.pread(self._memfd, size, off)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        return os.pwrite(self._memfd, buf, off)


def _attributes(inode: pyfuse3.InodeT, mode: int) -> pyfuse3.EntryAttributes:
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = inode
    attributes.st_mode = pyfuse3.ModeT(mode)
    attributes.st_nlink = 1
    attributes.st_uid, attributes.st_gid = os.getuid(), os.getgid()
    attributes.attr_timeout = attributes.entry_timeout = 0
    return attributes


async def serve(mountpoint: str, memfd: bool) -> None:
    """Serve the filesystem until SIGTERM, SIGINT or umount ends it, and leave no mount."""
    operations = MemfdFile() if memfd else RejectingFile()
    # Listening comes before mounting: a SIGTERM in between would leave a dead mount behind.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        pyfuse3.init(operations, mountpoint, {*pyfuse3.default_options, "fsname=minimal", "subtype=minimal"})
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_terminate_on, signals)
                await pyfuse3.main()
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=True)


async def _terminate_on(signals: AsyncIterator[int]) -> None:
    async for _ in signals:
        pyfuse3.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(prog="minimal_server", description="The smallest pyfuse3 filesystem.")
    parser.add_argument("--memfd", action="store_true", help="keep the file's data in a memfd")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    arguments = parser.parse_args()
    trio.run(serve, arguments.mountpoint, arguments.memfd)


if __name__ == "__main__":
    main()
