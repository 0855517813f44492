"""The mount options of private memory, each with a guest that runs."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attack.conftest import MountFactory
from tests.attack.guests import RunningGuest
from tests.attack.target import PAGE
from tests.support.real_mount import (
    DEADLINE_S,
    ENVIRONMENT,
    Mount,
    block_count,
    free_frames,
    opened,
    refused,
    seal,
    seals_of,
    sh,
)

SIZE = 16 * PAGE
Directory = Callable[[Mount], Path]


def sealed(path: Path, size: int = SIZE) -> Path:
    path.touch()
    if seals_of(path) != "guest":
        seal(path)
    os.truncate(path, size)
    return path


@pytest.fixture
def start() -> object:
    """start(path): a guest on it, ended after the test."""
    guests: list[RunningGuest] = []

    def begin(path: Path) -> RunningGuest:
        guests.append(RunningGuest(path))
        return guests[-1]

    yield begin
    for guest in guests:
        guest.end()


Start = Callable[[Path], RunningGuest]


def check(mounted: Mount) -> None:
    """R1 to R8 hold, in both processes."""
    sh(f"memfs check {mounted.path}", mounted.path)


# -- resize=any


def test_a_shrink_takes_memory_back_from_a_running_guest_and_leaves_the_rest(
    mount: MountFactory, directory: Directory, start: Start
) -> None:
    mounted = mount("resize=any")
    path = sealed(directory(mounted) / "vm.mem")
    guest = start(path)
    guest.do('write 0 "stays"')
    guest.do(f'write {SIZE - PAGE:#x} "goes"')
    free = free_frames(mounted.path)
    os.truncate(path, SIZE // 2)
    assert path.stat().st_size == SIZE // 2
    assert free_frames(mounted.path) == free + 1, "the frame was free before truncate(2) returned"
    assert bytes.fromhex(guest.do("read 0 5")) == b"stays"
    gone = guest.ask(f"read {SIZE - PAGE:#x} 4")
    assert (gone["ok"], gone["exit"]) == (False, "KVM_EXIT_MEMORY_ERROR")
    check(mounted)


def test_what_grows_back_reads_as_zeros(mount: MountFactory, directory: Directory, start: Start) -> None:
    mounted = mount("resize=any")
    path = sealed(directory(mounted) / "vm.mem")
    guest = start(path)
    guest.do(f'write {SIZE - PAGE:#x} "goes"')
    os.truncate(path, SIZE // 2)
    os.truncate(path, SIZE)
    assert bytes.fromhex(guest.do(f"read {SIZE - PAGE:#x} 4")) == bytes(4)
    guest.do(f'write {SIZE - PAGE:#x} "new"')
    assert bytes.fromhex(guest.do(f"read {SIZE - PAGE:#x} 3")) == b"new"
    check(mounted)


def test_a_guest_shrinks_to_nothing_and_grows_again(mount: MountFactory, directory: Directory, start: Start) -> None:
    mounted = mount("resize=any")
    path = sealed(directory(mounted) / "vm.mem")
    free = free_frames(mounted.path)
    guest = start(path)
    guest.do(f"touch 0 {SIZE}")
    os.truncate(path, 0)
    assert block_count(path) == 0
    assert free_frames(mounted.path) == free
    assert guest.ask("read 0 1")["ok"] is False
    os.truncate(path, SIZE)
    assert bytes.fromhex(guest.do("read 0 1")) == b"\0"
    check(mounted)


@pytest.mark.parametrize("size", [1, PAGE - 1, SIZE - 1, SIZE + 1])
def test_an_unaligned_size_is_einval_and_takes_nothing(
    mount: MountFactory, directory: Directory, start: Start, size: int
) -> None:
    path = sealed(directory(mount("resize=any")) / "vm.mem")
    guest = start(path)
    guest.do(f"touch 0 {SIZE}")
    with refused(errno.EINVAL):
        os.truncate(path, size)
    assert (path.stat().st_size, block_count(path)) == (SIZE, SIZE // 512)


@pytest.mark.parametrize("how", [": > vm.mem", "cp /dev/null vm.mem", "dd if=/dev/null of=vm.mem"])
def test_a_shell_that_overwrites_does_not_empty_it_although_truncate_might(
    mount: MountFactory, directory: Directory, start: Start, how: str
) -> None:
    path = sealed(directory(mount("resize=any")) / "vm.mem")
    guest = start(path)
    guest.do('write 0 "stays"')
    assert "not permitted" in sh(how, path.parent, status=1)
    assert bytes.fromhex(guest.do("read 0 5")) == b"stays"


# -- seal_nonempty=truncate


def test_the_mount_truncates_what_is_sealed_and_the_guest_finds_zeros(
    mount: MountFactory, directory: Directory, start: Start
) -> None:
    mounted = mount("seal_nonempty=truncate")
    path = directory(mounted) / "vm.mem"
    path.write_bytes(b"from before" * 1000)
    with path.open("rb"), refused(errno.EBUSY):
        seal(path)
    seal(path)
    assert (path.stat().st_size, block_count(path)) == (0, 0)
    os.truncate(path, SIZE)
    assert bytes.fromhex(start(path).do("read 0 4096")) == bytes(PAGE)
    check(mounted)


# -- -o guest


def test_every_new_file_is_born_sealed_and_a_guest_runs_on_it(
    mount: MountFactory, directory: Directory, start: Start
) -> None:
    mounted = mount("guest,open=strict")
    place = directory(mounted)
    sh("touch touched; : > redirected; mknod made p; mkdir directory; ln -s touched link", place)
    sh("memfs create made-by-memfs --size 64K", place)
    for name in ("touched", "redirected", "made-by-memfs", "link"):
        assert seals_of(place / name) == "guest"
    assert not os.listxattr(place / "directory")
    os.truncate(place / "touched", SIZE)
    guest = start(place / "touched")
    guest.do('write 0 "private"')
    assert "not permitted" in sh("cat touched", place, status=1)
    check(mounted)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_EXCL], ids=["ro", "rw", "rw|excl"])
def test_creating_one_to_read_it_is_eperm_and_creates_nothing(
    mount: MountFactory, directory: Directory, flags: int
) -> None:
    place = directory(mount("guest,open=strict"))
    with refused(errno.EPERM):
        os.open(place / "new", flags | os.O_CREAT)
    assert list(place.iterdir()) == []


def test_a_copy_into_it_is_refused(mount: MountFactory, directory: Directory) -> None:
    place = directory(mount("guest,open=strict"))
    assert "not permitted" in sh("cp /etc/passwd copy", place, status=1)
    assert block_count(place / "copy") == 0


# -- open=rw


def test_fallocate_1_allocates_and_punches_while_a_guest_runs(
    mount: MountFactory, directory: Directory, start: Start
) -> None:
    mounted = mount("open=rw")
    path = sealed(directory(mounted) / "vm.mem")
    guest = start(path)
    guest.do('write 0 "stays"')
    guest.do('write 0x1000 "goes"')
    sh(f"fallocate -l {SIZE} vm.mem", path.parent)
    assert block_count(path) == SIZE // 512
    sh("fallocate -p -o 4K -l 4K vm.mem", path.parent)
    assert bytes.fromhex(guest.do("read 0x1000 4")) == bytes(4)
    assert bytes.fromhex(guest.do("read 0 5")) == b"stays"
    assert "Invalid argument" in sh(f"fallocate -l {SIZE + PAGE} vm.mem", path.parent, status=1)
    assert "not supported" in sh("fallocate -z -l 4K vm.mem", path.parent, status=1)
    assert "not supported" in sh("fallocate -c -l 4K vm.mem", path.parent, status=1)
    check(mounted)


def test_xfs_io_works_and_reads_nothing_while_a_guest_runs(
    mount: MountFactory, directory: Directory, start: Start
) -> None:
    mounted = mount("open=rw")
    path = sealed(directory(mounted) / "vm.mem")
    guest = start(path)
    guest.do('write 0x1000 "a secret of the guest"')

    def xfs_io(command: str) -> str:
        # It says what went wrong and has no exit status for it.
        search = ENVIRONMENT["PATH"] + ":/usr/sbin:/sbin"
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.own_mount_only", mounted.path, "xfs_io", "-c", command, path],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            env={**ENVIRONMENT, "PATH": search},
        )
        return done.stdout + done.stderr

    assert "Operation not permitted" in xfs_io("pread -v 4K 4K")
    assert "Operation not permitted" in xfs_io("pwrite 4K 4K")
    assert "No such device" in xfs_io("mmap -r 0 16K")
    assert bytes.fromhex(guest.do("read 0x1000 8")) == b"a secret"
    assert xfs_io("fpunch 4K 4K") == ""
    assert bytes.fromhex(guest.do("read 0x1000 8")) == bytes(8)


@pytest.mark.parametrize("mode", ["strict", "rw"])
def test_the_vmm_itself_does_not_reach_it_as_shared_memory(
    mount: MountFactory, directory: Directory, start: Start, mode: str
) -> None:
    """A shared slot over a sealed file is host user space, too."""
    path = sealed(directory(mount(f"open={mode}")) / "vm.mem")
    guest = start(path)
    guest.do('write 0 "private"')
    answer = guest.ask(f"slot set 9 shared gpa=1G size=64K file={path}")
    assert answer["ok"] is (mode == "rw")
    if answer["ok"]:
        answer = guest.ask("read 1G 7 shared")
    assert answer["ok"] is False
    assert answer["data"] is None


def test_a_write_only_handle_is_enough_for_all_that_a_vmm_needs(
    mount: MountFactory, directory: Directory, start: Start
) -> None:
    path = directory(mount("open=strict")) / "vm.mem"
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        os.setxattr(fd, "user.memfsd.seals", b"guest")
        os.ftruncate(fd, SIZE)
        os.posix_fallocate(fd, 0, SIZE)
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
    guest = start(path)
    guest.do("touch 0 64K")
    assert bytes.fromhex(guest.do("read 0 4")) == bytes(4)
