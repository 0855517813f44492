"""The guest seal on a real mount, row by row as DESIGN's table has it."""

import contextlib
import errno
import mmap
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.real_mount import (
    COLLAPSE_RANGE,
    INSERT_RANGE,
    KEEP_SIZE,
    PAGE,
    PUNCH_HOLE,
    ZERO_RANGE,
    DirectoryFactory,
    MountFactory,
    block_count,
    fallocate,
    free_frames,
    opened,
    refused,
    run,
    seal,
    seals_of,
    sh,
)
from tests.support.threads import DEADLINE_S, until

STRICT = "size=64M"
OPEN_RW = "size=64M,open=rw"
RESIZE_ANY = "size=64M,resize=any"
SEAL_TRUNCATES = "size=64M,seal_nonempty=truncate"
SIZE = 16 * PAGE


@pytest.fixture(params=[STRICT, OPEN_RW], ids=["open=strict", "open=rw"])
def directory(request: pytest.FixtureRequest, own_directory: DirectoryFactory) -> Path:
    """What holds whichever way sealed files open."""
    return own_directory(request.param)


def sealed_file(directory: Path, size: int = 0) -> Path:
    path = directory / "vm.mem"
    path.touch()
    seal(path)
    if size:
        os.truncate(path, size)
    return path


# -- adding the seal


def test_an_empty_file_that_nobody_reads_is_sealed_for_ever(directory: Path) -> None:
    sh("touch vm.mem && setfattr -n user.memfsd.seals -v guest vm.mem", directory)
    assert sh("getfattr --only-values -n user.memfsd.seals vm.mem", directory) == "guest"
    assert "Operation not permitted" in sh("setfattr -x user.memfsd.seals vm.mem", directory, status=1)
    assert seals_of(directory / "vm.mem") == "guest"


def test_a_write_only_handle_does_not_hinder_the_seal_and_loses_its_write(directory: Path) -> None:
    path = directory / "vm.mem"
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        seal(path)
        with refused(errno.EPERM):
            os.write(fd, b"plain text")
        os.ftruncate(fd, SIZE)
        fallocate(fd, 0, 0, SIZE)
    assert block_count(path) == SIZE // 512


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR], ids=["O_RDONLY", "O_RDWR"])
def test_a_reader_makes_the_seal_busy_until_it_closes(directory: Path, flags: int) -> None:
    path = directory / "vm.mem"
    path.touch()
    with opened(path, flags):
        with refused(errno.EBUSY):
            seal(path)
        assert seals_of(path) == ""
    seal(path)


@pytest.mark.parametrize("access", [mmap.ACCESS_READ, mmap.ACCESS_WRITE, mmap.ACCESS_COPY], ids=["r", "rw", "private"])
def test_a_mapping_makes_the_seal_busy_after_its_fd_is_closed(directory: Path, access: int) -> None:
    path = directory / "vm.mem"
    path.write_bytes(b"x" * PAGE)
    with opened(path, os.O_RDWR) as fd:
        mapping = mmap.mmap(fd, PAGE, access=access)
    with mapping:
        os.truncate(path, 0)
        with refused(errno.EBUSY):
            seal(path)
        with refused(errno.EBUSY):
            seal(path, "guest,truncate")
        assert seals_of(path) == ""
    seal(path)


def test_what_was_closed_before_the_seal_is_not_in_its_way_however_late_its_release(directory: Path) -> None:
    """The kernel sends RELEASE behind reads ahead of the handle, and behind other releases when there are many."""
    others = [directory / f"other{number}" for number in range(50)]
    for number in range(20):
        path = directory / f"vm{number}.mem"
        path.write_bytes(b"contents" * (1 << 19))
        with opened(path, os.O_RDONLY) as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        seal(path, "guest,truncate")
        path.unlink()
        path.touch()
        fds = [os.open(other, os.O_RDWR | os.O_CREAT) for other in (*others, path)]
        for fd in fds:
            os.close(fd)
        seal(path)


def test_a_file_with_contents_is_busy_and_keeps_them(directory: Path) -> None:
    path = directory / "vm.mem"
    path.write_bytes(b"contents")
    with refused(errno.EBUSY):
        seal(path)
    assert seals_of(path) == ""
    assert path.read_bytes() == b"contents"


