"""Random sequences of operations."""

import os
import stat

from hypothesis import strategies as st

from tests.reference import operations as op
from tests.reference.operations import PAGE, Operation

ODD = b"\xff\x01 \n*"
LONGEST, TOO_LONG = b"n" * 255, b"n" * 256
FILES = (b"a", b"b", b"c", b"d/a", b"d/b", b"d/e/a", ODD, LONGEST)
DIRECTORIES = (b"d", b"d/e", b"e", b"d/e/f")
CROOKED = (TOO_LONG, b"d/" + TOO_LONG, b"a/", b"a/b", b"d/", b".", b"..", b"d/..", b"d/.", b"", b"l/a", b"missing/a")

files = st.sampled_from(FILES)
names = st.sampled_from((*FILES, *FILES, *DIRECTORIES, *DIRECTORIES, b"l", b"m", *CROOKED))
directories = st.sampled_from((*DIRECTORIES, *DIRECTORIES, *DIRECTORIES, b"a", *CROOKED))
targets = st.sampled_from((b"a", b"d", b"l", b"m", b"../a", b"nowhere", b"", b"x" * 200, b"y" * 4095, b"z" * 4096))
links = st.sampled_from((b"l", b"l", b"m", b"d/l"))
index = st.integers(0, 11)
seed = st.integers(0, 250)
near = st.integers(0, 4 * PAGE)
offsets = near | st.sampled_from((0, PAGE, 2 * PAGE, 3 * PAGE - 1, 1 << 20, 1 << 40, 1 << 62, (1 << 63) - 1, -1))
lengths = st.integers(0, 2 * PAGE) | st.sampled_from((0, 1, PAGE, 20 * PAGE))
sizes = near | st.sampled_from((0, PAGE, PAGE + 1, 1 << 20, 1 << 40, (1 << 63) - 1, -1))
modes = st.sampled_from(
    (0o644, 0o600, 0o666, 0o755, 0o777, 0o000, 0o444, 0o4755, 0o2755, 0o2644, 0o1777, 0o3777, 0o7777)
)
accesses = st.sampled_from((os.O_RDWR, os.O_RDWR, os.O_RDONLY, os.O_WRONLY))
creations = st.sampled_from(
    (
        os.O_CREAT,
        os.O_CREAT,
        os.O_CREAT,
        0,
        os.O_CREAT | os.O_EXCL,
        os.O_CREAT | os.O_TRUNC,
        os.O_TRUNC,
        os.O_CREAT | os.O_APPEND,
        os.O_APPEND,
        os.O_NOFOLLOW,
        os.O_CREAT | os.O_NOFOLLOW,
        os.O_DIRECTORY,
        os.O_CREAT | os.O_DIRECTORY,
        os.O_EXCL,
        os.O_DIRECT,
    )
)
flags = st.builds(int.__or__, accesses, creations)
attributes = st.sampled_from(
    (
        b"user.a",
        b"user.a",
        b"user.a",
        b"user.a",
        b"user.b",
        b"user." + b"n" * 250,
        b"user." + b"n" * 251,
        b"trusted.a",
        b"trusted.a",
        b"security.a",
        b"unknown.a",
        b"user.",
        b"a",
    )
)
times = st.tuples(
    st.integers(0, 10**9 - 1) | st.just(0),
    st.sampled_from((0, 1, 999_999_999, 123_456_789, op.UTIME_NOW, op.UTIME_OMIT, 1 << 30)),
)
ids = st.sampled_from((-1, 0, 1000, 1001))

