"""guest_memfd on a mount: the cases of the kernel's guest_memfd_test.c by their numbers, and how one is made."""

import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import memfsd
from memfsd.uapi.abi import GmemFlag
from memfsd.uapi.names import IOC_ADD_SEALS, XATTR_SEALS
from memfsd.uapi.seals import Seal
from tests.support.host_memory import SIGBUS, byte, madvise, reading, shared, shared_beyond, syscall, writing
from tests.support.real_mount import (
    KEEP_SIZE,
    PAGE,
    PUNCH_HOLE,
    DirectoryFactory,
    fallocate,
    refused,
    run,
)

PAGES = 4
SIZE = PAGES * PAGE
MMAP, BOTH = GmemFlag.MMAP, GmemFlag.MMAP | GmemFlag.INIT_SHARED
NEITHER = GmemFlag(0)
FLAGS = [NEITHER, MMAP, BOTH]
PUNCH = PUNCH_HOLE | KEEP_SIZE
EVERY = pytest.mark.parametrize("flags", FLAGS, ids=["none", "mmap", "mmap_shared"])


@pytest.fixture
def place(own_directory: DirectoryFactory) -> Path:
    return own_directory("size=64M,nodes=2,abi=gmem-7.2")


@contextmanager
def gmem(place: Path, flags: int, size: int = SIZE) -> Iterator[int]:
    fd = memfsd.create_guest_memfd(size, flags, mount=str(place))
    try:
        yield fd
    finally:
        os.close(fd)


def test_a1_each_flag_alone(place: Path) -> None:
    for flag in (1 << bit for bit in range(64)):
        if flag & int(BOTH):
            with gmem(place, flag) as fd:
                assert os.fstat(fd).st_size == SIZE
        else:
            with refused(errno.EINVAL), gmem(place, flag):
                pass


def test_a2_two_files_have_inodes_and_sizes_of_their_own(place: Path) -> None:
    with gmem(place, NEITHER, PAGE) as one, gmem(place, NEITHER, 2 * PAGE) as other:
        assert os.fstat(one).st_ino != os.fstat(other).st_ino
        assert [os.fstat(fd).st_size for fd in (one, other)] == [PAGE, 2 * PAGE]


