"""Seals of an ordinary file and of a real memfd_create(2): the same operations under the same seals, errno by errno."""

import contextlib
import ctypes
import errno
import fcntl
import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memfsd.uapi.names import IOC_ADD_SEALS, IOC_GET_SEALS, XATTR_SEALS
from memfsd.uapi.seals import Seal, format_seals
from tests.reference.mounts import memfsd_mount

PAGE = 4096
SIZE = 3 * PAGE + 100
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

BASIC = (Seal.SHRINK, Seal.GROW, Seal.WRITE, Seal.FUTURE_WRITE, Seal.SEAL)
SETS = [Seal(0), *BASIC, *(a | b for a, b in itertools.combinations(BASIC, 2)), Seal.SHRINK | Seal.GROW | Seal.WRITE]


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if libc.fallocate(fd, mode, offset, length) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


class Memfd:
    """The real one. Every open file of it is opened by way of the first."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("reference", os.MFD_ALLOW_SEALING)
        self._opened = [self.fd]

    def open(self, flags: int) -> int:
        self._opened.append(os.open(f"/proc/self/fd/{self.fd}", flags))
        return self._opened[-1]

    def add(self, seals: int, fd: int | None = None) -> None:
        fcntl.fcntl(self.fd if fd is None else fd, fcntl.F_ADD_SEALS, seals)

    def seals(self) -> int:
        return fcntl.fcntl(self.fd, fcntl.F_GET_SEALS)

    def close(self) -> None:
        for fd in self._opened:
            os.close(fd)


class OnMount(Memfd):
    """A file on memfsd, sealed with the ioctl."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._opened = [self.fd]

    def add(self, seals: int, fd: int | None = None) -> None:
        if fd is not None:
            self._add(seals, fd)
        elif not seals & Seal.WRITE:
            self._add(seals, self.fd)
        else:
            with self._write_only() as writer:
                self._add(seals, writer)

    def _add(self, seals: int, fd: int) -> None:
        fcntl.ioctl(fd, IOC_ADD_SEALS, seals.to_bytes(4, "little"))

    @contextlib.contextmanager
    def _write_only(self) -> Iterator[int]:
        """Without the first handle: a memfd counts mappings, memfsd handles that may have one, and that is one."""
        writer = os.open(self.path, os.O_WRONLY)
        os.dup2(writer, self.fd)
        try:
            yield writer
        finally:
            os.close(writer)
            again = os.open(self.path, os.O_RDWR)
            os.dup2(again, self.fd)
            os.close(again)

    def seals(self) -> int:
        return int.from_bytes(fcntl.ioctl(self.fd, IOC_GET_SEALS, bytes(4)), "little")


class ByXattr(OnMount):
    """The same file, sealed with setfattr(1) by somebody who has not opened it."""

    def _add(self, seals: int, fd: int) -> None:
        os.setxattr(self.path, XATTR_SEALS, format_seals(Seal(seals)).encode())

    def seals(self) -> int:
        said = os.getxattr(self.path, XATTR_SEALS).decode()
        return sum(
            seal for seal in Seal if said and seal.name and seal.name.lower().replace("_", "-") in said.split(",")
        )


