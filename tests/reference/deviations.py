"""Where memfsd may differ from tmpfs: the whole list, each with its reason. Anything else that differs is a bug.

Never looked at are st_dev, st_ino, the order of directory entries, and times that a clock gave (they are compared
by whether they changed); st_atime is compared where an operation set it, since the kernel's cache serves reads
that memfsd never hears of. Never tried are XATTR_CREATE with XATTR_REPLACE, which pyfuse3 takes for the former
alone, and bytes that a mapping stores behind the end of the file in its last page.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from memfsd.common.linux import dirty_bytes
from tests.reference import operations as op
from tests.reference.operations import Operation
from tests.reference.world import Outcome, Seen


@dataclass(frozen=True)
class Attribute:
    """What need not agree of a file as it was seen: `fields`, where `applies(memfsd's, tmpfs's)`."""

    fields: tuple[str, ...]
    reason: str
    applies: Callable[[Seen, Seen], bool]


@dataclass(frozen=True)
class Result:
    """What an operation may answer: `applies(it, memfsd's answer, tmpfs's, its file as tmpfs shows it)`."""

    operation: type[Operation]
    reason: str
    applies: Callable[[Operation, Outcome, Outcome, Seen], bool]


def _is(kind: Callable[[int], bool]) -> Callable[[Seen, Seen], bool]:
    return lambda ours, theirs: all("mode" in seen and kind(int(seen["mode"], 8)) for seen in (ours, theirs))


def _keeps_locking(ours: Seen, theirs: Seen) -> bool:
    """The modes differ in setgid alone, and the group may not execute."""
    mode = int(ours.get("mode", "0"), 8)
    return mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID and theirs.get("mode") == oct(mode & ~stat.S_ISGID)


_ROOM_BYTES = 32 << 20
"""Of what mappings stored a pool of 64 MiB has at most so much room (`Files.room_to_write_back`)."""
_PARTS = 64
"""In which a range is written back at most."""


def _is_in_doubt(seen: Seen) -> bool:
    """A file that is too large to be written back in parts, while the host has much to write back: what others wrote,
    and so more or less from one moment to the next."""
    return seen.get("size", 0) > _ROOM_BYTES * _PARTS // 4 and dirty_bytes() > _ROOM_BYTES // 4


ATTRIBUTES = (
    Attribute(
        ("mode",),
        "setgid of a file that its group may not execute meant mandatory locking, which Linux has no more: tmpfs drops"
        " it when one who is not in the group writes; FUSE asks a server to drop setgid of executables only"
        " (FUSE_HANDLE_KILLPRIV_V2 in linux/fuse.h), and chown(2) drops it here, too",
        _keeps_locking,
    ),
    Attribute(
        ("mtime changed", "ctime changed"),
        "tmpfs stamps a directory with the ctime of what it lost, a tick of the clock that the directory may have had",
        lambda ours, theirs: (
            _is(stat.S_ISDIR)(ours, theirs)
            and all(ours[f] >= theirs[f] for f in ("mtime changed", "ctime changed") if f in ours and f in theirs)
        ),
    ),
    Attribute(
        ("mtime", "mtime changed", "ctime changed"),
        "the kernel moves the bytes of a fifo and tells no FUSE server (fs/fuse/inode.c sets S_NOCMTIME)",
        _is(stat.S_ISFIFO),
    ),
    Attribute(
        ("blocks",),
        "tmpfs keeps a target of 128 bytes or more in a page of its own; memfsd keeps all of them out of the pool",
        _is(stat.S_ISLNK),
    ),
    Attribute(
        ("blocks", "data", "bytes"),
        "tmpfs allocates a page when a mapping touches it, also for reading; FUSE reads a hole into the kernel's cache"
        " and tells memfsd of what was stored there when it writes back (msync, munmap, fsync, close, memory pressure)",
        lambda ours, theirs: ours.get("mapped", False),
    ),
    Attribute(
        ("blocks", "data", "bytes"),
        "holes of a file that is much larger than the pool are data, perhaps, while the host has more to write back"
        " than the pool has room for (docs/semantics.md)",
        lambda ours, theirs: _is_in_doubt(theirs),
    ),
    Attribute(
        ("data", "bytes"),
        "tmpfs takes allocated pages that nobody wrote for a hole, until they are allocated once more",
        lambda ours, theirs: ours.get("allocated again", False),
    ),
    Attribute(
        ("mtime", "mtime changed", "ctime changed"),
        "tmpfs stamps a file when a mapping first stores to a page; memfsd hears of it when the kernel writes back",
        lambda ours, theirs: ours.get("mapped", False),
    ),
)


def _seeks_contents(operation: Operation) -> bool:
    return isinstance(operation, op.Lseek) and operation.whence in (os.SEEK_DATA, os.SEEK_HOLE)


RESULTS = (
    Result(
        op.Chown,
        "chown of nothing by one who does not own a setuid file looks to a FUSE server like the request before a write"
        " to it, which must succeed: it does, and changes nothing",
        lambda operation, ours, theirs, seen: (
            (ours, theirs) == (None, "EPERM")
            and isinstance(operation, op.Chown)
            and (operation.uid, operation.gid) == (-1, -1)
        ),
    ),
    Result(
        op.Lseek,
        "pages allocated twice: see data",
        lambda operation, ours, theirs, seen: bool(seen.get("allocated again")) and _seeks_contents(operation),
    ),
    Result(
        op.Lseek,
        "SEEK_DATA and SEEK_HOLE in a file that was mapped, or is in doubt: see its blocks",
        lambda operation, ours, theirs, seen: (
            (bool(seen.get("mapped")) or _is_in_doubt(seen)) and _seeks_contents(operation)
        ),
    ),
)


def allowed_fields(ours: Seen, theirs: Seen) -> set[str]:
    return {field for deviation in ATTRIBUTES if deviation.applies(ours, theirs) for field in deviation.fields}


def allowed_result(operation: Operation, ours: Outcome, theirs: Outcome, seen: Seen) -> bool:
    if isinstance(operation, op.As):
        operation = operation.operation
    return any(
        isinstance(operation, result.operation) and result.applies(operation, ours, theirs, seen) for result in RESULTS
    )
