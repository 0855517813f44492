"""Files on a memfsd mount, as programs use them: created sealed, punched, looked at."""

import os
from dataclasses import dataclass

from memfsd.common.fields import counted
from memfsd.common.linux import fallocate, punch_hole
from memfsd.common.mounts import mount_of
from memfsd.common.quote import quoted
from memfsd.uapi import names
from memfsd.uapi.errors import Refused
from memfsd.uapi.names import FALLOC_FL_KEEP_SIZE
from memfsd.uapi.units import parse_size

Path = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class FileStat:
    """What memfsd says of a regular file, and stat(2).

    size in bytes, blocks of 512 bytes. seals, numa, owner: as the attributes user.memfsd.*. page_size in bytes. frames:
    in 4 KiB, by what they are (private, pending, quarantined, swapped, shared ...).
    """

    inode: int
    size: int
    blocks: int
    seals: str
    page_size: int
    numa: str
    owner: str
    frames: dict[str, int]


def create(path: Path, size: int | str = 0, *, guest: bool = True, page_size: int | str | None = None) -> str:
    """A new file on a memfsd mount; its path. guest: sealed as guest private memory. size and page_size: bytes, or text
    as "64M"; the size of a sealed file is set once, to whole pages.

    If a step is refused, no file is left. OSError: EINVAL not on a memfsd mount, a page size that does not exist, a
    size that is not whole pages; EEXIST; ENOSPC; errors of open(2).
    """
    path = os.fspath(path)
    on_a_mount(os.path.dirname(os.path.abspath(path)))
    create_file(path, size=_bytes(size), guest=guest, page_size=None if page_size is None else _bytes(page_size))
    return path


def create_file(path: str, *, size: int, guest: bool, page_size: int | None) -> None:
    """Seals, then chooses the page size, then sets the size; if one of them is refused, no file is left."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        if guest and b"guest" not in os.getxattr(fd, names.XATTR_SEALS).split(b","):
            os.setxattr(fd, names.XATTR_SEALS, b"guest")
        if page_size is not None:
            os.setxattr(fd, names.XATTR_PAGE_SIZE, str(page_size).encode())
        if size:
            os.ftruncate(fd, size)
    except OSError as error:
        os.unlink(path)
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def seal(path: Path, seals: str = "guest") -> None:
    """Add seals (guest, shrink, grow, write, future-write, seal; several with commas), forever.

    OSError: EINVAL not on a memfsd mount or an unknown seal; EBUSY the file is not empty, or open for reading; EPERM
    sealed against seals.
    """
    on_a_mount(path)
    os.setxattr(path, names.XATTR_SEALS, seals.encode())


def stat(path: Path) -> FileStat:
    """OSError: EINVAL not on a memfsd mount, errors of stat(2); ENODATA for what is no regular file."""
    on_a_mount(path)
    status = os.stat(path)
    seals, page_size, numa, owner, frames = (
        os.getxattr(path, name).decode()
        for name in (
            names.XATTR_SEALS,
            names.XATTR_PAGE_SIZE,
            names.XATTR_NUMA,
            names.XATTR_OWNER,
            names.XATTR_FRAMES,
        )
    )
    return FileStat(
        status.st_ino, status.st_size, status.st_blocks, seals, int(page_size), numa, owner, counted(frames)
    )


def punch(path: Path, offset: int, length: int) -> None:
    """fallocate(PUNCH_HOLE | KEEP_SIZE), bytes: the range is taken back from the guest, and reads as zeros after.

    OSError: EINVAL not on a memfsd mount, or a part of a page of a sealed file; ETIMEDOUT the VM does not answer.
    """
    with _opened(path) as fd:
        punch_hole(fd, offset, length)


def allocate(path: Path, offset: int, length: int) -> None:
    """fallocate(KEEP_SIZE), bytes: frames for the range. OSError: ENOSPC the pool is full; as punch()."""
    with _opened(path) as fd:
        fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, length)


def on_a_mount(path: Path) -> None:
    """EINVAL (OSError) where another file system is: attributes there would be kept, and mean nothing."""
    try:
        mount_of(os.fspath(path))
    except Refused as refused:
        raise OSError(refused.errno, f"{quoted(os.fspath(path))}: {refused.reason}") from None


class _opened:  # noqa: N801 - used as a function
    """A descriptor for the time of a block: write-only, as sealed files are opened."""

    def __init__(self, path: Path) -> None:
        on_a_mount(path)
        self._fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _bytes(size: int | str) -> int:
    return parse_size(size) if isinstance(size, str) else size
