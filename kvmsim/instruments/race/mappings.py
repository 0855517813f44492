"""Which fds belong to mappings: mmap.mmap duplicates the one that it is given, and closes its own when it is collected.

Whoever closes that by its number before has it closed twice, and the second time it is another run's file.
"""

import contextlib
import mmap
import os
import weakref
from collections.abc import Iterator
from typing import Any, Self

_Identity = tuple[int, int] | None
"""Device and inode; None for what is closed."""

_known: list[tuple["weakref.ref[mmap.mmap]", int, _Identity]] = []


class _Mapping(mmap.mmap):
    def __new__(cls, fileno: int, *arguments: Any, **named: Any) -> Self:
        if fileno < 0:
            return super().__new__(cls, fileno, *arguments, **named)
        before = _of_file(fileno)
        made = super().__new__(cls, fileno, *arguments, **named)
        _known[:] = [known for known in _known if known[0]() is not None]
        _known.extend((weakref.ref(made), fd, _identity(fd)) for fd in _of_file(fileno) - before)
        return made


def _of_file(fd: int) -> set[int]:
    identity = _identity(fd)
    return {number for number in map(int, os.listdir("/proc/self/fd")) if _identity(number) == identity}


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Those that are made until the end are known."""
    plain = mmap.mmap
    vars(mmap)["mmap"] = _Mapping
    try:
        yield
    finally:
        vars(mmap)["mmap"] = plain


def owns(fd: int) -> bool:
    """A mapping that is not collected yet will close it."""
    identity = _identity(fd)
    return any(number == fd and of == identity and mapping() is not None for mapping, number, of in _known)


def _identity(fd: int) -> _Identity:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino
