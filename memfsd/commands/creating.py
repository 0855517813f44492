"""New files, as memfs create and memfs device make them."""

import os

from memfsd.uapi import names


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
