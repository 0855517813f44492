"""Host files that become memory of a VM: its initial image, and a program that a vCPU boots."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvmsim.cpu import guests
from kvmsim.cpu.x86.program import Image as Program
from kvmsim.cpu.x86.program import parse
from memfsd.common.quote import quoted
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_BOOT_BYTES
from memfsd.uapi.units import PAGE_SIZE

COMES_ALONG = "guest:"
_GUESTS = Path(guests.__file__).parent


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


def read_program(path: str, at: int | None, entry: int | None) -> Program:
    """guest:NAME is a shipped one. ENOEXEC, EINVAL, EFBIG: no program that fits."""
    if path.startswith(COMES_ALONG):
        path = _guest(path.removeprefix(COMES_ALONG))
    fd, name = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), quoted(path)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Refused(errno.EINVAL, f"{name}: a program is a regular file: copy it to one")
        with os.fdopen(os.dup(fd), "rb") as file:
            content = file.read(MAX_BOOT_BYTES + 1)
    finally:
        os.close(fd)
    if len(content) > MAX_BOOT_BYTES:
        raise Refused(errno.EFBIG, f"{name}: it is larger than {MAX_BOOT_BYTES} bytes: boot a smaller one")
    return parse(path, content, at, entry)


def _guest(name: str) -> str:
    found = sorted(program.stem for program in _GUESTS.glob("*.elf"))
    if name in found:
        return str(_GUESTS / f"{name}.elf")
    if not found:
        raise Refused(errno.ENOENT, f"the guest programs are not built: make -C {_GUESTS} (it needs gcc and binutils)")
    raise Refused(errno.ENOENT, f"there is no guest program {quoted(name)}: choose one of {', '.join(found)}")