@pytest.mark.parametrize(
    ("options", "seals"), [(STRICT, "guest,truncate"), (SEAL_TRUNCATES, "guest")], ids=["asked", "mount"]
)
def test_the_file_is_emptied_first_when_the_caller_or_the_mount_says_so(
    own_directory: DirectoryFactory, options: str, seals: str
) -> None:
    directory = own_directory(options)
    path = directory / "vm.mem"
    path.write_bytes(b"contents" * 1000)
    assert path.read_bytes()[:8] == b"contents"  # and so the kernel caches them
    sh(f"memfs seal vm.mem {seals}", directory)
    assert (os.stat(path).st_size, block_count(path)) == (0, 0)
    with refused(errno.EPERM), opened(path, os.O_RDONLY):
        pass


def test_what_the_file_held_before_the_seal_is_out_of_the_kernels_cache_too(
    own_directory: DirectoryFactory,
) -> None:
    directory = own_directory(OPEN_RW)
    path = directory / "vm.mem"
    path.write_bytes(b"contents" * 1000)
    assert path.read_bytes()[:8] == b"contents"
    seal(path, "guest,truncate")
    os.truncate(path, 2 * PAGE)
    with opened(path, os.O_RDWR) as fd, refused(errno.EPERM):
        os.pread(fd, 8, 0)
    assert touch_private_mapping(path) == -7, "SIGBUS"


def test_a_reader_stops_a_truncating_seal_and_nothing_is_truncated(own_directory: DirectoryFactory) -> None:
    path = own_directory(SEAL_TRUNCATES) / "vm.mem"
    path.write_bytes(b"contents")
    with opened(path, os.O_RDONLY), refused(errno.EBUSY):
        seal(path)
    assert path.read_bytes() == b"contents"


@pytest.mark.parametrize("more", ["guest", "shrink", "grow", "write", "future-write", "seal"])
def test_after_the_seal_named_seal_no_other_is_added(directory: Path, more: str) -> None:
    path = sealed_file(directory)
    seal(path, "seal")
    with refused(errno.EPERM):
        seal(path, more)
    assert seals_of(path) == "seal,guest"


def test_a_file_sealed_against_seals_first_never_becomes_private(directory: Path) -> None:
    path = directory / "vm.mem"
    path.touch()
    seal(path, "seal")
    with refused(errno.EPERM):
        seal(path)
    assert seals_of(path) == "seal"


def test_sealing_again_changes_nothing(directory: Path) -> None:
    path = sealed_file(directory, SIZE)
    seal(path)
    seal(path, "guest,truncate")
    assert (seals_of(path), os.stat(path).st_size) == ("guest", SIZE)


# -- opening


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC], ids=["r", "rw", "rw trunc"])
def test_strict_refuses_to_open_for_reading(place: Path, flags: int) -> None:
    path = sealed_file(place, SIZE)
    with refused(errno.EPERM), opened(path, flags):
        pass
    assert os.stat(path).st_size == SIZE


@pytest.mark.parametrize(
    "command",
    ["cat vm.mem", "cp vm.mem copy", "dd if=vm.mem of=copy", "head -c 1 vm.mem", "sha256sum vm.mem", "./vm.mem"],
)
def test_strict_gives_tools_nothing_to_read(place: Path, command: str) -> None:
    sealed_file(place, SIZE).chmod(0o755)
    printed = run(command, place)
    assert printed.returncode != 0
    assert "Operation not permitted" in printed.stdout
    assert not (place / "copy").exists() or os.stat(place / "copy").st_size == 0


def test_a_write_only_handle_can_not_be_mapped_or_read(directory: Path) -> None:
    path = sealed_file(directory, SIZE)
    with opened(path, os.O_WRONLY) as fd:
        for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
            for protection in (mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_WRITE):
                with refused(errno.EACCES):
                    mmap.mmap(fd, PAGE, flags=flags, prot=protection)
        with refused(errno.EBADF):
            os.read(fd, 1)
        with refused(errno.EBADF):
            os.pread(fd, 1, 0)


def test_a_write_only_handle_does_not_reopen_for_reading_through_proc(place: Path) -> None:
    path = sealed_file(place, SIZE)
    with opened(path, os.O_WRONLY) as fd, refused(errno.EPERM), opened(Path(f"/proc/self/fd/{fd}"), os.O_RDONLY):
        pass