simple: tuple[tuple[int, st.SearchStrategy[Operation]], ...] = (
    (6, st.builds(op.Open, files, flags, modes)),
    (3, st.builds(op.Open, names, flags, modes)),
    (3, st.builds(op.Mkdir, directories, modes)),
    (2, st.builds(op.Rmdir, directories)),
    (3, st.builds(op.Unlink, names)),
    (3, st.builds(op.Rename, names, names, st.sampled_from((0, 0, 0, 1, 2, 3, 4, 4, 5, 6, 8)))),
    (1, st.builds(op.Rename, files, files)),
    (2, st.builds(op.Link, names, names)),
    (2, st.builds(op.Symlink, targets, st.sampled_from((b"l", b"m", b"d/l", b"a", TOO_LONG)))),
    (1, st.builds(op.Readlink, links | names)),
    (1, st.builds(op.Mknod, files, st.sampled_from((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG)), modes)),
    (1, st.builds(op.Listdir, directories)),
    (1, st.builds(op.Stat, names)),
    (1, st.builds(op.Access, names, st.integers(0, 7))),
    (2, st.builds(op.Chmod, names, modes)),
    (2, st.builds(op.Chown, names, ids, ids)),
    (2, st.builds(op.Utimens, names, times, times, st.sampled_from((0, 0x100)))),
    (2, st.builds(op.Truncate, names, sizes)),
    (
        3,
        st.builds(
            op.Setxattr,
            names,
            attributes,
            seed,
            st.sampled_from((0, 1, 10, 1000, 65536, 65537)),
            st.sampled_from((0, 0, 1, 2)),
        ),
    ),
    (2, st.builds(op.Getxattr, st.just(b"a") | files | names, attributes)),
    (1, st.builds(op.Listxattr, files | names)),
    (1, st.builds(op.Removexattr, st.just(b"a") | files | names, attributes)),
)
on_handles: tuple[tuple[int, st.SearchStrategy[Operation]], ...] = (
    (2, st.builds(op.Close, index)),
    (2, st.builds(op.Reopen, index, flags)),
    (2, st.builds(op.Read, index, lengths)),
    (4, st.builds(op.Write, index, seed, lengths)),
    (3, st.builds(op.Pread, index, lengths, offsets)),
    (4, st.builds(op.Pwrite, index, seed, lengths, offsets)),
    (1, st.builds(op.Pwritev, index, seed, st.tuples(lengths, lengths, lengths), offsets)),
    (3, st.builds(op.Lseek, index, offsets, st.sampled_from((0, 1, 2, os.SEEK_DATA, os.SEEK_HOLE, 5)))),
    (4, st.builds(op.Ftruncate, index, sizes)),
    (4, st.builds(op.Fallocate, index, st.sampled_from((0, 0, 1, 3, 3, 2, 8, 16, 64)), offsets, lengths)),
    (1, st.builds(op.Fchmod, index, modes)),
    (1, st.builds(op.Futimens, index, times, times)),
    (1, st.builds(op.Fsync, index)),
    (2, st.builds(op.Sendfile, index, index, near, lengths)),
    (2, st.builds(op.CopyFileRange, index, index, lengths, near, near)),
    (1, st.builds(op.LinkHandle, index, files)),
)
on_mappings: tuple[tuple[int, st.SearchStrategy[Operation]], ...] = (
    (
        3,
        st.builds(
            op.Map,
            index,
            st.sampled_from((0, 0, PAGE)),
            st.sampled_from((1, PAGE, 2 * PAGE)),
            st.booleans(),
            st.booleans(),
        ),
    ),
    (2, st.builds(op.Load, index, near, st.integers(1, PAGE))),
    (4, st.builds(op.Store, index, near, seed, st.integers(1, PAGE))),
    (1, st.builds(op.Msync, index)),
    (1, st.builds(op.Unmap, index)),
)


def weighted(*choices: tuple[int, st.SearchStrategy[Operation]]) -> st.SearchStrategy[Operation]:
    return st.one_of([strategy for weight, strategy in choices for _ in range(weight)])


as_others = st.builds(
    op.As,
    st.just(1000),
    st.sampled_from((1000, 1001)),
    st.sampled_from(((), (1001,), (0,))),
    weighted(*simple, *on_handles),
)
rare = (
    (
        2,
        st.builds(
            op.OpenByHandle,
            st.sampled_from((*FILES, *FILES, *DIRECTORIES, b"l", b"missing", b"")),
            st.builds(int.__or__, accesses, st.sampled_from((0, 0, os.O_TRUNC, os.O_APPEND, os.O_DIRECTORY))),
            st.sampled_from((False, True)),
        ),
    ),
    (
        2,
        st.builds(
            op.OpenTmpfile,
            directories,
            st.sampled_from((os.O_RDWR, os.O_RDWR, os.O_WRONLY, os.O_RDONLY, os.O_RDWR | os.O_EXCL)),
            st.sampled_from((0o600, 0o666, 0o6777)),
        ),
    ),
    (1, st.builds(op.Umask, st.sampled_from((0, 0o022, 0o027, 0o077, 0o777)))),
    (1, st.builds(op.Load, index, near, st.integers(1, PAGE), st.just(True))),
    (1, st.builds(op.Store, index, near, seed, st.integers(1, PAGE), st.just(True))),
    (1, st.builds(op.Poll, index)),
    (8, as_others),
)

# Most sequences begin with something to act on.
START: tuple[Operation, ...] = (
    op.Mkdir(b"d"),
    op.Mkdir(b"d/e", 0o2777),
    op.Open(b"a", os.O_RDWR | os.O_CREAT),
    op.Pwrite(0, 1, 2 * PAGE + 100, 0),
    op.Setxattr(b"a", b"user.a", 5, 10),
    op.Setxattr(b"a", b"trusted.a", 5, 10),
    op.Symlink(b"a", b"l"),
    op.Open(b"d/a", os.O_RDWR | os.O_CREAT, 0o666),
    op.Open(b"d/a", os.O_WRONLY | os.O_APPEND),
    op.Map(0, 0, 2 * PAGE, True, True),
    op.Map(0, 0, PAGE, False, True),
)
LENGTH = 100
"""Operations of a sequence, nearly."""
start = st.tuples(*(st.sampled_from((None, operation, operation, operation)) for operation in START))
one = st.none() | weighted(*simple, *on_handles, *on_mappings, *rare)
rest = st.tuples(*[one] * (LENGTH - len(START)))
sequences = st.builds(lambda *parts: [it for part in parts for it in part if it is not None], start, rest)