File = Memfd
OPERATIONS: dict[str, Callable[[File], object]] = {
    "read": lambda file: os.pread(file.fd, 2 * SIZE, 0),
    "write inside": lambda file: os.pwrite(file.fd, b"w" * 10, 5),
    "write to the end": lambda file: os.pwrite(file.fd, b"w" * SIZE, 0),
    "write across the end": lambda file: os.pwrite(file.fd, b"w" * 300, SIZE - 10),
    "write across the end from pages before": lambda file: os.pwrite(file.fd, b"w" * SIZE, PAGE + 7),
    "write behind the end": lambda file: os.pwrite(file.fd, b"w", SIZE + PAGE),
    "write nothing": lambda file: os.pwrite(file.fd, b"", 0),
    "pwritev": lambda file: os.pwritev(file.fd, [b"a", b"b"], 0),
    "append": lambda file: os.write(file.open(os.O_WRONLY | os.O_APPEND), b"w"),
    "truncate to nothing": lambda file: os.ftruncate(file.fd, 0),
    "truncate down": lambda file: os.ftruncate(file.fd, SIZE - 1),
    "truncate to the same": lambda file: os.ftruncate(file.fd, SIZE),
    "truncate up": lambda file: os.ftruncate(file.fd, SIZE + 1),
    "open with O_TRUNC": lambda file: bool(file.open(os.O_RDWR | os.O_TRUNC)),
    "open to read": lambda file: os.pread(file.open(os.O_RDONLY), 10, 0),
    "open to write": lambda file: os.pwrite(file.open(os.O_WRONLY), b"w", 0),
    "open for both": lambda file: os.pwrite(file.open(os.O_RDWR), b"w", 0),
    "fallocate inside": lambda file: fallocate(file.fd, 0, 0, PAGE),
    "fallocate across the end": lambda file: fallocate(file.fd, 0, 0, SIZE + 1),
    "fallocate behind the end, keeping the size": lambda file: fallocate(file.fd, 1, SIZE, PAGE),
    "punch": lambda file: fallocate(file.fd, 3, 0, PAGE),
    "punch a part of a page": lambda file: fallocate(file.fd, 3, 10, 10),
    "punch behind the end": lambda file: fallocate(file.fd, 3, SIZE + PAGE, PAGE),
    "fallocate with an unknown mode": lambda file: fallocate(file.fd, 8, 0, PAGE),
    "sendfile into it": lambda file: os.sendfile(file.fd, file.open(os.O_RDONLY), PAGE, 10),
    "copy_file_range into it": lambda file: os.copy_file_range(file.open(os.O_RDONLY), file.fd, 10, PAGE, 0),
    "map shared to read": lambda file: mapped(file.open(os.O_RDONLY), mmap.MAP_SHARED, mmap.PROT_READ),
    "map privately and store": lambda file: mapped(file.fd, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE),
    "chmod": lambda file: os.fchmod(file.fd, 0o640),
    "fsync": lambda file: os.fsync(file.fd),
    "add seal seal": lambda file: file.add(Seal.SEAL),
    "add shrink": lambda file: file.add(Seal.SHRINK),
    "add grow": lambda file: file.add(Seal.GROW),
    "add write": lambda file: file.add(Seal.WRITE),
    "add future-write": lambda file: file.add(Seal.FUTURE_WRITE),
    "add one with a handle that only reads": lambda file: file.add(Seal.GROW, file.open(os.O_RDONLY)),
}


def mapped(fd: int, flags: int, prot: int) -> bytes:
    with mmap.mmap(fd, PAGE, flags=flags, prot=prot) as memory:
        if prot & mmap.PROT_WRITE:
            memory[0:3] = b"sto"
        return memory[:8]


def outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def told(file: File, operation: Callable[[File], object]) -> dict[str, object]:
    """What the operation answered, and what the file is afterwards."""
    answer = outcome(lambda: operation(file))
    return {
        "outcome": answer,
        "seals": Seal(file.seals()),
        "size": os.fstat(file.fd).st_size,
        "bytes": os.pread(file.fd, 2 * SIZE, 0),
    }


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with memfsd_mount("size=16M") as mounted:
        yield mounted


@pytest.fixture
def files(place: Path) -> Iterator[Callable[[type[File]], File]]:
    made: list[File] = []

    def make(kind: type[File]) -> File:
        file = Memfd() if kind is Memfd else kind(place / f"file{len(made)}")  # type: ignore[call-arg]
        made.append(file)
        os.pwrite(file.fd, bytes(at % 251 for at in range(SIZE)), 0)
        return file

    yield make
    for file in made:
        file.close()
        if isinstance(file, OnMount):
            os.unlink(file.path)


Files = Callable[[type[File]], File]


@pytest.mark.parametrize("seals", SETS, ids=lambda seals: format_seals(seals) or "none")
def test_under_these_seals_every_operation_answers_as_on_a_memfd(files: Files, seals: Seal) -> None:
    for name, operation in OPERATIONS.items():
        real, ours = files(Memfd), files(OnMount)
        for file in (real, ours):
            if seals:
                file.add(seals)
        assert told(ours, operation) == told(real, operation), name


@pytest.mark.parametrize("seals", [s for s in SETS if s], ids=format_seals)
def test_a_seal_set_with_an_xattr_is_the_one_set_with_the_ioctl(files: Files, seals: Seal) -> None:
    for name in ("write inside", "truncate down", "truncate up", "add grow", "punch"):
        by_ioctl, by_xattr = files(OnMount), files(ByXattr)
        for file in (by_ioctl, by_xattr):
            file.add(seals)
        assert told(by_xattr, OPERATIONS[name]) == told(by_ioctl, OPERATIONS[name]), name


