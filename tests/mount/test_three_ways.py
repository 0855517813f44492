"""The three ways to make a file private: sealing it, a flag at creation, and a property of the mount."""

import errno
import os
from pathlib import Path

import pytest

from memfsd import encrypted, memfd_encrypted
from tests.support.real_mount import (
    PAGE,
    SEALS,
    DirectoryFactory,
    MountFactory,
    fallocate,
    free_frames,
    opened,
    refused,
    seal,
    seals_of,
    sh,
)
from tests.support.threads import until

BORN_GUEST = "size=64M,guest"
BORN_GUEST_RW = "size=64M,guest,open=rw"


def check_private(fd: int) -> None:
    """A write-only fd of a sealed file: nothing goes in or out, memory can be allocated."""
    assert os.getxattr(fd, SEALS) == b"guest"
    with refused(errno.EPERM):
        os.write(fd, b"x")
    with refused(errno.EBADF):
        os.read(fd, 1)
    with refused(errno.EPERM):
        os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    fallocate(fd, 0, 0, PAGE)
    assert os.fstat(fd).st_blocks == PAGE // 512


# -- sealing


def test_sealing_makes_an_existing_file_private(place: Path) -> None:
    path = place / "vm.mem"
    path.touch()
    seal(path)
    os.truncate(path, 2 * PAGE)
    with opened(path, os.O_WRONLY) as fd:
        check_private(fd)


# -- memfd_encrypted


@pytest.fixture
def chosen(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which memfd_encrypted makes its files."""
    monkeypatch.setenv("MEMFSD_MOUNT", str(place))
    return place


def test_memfd_encrypted_is_private_from_birth_and_has_no_name(chosen: Path) -> None:
    fd = memfd_encrypted("vm", 4 * PAGE)
    try:
        assert os.listdir(chosen) == []
        status = os.fstat(fd)
        assert (status.st_nlink, status.st_size) == (0, 4 * PAGE)
        check_private(fd)
        with refused(errno.EPERM):
            os.ftruncate(fd, 8 * PAGE)
    finally:
        os.close(fd)


def test_memfd_encrypted_without_a_size_gets_it_later(chosen: Path) -> None:
    fd = memfd_encrypted("vm")
    try:
        assert os.fstat(fd).st_size == 0
        os.ftruncate(fd, PAGE)
        check_private(fd)
    finally:
        os.close(fd)


def test_memfd_encrypted_memory_goes_with_its_last_fd(chosen: Path) -> None:
    free = free_frames(chosen)
    fd = memfd_encrypted("vm", 4 * PAGE)
    twin = os.dup(fd)
    fallocate(fd, 0, 0, 4 * PAGE)
    os.close(fd)
    assert free_frames(chosen) == free - 4
    os.close(twin)
    until(lambda: free_frames(chosen) == free, "the frames come back")


def test_memfd_encrypted_is_inherited_unless_cloexec(chosen: Path) -> None:
    for flags, inherited in ((0, True), (os.MFD_CLOEXEC, False)):
        fd = memfd_encrypted("vm", 0, flags)
        try:
            assert os.get_inheritable(fd) == inherited
        finally:
            os.close(fd)


@pytest.mark.parametrize(
    ("name", "size", "flags", "number"),
    [
        ("", 0, 0, errno.EINVAL),
        ("a/b", 0, 0, errno.EINVAL),
        ("nul\0", 0, 0, errno.EINVAL),
        ("n" * 250, 0, 0, errno.EINVAL),
        ("vm", 0, os.MFD_ALLOW_SEALING, errno.EINVAL),
        ("vm", 5000, 0, errno.EINVAL),
        ("vm", -1, 0, errno.EINVAL),
    ],
)
def test_memfd_encrypted_refuses_and_leaves_nothing(
    chosen: Path, name: str, size: int, flags: int, number: int
) -> None:
    fds = len(os.listdir("/proc/self/fd"))
    with refused(number):
        memfd_encrypted(name, size, flags)
    assert os.listdir(chosen) == []
    assert len(os.listdir("/proc/self/fd")) == fds


def test_memfd_encrypted_outside_of_a_mount_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMFSD_MOUNT", str(tmp_path))
    with refused(errno.ENODEV):
        memfd_encrypted("vm", PAGE)
    assert os.listdir(tmp_path) == []


def test_memfd_encrypted_passes_over_the_mount_of_a_dead_daemon(
    mount: MountFactory, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = mount("size=16M")
    dead.process.kill()
    dead.process.wait()
    monkeypatch.delenv("MEMFSD_MOUNT", raising=False)
    monkeypatch.setattr(encrypted, "_mounts", lambda: [str(dead.path), str(place)])
    fd = memfd_encrypted("vm", PAGE)
    try:
        assert os.getxattr(fd, SEALS) == b"guest"
    finally:
        os.close(fd)
    monkeypatch.setattr(encrypted, "_mounts", lambda: [str(dead.path)])
    with refused(errno.ENODEV):
        memfd_encrypted("vm", PAGE)


def test_memfd_encrypted_does_not_choose_among_mounts(
    mount: MountFactory, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first that answers may be another user's, who would get the memory."""
    other = mount("size=16M")
    monkeypatch.delenv("MEMFSD_MOUNT", raising=False)
    monkeypatch.setattr(encrypted, "_mounts", lambda: [str(other.path), str(place)])
    with pytest.raises(OSError, match="several memfsd mounts answer: set MEMFSD_MOUNT to one of ") as caught:
        memfd_encrypted("vm", PAGE)
    assert caught.value.errno == errno.ENOTUNIQ
    assert str(other.path) in str(caught.value)
    assert str(place) in str(caught.value)
    fd = memfd_encrypted("vm", PAGE, mount=str(place))
    try:
        assert os.fstat(fd).st_dev == os.stat(place).st_dev
    finally:
        os.close(fd)


# -- -o guest


def test_on_a_guest_mount_every_new_file_is_born_sealed(own_directory: DirectoryFactory) -> None:
    directory = own_directory(BORN_GUEST)
    sh("touch one; truncate -s 64K two; mkdir d; ln -s one s; mkfifo p; memfs create three --size 4K", directory)
    assert [seals_of(directory / name) for name in ("one", "two", "three")] == ["guest"] * 3
    assert sh("stat -c '%s %b' two", directory) == "65536 0\n"
    with opened(directory / "two", os.O_WRONLY) as fd:
        check_private(fd)
    sh("mkdir d/e; mv d renamed; rm s p", directory)


def test_on_a_guest_mount_nothing_can_be_written_into_a_new_file(own_directory: DirectoryFactory) -> None:
    directory = own_directory(BORN_GUEST)
    (directory / "empty").touch()
    for command in ("echo x > f", "cp /bin/true g", "dd if=/bin/true of=h", "cat empty"):
        assert "Operation not permitted" in sh(command, directory, status=1)


def test_on_a_guest_mount_creating_for_reading_is_refused_and_creates_nothing(own_directory: DirectoryFactory) -> None:
    directory = own_directory(BORN_GUEST)
    for flags in (os.O_RDWR, os.O_RDONLY):
        with refused(errno.EPERM), opened(directory / "f", flags | os.O_CREAT):
            pass
    assert os.listdir(directory) == []


def test_on_a_guest_mount_with_open_rw_creating_read_write_works(own_directory: DirectoryFactory) -> None:
    directory = own_directory(BORN_GUEST_RW)
    with opened(directory / "f", os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, PAGE)
        with refused(errno.EPERM):
            os.read(fd, 1)
        with refused(errno.EPERM):
            os.write(fd, b"x")
    assert seals_of(directory / "f") == "guest"
