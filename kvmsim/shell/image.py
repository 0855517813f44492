"""A host file that becomes the initial image of a VM."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from memfsd.common.quote import quoted
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SIZE


class Image:
    """The last page is filled up with zeros. size: bytes."""

    def __init__(self, fd: int, name: str, size: int) -> None:
        self._fd = fd
        self._name = name
        self.size = size
        self.page_count = -(-size // PAGE_SIZE)

    def read(self, offset: int, length: int) -> bytes:
        """EIO when the file has shrunk."""
        wanted = min(length, self.size - offset)
        data = bytearray()
        while len(data) < wanted:
            chunk = os.pread(self._fd, wanted - len(data), offset + len(data))
            if not chunk:
                raise Refused(errno.EIO, f"{self._name}: it was truncated meanwhile: populate again")
            data += chunk
        return bytes(data) + bytes(length - wanted)


@contextmanager
def open_image(path: str) -> Iterator[Image]:
    """EINVAL: not a regular file, or an empty one."""
    fd, name = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), quoted(path)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise Refused(errno.EINVAL, f"{name}: an image is a regular file, whose size is known: copy it to one")
        if status.st_size == 0:
            raise Refused(errno.EINVAL, f"{name}: the file is empty: give at least one byte")
        yield Image(fd, name, status.st_size)
    finally:
        os.close(fd)