def test_seals_add_up_and_never_go(files: Files) -> None:
    for file in files(Memfd), files(OnMount):
        for count, seal in enumerate(BASIC, 1):
            file.add(seal)
            if count < len(BASIC):  # SEAL, the last one, forbids even what is there
                file.add(seal)
            assert file.seals() == sum(BASIC[:count])
        assert outcome(lambda: file.add(Seal.GROW)) == "EPERM"  # noqa: B023 - called at once


def test_unknown_bits_are_einval_and_change_nothing(files: Files) -> None:
    for file in files(Memfd), files(OnMount):
        assert outcome(lambda: file.add(1 << 14 | Seal.GROW)) == "EINVAL"  # noqa: B023 - called at once
        assert file.seals() == 0


def test_write_is_ebusy_while_somebody_else_can_store_through_a_mapping(files: Files) -> None:
    """A memfd knows of mappings, memfsd of handles that may have one: so an open one is enough there."""
    for file in files(Memfd), files(OnMount), files(ByXattr):
        other = file.open(os.O_RDWR)
        with mmap.mmap(other, PAGE):
            assert outcome(lambda: file.add(Seal.WRITE)) == "EBUSY"  # noqa: B023 - called at once
            assert file.seals() == 0


def test_a_mapping_made_before_future_write_still_stores(files: Files) -> None:
    for file in files(Memfd), files(OnMount):
        with mmap.mmap(file.fd, PAGE) as memory:
            file.add(Seal.FUTURE_WRITE)
            memory[:6] = b"stored"
            assert os.pread(file.fd, 6, 0) == b"stored"
            # Written back before the write: the kernel puts the bytes of a refused write(2) through a handle from
            # before the seal into its cached page, and reads the page again for the next reader only if it was clean.
            memory.flush()
            assert outcome(lambda: os.pwrite(file.fd, b"w", 0)) == "EPERM"  # noqa: B023 - called at once
            assert os.pread(file.fd, 6, 0) == b"stored"
            assert memory[:6] == b"stored"


@pytest.mark.parametrize("kind", [OnMount, ByXattr])
def test_write_is_ebusy_while_the_handle_that_asks_could_be_mapped_and_so_nothing_changes_after_it(
    files: Files, kind: type[File]
) -> None:
    file = files(kind)
    assert isinstance(file, OnMount)
    with mmap.mmap(file.fd, PAGE) as memory:
        assert outcome(lambda: file._add(Seal.WRITE, file.fd)) == "EBUSY"
        memory[:6] = b"stored"
    assert outcome(lambda: file._add(Seal.WRITE, file.fd)) == "EBUSY"
    assert file.seals() == 0
    file.add(Seal.WRITE)
    assert os.pread(file.fd, 6, 0) == b"stored"
    assert outcome(lambda: mapped(file.fd, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)) == "ENODEV"


@pytest.mark.parametrize("seal", [Seal.WRITE, Seal.FUTURE_WRITE], ids=format_seals)
def test_a_handle_opened_after_a_write_seal_can_not_be_mapped_to_store(files: Files, seal: Seal) -> None:
    """EPERM of a memfd; ENODEV here, since the only way to refuse a mapping is to bypass the page cache."""
    for file, refusal in ((files(Memfd), "EPERM"), (files(OnMount), "ENODEV")):
        file.add(seal)
        fd = file.open(os.O_RDWR)
        assert outcome(lambda: mapped(fd, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)) == refusal  # noqa: B023


def test_xattr_and_ioctl_tell_the_same_seals(files: Files) -> None:
    file = files(OnMount)
    file.add(Seal.SHRINK | Seal.FUTURE_WRITE)
    assert isinstance(file, OnMount)
    assert os.getxattr(file.path, XATTR_SEALS) == b"shrink,future-write"
    assert file.seals() == Seal.SHRINK | Seal.FUTURE_WRITE


def test_a_failed_seal_of_the_guest_kind_leaves_the_others_out(files: Files) -> None:
    """All or none: the file is not empty, so neither seal is added."""
    file = files(OnMount)
    with contextlib.suppress(OSError):
        file.add(Seal.GUEST | Seal.GROW)
    assert file.seals() == 0