@pytest.mark.parametrize("size", [0, 1, PAGE // 2, PAGE - 1, PAGE + 1, (1 << 63) - 1, (1 << 64) - PAGE])
def test_a3_a_size_that_is_not_whole_pages(place: Path, size: int) -> None:
    with refused(errno.EINVAL), gmem(place, NEITHER, size):
        pass
    assert os.listdir(place) == []


@EVERY
def test_a4_there_is_no_read_and_no_write(place: Path, flags: GmemFlag) -> None:
    with gmem(place, flags) as fd:
        with refused(errno.EINVAL):
            os.read(fd, 1)
        with refused(errno.EINVAL):
            os.write(fd, b"x")
        with refused(errno.ESPIPE):
            os.pread(fd, 1, 0)
        with refused(errno.ESPIPE):
            os.pwrite(fd, b"x", 0)
        with refused(errno.ESPIPE):
            os.lseek(fd, 0, os.SEEK_SET)


@pytest.mark.parametrize("size", [PAGE, SIZE])
def test_a5_without_the_flag_it_cannot_be_mapped(place: Path, size: int) -> None:
    for flags in (NEITHER, GmemFlag.INIT_SHARED):
        with gmem(place, flags) as fd, refused(errno.ENODEV):
            shared(fd, size)


def test_a6_a_private_mapping_shows_nothing_private(place: Path) -> None:
    """A deviation: Linux refuses MAP_PRIVATE. The kernel in front of a FUSE server does not."""
    for flags in (NEITHER, MMAP):
        with gmem(place, flags) as fd, mmap.mmap(fd, SIZE, flags=mmap.MAP_PRIVATE) as mapping:
            assert [reading(mapping, page) for page in range(PAGES)] == [SIGBUS] * PAGES


def test_a7_a_mapping_stays_right_through_a_punch(place: Path) -> None:
    with gmem(place, BOTH) as fd, shared(fd, SIZE) as mapping:
        mapping[:] = b"\xaa" * SIZE
        assert mapping[:] == b"\xaa" * SIZE

        fallocate(fd, PUNCH, 0, PAGE)

        assert mapping[:] == bytes(PAGE) + b"\xaa" * (SIZE - PAGE)
        mapping[:] = b"\xbb" * SIZE
        assert mapping[:] == b"\xbb" * SIZE


def test_a8_a_mapping_larger_than_the_file(place: Path) -> None:
    with gmem(place, BOTH) as fd, shared_beyond(fd, 4 * SIZE) as mapping:
        assert writing(mapping, PAGES - 1) is None
        assert [writing(mapping, page) for page in (PAGES, 2 * PAGES, 4 * PAGES - 1)] == [SIGBUS] * 3
        assert [reading(mapping, page) for page in (PAGES, 2 * PAGES, 4 * PAGES - 1)] == [SIGBUS] * 3


def test_a9_private_pages_are_sigbus(place: Path) -> None:
    with gmem(place, MMAP) as fd, shared(fd, SIZE) as mapping:
        assert [reading(mapping, page) for page in range(PAGES)] == [SIGBUS] * PAGES
        assert [writing(mapping, page) for page in range(PAGES)] == [SIGBUS] * PAGES
        assert os.fstat(fd).st_blocks == 0


def test_a10_a_policy_of_the_mapping_is_the_kernels(place: Path) -> None:
    """mbind(2) of the mapping is kept by the kernel; what node a page comes from says memfsd.fbind()."""
    mbind, get_mempolicy, default, bind, interleave, of_address = 237, 239, 0, 2, 3, 2
    with gmem(place, BOTH) as fd, shared(fd, SIZE) as mapping:
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        node, mode, found = ctypes.c_ulong(1), ctypes.c_int(), (ctypes.c_ulong * 16)()
        for asked in (interleave, bind, default):
            mask = ctypes.addressof(node) if asked else 0
            assert syscall(mbind, address, SIZE, asked, mask, 64 if asked else 0, 0) == 0
            places = ctypes.addressof(mode), ctypes.addressof(found)
            assert syscall(get_mempolicy, *places, 1024, address, of_address) == 0
            assert (mode.value, found[0]) == (asked, 1 if asked else 0)
        with refused(errno.EINVAL):
            syscall(mbind, address, SIZE, 999, 0, 0, 0)


def test_a11_a_policy_before_allocation_and_after(place: Path) -> None:
    with gmem(place, BOTH) as fd, shared(fd, SIZE) as mapping:
        memfsd.fbind(fd, (0, 2 * PAGE), "bind:1")
        mapping[0] = mapping[2 * PAGE] = 1
        assert memfsd.fmove_pages(fd, [0, 2]) == [1, 0]

        memfsd.fbind(fd, (0, 2 * PAGE), "bind:0")
        assert memfsd.fmove_pages(fd, [0]) == [1], "what is there stays"

        fallocate(fd, PUNCH, 0, PAGE)
        mapping[0] = 1
        assert memfsd.fmove_pages(fd, [0]) == [0]


def test_a12_advice(place: Path) -> None:
    with gmem(place, BOTH) as fd, shared(fd, SIZE) as mapping:
        mapping[0] = 0xAA
        assert madvise(mapping, mmap.MADV_HUGEPAGE) == 0
        assert madvise(mapping, 25) == errno.EINVAL, "MADV_COLLAPSE"
        assert madvise(mapping, mmap.MADV_DONTNEED) == 0
        assert mapping[0] == 0xAA


@EVERY
def test_a13_fstat(place: Path, flags: GmemFlag) -> None:
    with gmem(place, flags) as fd:
        found = os.fstat(fd)
        assert (found.st_size, found.st_blksize, found.st_blocks) == (SIZE, PAGE, 0)
        assert stat.S_ISREG(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600


@EVERY
def test_a14_to_a22_allocating_and_punching(place: Path, flags: GmemFlag) -> None:
    with gmem(place, flags) as fd:
        fallocate(fd, KEEP_SIZE, 0, SIZE)  # A14
        assert os.fstat(fd).st_blocks == SIZE // 512
        for mode, offset, length in (
            (PUNCH, PAGE - 1, PAGE),  # A15
            (KEEP_SIZE, SIZE, PAGE),  # A16
            (KEEP_SIZE, SIZE + PAGE, PAGE),  # A17
            (PUNCH, 0, PAGE - 1),  # A20
        ):
            with refused(errno.EINVAL):
                fallocate(fd, mode, offset, length)
        fallocate(fd, PUNCH, SIZE, PAGE)  # A18
        fallocate(fd, PUNCH, SIZE + PAGE, PAGE)  # A19
        assert os.fstat(fd).st_blocks == SIZE // 512
        fallocate(fd, PUNCH, PAGE, PAGE)  # A21
        assert os.fstat(fd).st_blocks == (SIZE - PAGE) // 512
        fallocate(fd, KEEP_SIZE, PAGE, PAGE)  # A22
        assert os.fstat(fd).st_blocks == SIZE // 512


@EVERY
def test_a23_punches_that_are_not_whole_pages(place: Path, flags: GmemFlag) -> None:
    edges = ((0, 1), (0, PAGE - 1), (0, PAGE + 1), (1, 1), (1, PAGE - 1), (1, PAGE), (1, PAGE + 1))
    more = ((PAGE, 1), (PAGE, PAGE - 1), (PAGE, PAGE + 1))
    with gmem(place, flags) as fd:
        for offset, length in (*edges, *more):
            with refused(errno.EINVAL):
                fallocate(fd, PUNCH, offset, length)


@EVERY
@pytest.mark.parametrize("mode", [0, PUNCH_HOLE, 0x10, 0x11, 0x8, 0x20])
def test_other_modes_of_fallocate(place: Path, flags: GmemFlag, mode: int) -> None:
    with gmem(place, flags) as fd, refused(errno.EOPNOTSUPP):
        fallocate(fd, mode, 0, PAGE)


@EVERY
def test_the_size_and_the_inode_cannot_be_changed(place: Path, flags: GmemFlag) -> None:
    with gmem(place, flags) as fd:
        for size in (0, PAGE, SIZE, 2 * SIZE):
            with refused(errno.EINVAL):
                os.ftruncate(fd, size)
        with refused(errno.EINVAL):
            os.fchmod(fd, 0o400)
        with refused(errno.EINVAL):
            os.fchown(fd, 0, 0)
        with refused(errno.EINVAL):
            os.utime(fd)
        with refused(errno.EINVAL):
            os.fsync(fd)
        with refused(errno.EINVAL):
            os.fdatasync(fd)
        with refused(errno.EOPNOTSUPP):
            os.setxattr(fd, "user.x", b"y")
        assert os.listxattr(fd) == []


def test_nothing_that_can_execute_is_mapped(place: Path) -> None:
    for flags, protection in itertools.product(FLAGS, (mmap.PROT_EXEC, mmap.PROT_EXEC | mmap.PROT_READ)):
        with gmem(place, flags) as fd, refused(errno.EPERM):
            shared(fd, SIZE, protection)


def test_what_a_mapping_stored_is_another_ones_too(place: Path) -> None:
    with gmem(place, BOTH) as fd, shared(fd, SIZE) as one, shared(fd, SIZE) as other:
        one[5] = 0xDE
        assert other[5] == 0xDE
        assert os.fstat(fd).st_blocks == PAGE // 512, "a touched page is allocated, and no other"


def test_a_full_pool_is_sigbus_and_frees_with_a_punch(own_directory: DirectoryFactory) -> None:
    place = own_directory("size=1M,abi=gmem-6.18")
    with gmem(place, BOTH, 2 << 20) as fd, shared(fd, 2 << 20) as mapping:
        fallocate(fd, KEEP_SIZE, 0, 1 << 20)
        assert writing(mapping, 256) == SIGBUS
        fallocate(fd, PUNCH, 0, PAGE)
        assert writing(mapping, 256, 7) is None
        assert byte(mapping, 256) == 7


def test_allocating_more_than_the_pool_has_is_enomem_and_changes_nothing(own_directory: DirectoryFactory) -> None:
    """As kvm_gmem_allocate() answers; an ordinary file's is still ENOSPC."""
    place = own_directory("size=1M,abi=gmem-6.18")
    with gmem(place, NEITHER, 2 << 20) as fd:
        with refused(errno.ENOMEM):
            fallocate(fd, KEEP_SIZE, 0, 2 << 20)
        assert os.fstat(fd).st_blocks == 0
    with open(place / "ordinary", "wb") as ordinary, refused(errno.ENOSPC):
        fallocate(ordinary.fileno(), 0, 0, 2 << 20)


def test_a_named_one_is_made_with_memfs_and_opened_by_name(place: Path) -> None:
    path = place / "vm.mem"
    said = run("memfs create vm.mem --size 16K --flags mmap,init-shared", place)
    assert said.stdout == "vm.mem: guest_memfd of gmem-7.2, 16K, flags mmap,init-shared\n"
    fd = os.open(path, os.O_RDWR)
    with shared(fd, SIZE) as mapping:
        mapping[0] = 1
        assert run("memfs map vm.mem", place).stdout.split()[-1] == "shared"
    with refused(errno.EINVAL):
        os.truncate(path, 0)
    with refused(errno.EINVAL):
        os.open(path, os.O_RDWR | os.O_TRUNC)
    os.close(fd)
    path.unlink()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--size 5000 --flags mmap", "EINVAL"),
        ("--flags mmap", "EINVAL"),
        ("--size 16K --flags mmap,exec", "no flag 'exec': choose from mmap, init-shared"),
        ("--size 16K --abi gmem-6.18", "this mount is of abi=gmem-7.2"),
        ("--size 16K --abi gmem-7.2 --guest", "leave --guest and --page-size out"),
    ],
)
def test_what_memfs_refuses_leaves_no_file(place: Path, arguments: str, said: str) -> None:
    done = run(f"memfs create vm.mem {arguments}", place)
    assert done.returncode in (1, 2)
    assert said in done.stdout
    assert os.listdir(place) == []


def test_a_mount_of_the_threads_abi_has_none(own_directory: DirectoryFactory) -> None:
    place = own_directory("size=64M")
    with refused(errno.EOPNOTSUPP), gmem(place, NEITHER):
        pass
    done = run("memfs create vm.mem --size 16K --flags mmap", place)
    assert "a mount with abi=thread has no guest_memfds" in done.stdout
    assert os.listdir(place) == []


def test_nothing_is_sealed_for_a_guest_on_such_a_mount(place: Path) -> None:
    """The thread's files for guests were made beside Linux's, and no VM could use them."""
    file = place / "file"
    file.touch()
    with refused(errno.EOPNOTSUPP):
        os.setxattr(file, XATTR_SEALS, b"guest")
    with refused(errno.EOPNOTSUPP):
        os.setxattr(file, XATTR_SEALS, b"guest,truncate,write")
    fd = os.open(file, os.O_WRONLY)
    with refused(errno.EOPNOTSUPP):
        fcntl.ioctl(fd, IOC_ADD_SEALS, int(Seal.GUEST).to_bytes(4, "little"))
    os.close(fd)
    with refused(errno.EOPNOTSUPP):
        memfsd.memfd_encrypted("vm", PAGE, mount=str(place))
    for command in ("memfs create other --guest --size 1M", "memfs seal file guest"):
        done = run(command, place)
        assert done.returncode == 1 and "guest_memfds on this mount" in done.stdout, done.stdout
    assert os.listdir(place) == ["file"]
    os.setxattr(file, XATTR_SEALS, b"write")
    assert os.getxattr(file, XATTR_SEALS) == b"write", "a memfd has its own seals"


def test_a_guest_memfd_has_no_seals_and_is_no_device(place: Path) -> None:
    with gmem(place, BOTH) as fd:
        for seals in (b"write", b"seal", b"guest"):
            with refused(errno.EINVAL):
                os.setxattr(fd, XATTR_SEALS, seals)
        with refused(errno.EINVAL):
            fcntl.ioctl(fd, IOC_ADD_SEALS, int(Seal.WRITE).to_bytes(4, "little"))
        with shared(fd, SIZE) as mapping:
            mapping[0] = 1


def test_ordinary_files_of_such_a_mount_are_what_they_are_elsewhere(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"hello" * 5000)
    assert path.read_bytes() == b"hello" * 5000
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[0:5] = b"HELLO"
        mapping.flush()
        file.flush()
        os.fsync(file.fileno())
    assert path.read_bytes()[:10] == b"HELLOhello"
    assert run("memfs check .", place).stdout.startswith("R1-R8 hold")