def test_open_rw_opens_and_then_refuses_to_read(own_directory: DirectoryFactory) -> None:
    directory = own_directory(OPEN_RW)
    path = sealed_file(directory, SIZE)
    fallocate_all(path)
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDONLY | os.O_DIRECT):
        with opened(path, flags) as fd, opened(directory / "copy", os.O_WRONLY | os.O_CREAT) as target:
            read_end, write_end = os.pipe()
            for read in (
                lambda fd=fd, pipe=write_end: os.splice(fd, pipe, PAGE, offset_src=0),
                lambda fd=fd: os.read(fd, PAGE),
                lambda fd=fd: os.preadv(fd, [bytearray(PAGE)], 0),
                lambda fd=fd, target=target: os.sendfile(target, fd, 0, PAGE),
                lambda fd=fd, target=target: os.copy_file_range(fd, target, PAGE, 0),
            ):
                with refused(errno.EPERM):
                    read()
            os.close(read_end)
            os.close(write_end)
    assert os.stat(directory / "copy").st_size == 0


@pytest.mark.parametrize("protection", [mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE], ids=["r", "rw"])
def test_open_rw_refuses_a_shared_mapping(own_directory: DirectoryFactory, protection: int) -> None:
    path = sealed_file(own_directory(OPEN_RW), SIZE)
    with opened(path, os.O_RDWR) as fd, refused(errno.ENODEV):
        mmap.mmap(fd, PAGE, flags=mmap.MAP_SHARED, prot=protection)


def test_open_rw_allows_a_private_mapping_whose_every_touch_is_sigbus(own_directory: DirectoryFactory) -> None:
    path = sealed_file(own_directory(OPEN_RW), SIZE)
    fallocate_all(path)
    assert touch_private_mapping(path) == -7, "SIGBUS"


def test_open_rw_lets_fallocate_1_work(own_directory: DirectoryFactory) -> None:
    directory = own_directory(OPEN_RW)
    path = sealed_file(directory, SIZE)
    sh(f"fallocate -l {SIZE} vm.mem", directory)
    assert block_count(path) == SIZE // 512
    sh(f"fallocate -p -o {PAGE} -l {PAGE} vm.mem", directory)
    assert block_count(path) == (SIZE - PAGE) // 512


def touch_private_mapping(path: Path) -> int:
    """Exit status of a process that reads a byte through MAP_PRIVATE."""
    script = (
        "import mmap, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "print(mmap.mmap(fd, 4096, flags=mmap.MAP_PRIVATE)[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, timeout=DEADLINE_S, check=False)
    assert done.stdout == b""
    return done.returncode


# -- writing


def test_no_way_of_writing_writes(directory: Path) -> None:
    path = sealed_file(directory, SIZE)
    fallocate_all(path)
    source = directory / "source"
    source.write_bytes(b"s" * PAGE)
    read_end, write_end = os.pipe()
    with (
        contextlib.closing(os.fdopen(read_end)),
        contextlib.closing(os.fdopen(write_end, "wb")) as pipe,
        opened(source, os.O_RDONLY) as ordinary,
        opened(path, os.O_WRONLY) as fd,
        opened(path, os.O_WRONLY | os.O_APPEND) as append,
    ):
        pipe.write(b"p" * 100)
        pipe.flush()
        with refused(errno.EPERM):
            os.write(fd, b"w")
        with refused(errno.EPERM):
            os.write(append, b"w")
        with refused(errno.EPERM):
            os.pwrite(fd, b"w" * PAGE, PAGE)
        with refused(errno.EPERM):
            os.writev(fd, [b"w", b"w"])
        with refused(errno.EPERM):
            os.splice(read_end, fd, 100)
        with refused(errno.EPERM):
            os.sendfile(fd, ordinary, 0, PAGE)
        with refused(errno.EPERM):
            os.copy_file_range(ordinary, fd, PAGE)
    assert os.stat(path).st_size == SIZE


@pytest.mark.parametrize("command", ["echo x >> vm.mem", "dd if=/dev/zero of=vm.mem bs=4k count=1 conv=notrunc"])
def test_tools_can_not_write(directory: Path, command: str) -> None:
    sealed_file(directory, SIZE)
    printed = run(command, directory)
    assert printed.returncode != 0
    assert "Operation not permitted" in printed.stdout


def test_a_shells_redirection_does_not_empty_it(own_directory: DirectoryFactory) -> None:
    directory = own_directory(RESIZE_ANY)
    path = sealed_file(directory, SIZE)
    assert "Operation not permitted" in sh(": > vm.mem", directory, status=1)
    assert os.stat(path).st_size == SIZE


# -- size


def test_the_size_is_set_once_to_whole_pages(directory: Path) -> None:
    path = sealed_file(directory)
    assert "Invalid argument" in sh("truncate -s 5000 vm.mem", directory, status=1)
    assert os.stat(path).st_size == 0
    sh("truncate -s 64K vm.mem", directory)
    assert sh("stat -c '%s %b' vm.mem", directory) == "65536 0\n"
    for size in ("128K", "32K", "64K", "0"):
        assert "Operation not permitted" in sh(f"truncate -s {size} vm.mem", directory, status=1)
    with refused(errno.EINVAL):
        os.truncate(path, SIZE + 1)
    assert os.stat(path).st_size == SIZE


def test_resize_any_shrinks_and_grows_in_whole_pages(own_directory: DirectoryFactory) -> None:
    directory = own_directory(RESIZE_ANY)
    path = sealed_file(directory, SIZE)
    fallocate_all(path)
    free = free_frames(directory)
    os.truncate(path, 4 * PAGE)
    assert (os.stat(path).st_size, block_count(path)) == (4 * PAGE, 4 * PAGE // 512)
    assert free_frames(directory) == free + 12
    os.truncate(path, 2 * SIZE)
    assert (os.stat(path).st_size, block_count(path)) == (2 * SIZE, 4 * PAGE // 512)
    with refused(errno.EINVAL):
        os.truncate(path, PAGE + 1)
    os.truncate(path, 0)
    assert (os.stat(path).st_size, block_count(path)) == (0, 0)


@pytest.mark.parametrize(("seals", "size"), [("grow", 2 * SIZE), ("shrink", PAGE)])
def test_resize_any_obeys_the_other_seals(own_directory: DirectoryFactory, seals: str, size: int) -> None:
    path = sealed_file(own_directory(RESIZE_ANY), SIZE)
    seal(path, seals)
    with refused(errno.EPERM):
        os.truncate(path, size)
    assert os.stat(path).st_size == SIZE


# -- fallocate


def fallocate_all(path: Path) -> None:
    with opened(path, os.O_WRONLY) as fd:
        fallocate(fd, 0, 0, os.stat(path).st_size)


@pytest.mark.parametrize("mode", [0, KEEP_SIZE], ids=["0", "KEEP_SIZE"])
def test_fallocate_allocates_inside_the_size(directory: Path, mode: int) -> None:
    path = sealed_file(directory, SIZE)
    with opened(path, os.O_WRONLY) as fd:
        fallocate(fd, mode, PAGE, 3 * PAGE)
        assert block_count(path) == 3 * PAGE // 512
        fallocate(fd, mode, 0, SIZE)
    assert (block_count(path), os.stat(path).st_size) == (SIZE // 512, SIZE)


def test_a_punch_gives_the_frames_back_before_it_returns(directory: Path) -> None:
    path = sealed_file(directory, SIZE)
    fallocate_all(path)
    free = free_frames(directory)
    with opened(path, os.O_WRONLY) as fd:
        fallocate(fd, KEEP_SIZE | PUNCH_HOLE, 2 * PAGE, 4 * PAGE)
        assert free_frames(directory) == free + 4
        assert (os.lseek(fd, 0, os.SEEK_HOLE), os.lseek(fd, 2 * PAGE, os.SEEK_DATA)) == (2 * PAGE, 6 * PAGE)
    assert (block_count(path), os.stat(path).st_size) == (12 * PAGE // 512, SIZE)


@pytest.mark.parametrize(
    ("offset", "length", "freed"), [(SIZE, PAGE, 0), (1 << 40, PAGE, 0), (SIZE - PAGE, 8 * PAGE, 1)]
)
def test_a_punch_past_the_end_succeeds_and_does_nothing_there(
    directory: Path, offset: int, length: int, freed: int
) -> None:
    path = sealed_file(directory, SIZE)
    fallocate_all(path)
    with opened(path, os.O_WRONLY) as fd:
        fallocate(fd, KEEP_SIZE | PUNCH_HOLE, offset, length)
    assert (block_count(path), os.stat(path).st_size) == ((SIZE - freed * PAGE) // 512, SIZE)


@pytest.mark.parametrize(
    ("mode", "offset", "length", "number"),
    [
        pytest.param(0, SIZE - PAGE, 2 * PAGE, errno.EINVAL, id="allocate past the end"),
        pytest.param(KEEP_SIZE, SIZE, PAGE, errno.EINVAL, id="allocate past the end, KEEP_SIZE"),
        pytest.param(0, 1, PAGE, errno.EINVAL, id="unaligned offset"),
        pytest.param(0, 0, PAGE - 1, errno.EINVAL, id="unaligned length"),
        pytest.param(KEEP_SIZE | PUNCH_HOLE, 1, PAGE, errno.EINVAL, id="punch: unaligned offset"),
        pytest.param(KEEP_SIZE | PUNCH_HOLE, 0, 100, errno.EINVAL, id="punch: unaligned length"),
        pytest.param(0, 0, 0, errno.EINVAL, id="empty"),
        pytest.param(KEEP_SIZE | PUNCH_HOLE, 0, 0, errno.EINVAL, id="punch: empty"),
        pytest.param(0, -PAGE, PAGE, errno.EINVAL, id="negative offset"),
        pytest.param(ZERO_RANGE, 0, PAGE, errno.EOPNOTSUPP, id="ZERO_RANGE"),
        pytest.param(ZERO_RANGE | KEEP_SIZE, 0, PAGE, errno.EOPNOTSUPP, id="ZERO_RANGE, KEEP_SIZE"),
        pytest.param(COLLAPSE_RANGE, 0, PAGE, errno.EOPNOTSUPP, id="COLLAPSE_RANGE"),
        pytest.param(INSERT_RANGE, 0, PAGE, errno.EOPNOTSUPP, id="INSERT_RANGE"),
        pytest.param(PUNCH_HOLE, 0, PAGE, errno.EOPNOTSUPP, id="PUNCH_HOLE without KEEP_SIZE"),
    ],
)
def test_fallocate_refuses_the_rest_and_changes_nothing(
    directory: Path, mode: int, offset: int, length: int, number: int
) -> None:
    path = sealed_file(directory, SIZE)
    with opened(path, os.O_WRONLY) as fd:
        fallocate(fd, 0, 4 * PAGE, 4 * PAGE)
        with refused(number):
            fallocate(fd, mode, offset, length)
    assert (block_count(path), os.stat(path).st_size) == (4 * PAGE // 512, SIZE)


def test_a_full_pool_is_enospc_and_changes_nothing(mount: MountFactory) -> None:
    directory = mount("size=128K").path
    path = sealed_file(directory, 2 * SIZE + PAGE)
    with opened(path, os.O_WRONLY) as fd:
        fallocate(fd, 0, PAGE, PAGE)
        free = free_frames(directory)
        with refused(errno.ENOSPC):
            fallocate(fd, 0, 0, 2 * SIZE + PAGE)
        assert (block_count(path), free_frames(directory)) == (PAGE // 512, free)
        assert (os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, PAGE, os.SEEK_HOLE)) == (PAGE, 2 * PAGE)
        fallocate(fd, 0, 0, 2 * SIZE)
    assert free_frames(directory) == 0


# -- as on any file


def test_attributes_names_and_times_work_as_on_any_file(directory: Path) -> None:
    sealed_file(directory, SIZE)
    sh("chmod 640 vm.mem && chown 65534:65533 vm.mem && touch -m -d @12345 vm.mem && ln vm.mem link", directory)
    assert sh("stat -c '%a %u %g %Y %h %F' vm.mem", directory) == "640 65534 65533 12345 2 regular file\n"
    sh("mv vm.mem moved && rm link && setfattr -n user.note -v mine moved", directory)
    assert sh("getfattr --only-values -n user.note moved", directory) == "mine"
    assert sh("stat -c '%s %h' moved && ls", directory) == f"{SIZE} 1\nmoved\n"
    assert seals_of(directory / "moved") == "guest"
    assert stat.S_IMODE(os.stat(directory / "moved").st_mode) == 0o640


def test_the_data_lives_until_the_last_name_and_handle_are_gone(directory: Path) -> None:
    free = free_frames(directory)
    path = sealed_file(directory, SIZE)
    fallocate_all(path)
    os.link(path, directory / "second")
    path.unlink()
    assert free_frames(directory) == free - 16, "a name is left"
    with opened(directory / "second", os.O_WRONLY) as fd:
        (directory / "second").unlink()
        assert free_frames(directory) == free - 16, "a handle is left"
        assert (os.fstat(fd).st_nlink, os.fstat(fd).st_blocks) == (0, SIZE // 512)
        fallocate(fd, KEEP_SIZE | PUNCH_HOLE, 0, PAGE)
        assert free_frames(directory) == free - 15
    until(lambda: free_frames(directory) == free, "the frames come back after the last handle")


def test_a_sealed_file_replaced_by_rename_gives_its_frames_back(directory: Path) -> None:
    free = free_frames(directory)
    fallocate_all(sealed_file(directory, SIZE))
    sh("touch other && mv other vm.mem", directory)
    assert seals_of(directory / "vm.mem") == ""
    until(lambda: free_frames(directory) == free, "the frames come back")
