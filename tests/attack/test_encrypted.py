"""memfsd.memfd_encrypted(): private from birth, without a name."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memfsd import memfd_encrypted
from memfsd.encrypted import MOUNT_VARIABLE
from tests.attack.conftest import MountFactory
from tests.attack.guests import RunningGuest
from tests.attack.target import PAGE
from tests.support.real_mount import DEADLINE_S, Mount, free_frames, refused
from tests.support.threads import until

SIZE = 16 * PAGE


@pytest.fixture(params=["open=strict", "guest,open=strict"])
def here(request: pytest.FixtureRequest, mount: MountFactory, monkeypatch: pytest.MonkeyPatch) -> Mount:
    mounted = mount(request.param)
    monkeypatch.setenv(MOUNT_VARIABLE, str(mounted.path))
    return mounted


@pytest.fixture
def fd(here: Mount) -> Iterator[int]:
    fd = memfd_encrypted("vm", SIZE)
    yield fd
    os.close(fd)


def test_it_is_an_unlinked_sealed_file_of_the_size_asked_for(here: Mount, fd: int) -> None:
    status = os.fstat(fd)
    assert (status.st_nlink, status.st_size, status.st_blocks) == (0, SIZE, 0)
    assert status.st_mode & 0o777 == 0o600
    assert os.getxattr(fd, "user.memfsd.seals") == b"guest"
    assert not [name for name in os.listdir(here.path) if "vm" in name]


def test_it_is_open_write_only_and_nothing_is_read_or_written(fd: int) -> None:
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
    with refused(errno.EBADF):
        os.pread(fd, 1, 0)
    with refused(errno.EPERM):
        os.pwrite(fd, b"x", 0)
    with refused(errno.EPERM):
        os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)


def test_its_size_is_set_once_at_birth_or_later(here: Mount, fd: int) -> None:
    with refused(errno.EPERM):
        os.ftruncate(fd, 2 * SIZE)
    later = memfd_encrypted("later")
    assert os.fstat(later).st_size == 0
    os.ftruncate(later, SIZE)
    with refused(errno.EPERM):
        os.ftruncate(later, 2 * SIZE)
    os.close(later)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("flags", "inherited"), [(0, True), (os.MFD_CLOEXEC, False)])
def test_close_on_exec_is_asked_for_as_with_memfd_create(flags: int, inherited: bool) -> None:
    fd = memfd_encrypted("vm", 0, flags)
    assert os.get_inheritable(fd) == inherited
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.fstat({fd})"], close_fds=False, capture_output=True, timeout=DEADLINE_S
    )
    assert (done.returncode == 0) == inherited
    os.close(fd)


@pytest.mark.parametrize(
    ("name", "size", "flags"),
    [
        ("", 0, 0),
        ("a/b", 0, 0),
        ("a\0b", 0, 0),
        ("n" * 201, 0, 0),
        ("vm", 0, os.MFD_ALLOW_SEALING),
        ("vm", 0, os.MFD_HUGETLB),
        ("vm", 0, 1 << 40),
        ("vm", 1, 0),
        ("vm", PAGE + 1, 0),
        ("vm", -PAGE, 0),
    ],
)
def test_what_makes_no_sense_is_einval_and_leaves_nothing(here: Mount, name: str, size: int, flags: int) -> None:
    held = set(os.listdir("/proc/self/fd"))
    with refused(errno.EINVAL):
        memfd_encrypted(name, size, flags)
    assert set(os.listdir("/proc/self/fd")) == held
    assert not [entry for entry in os.listdir(here.path) if entry.startswith(".")]


@pytest.mark.usefixtures("here")
def test_names_are_for_people_and_may_be_the_same() -> None:
    first, second = memfd_encrypted("ünïcode name"), memfd_encrypted("ünïcode name")
    assert os.fstat(first).st_ino != os.fstat(second).st_ino
    os.close(first)
    os.close(second)


def test_a_guest_runs_on_it_and_its_memory_goes_with_the_last_handle(here: Mount) -> None:
    before = free_frames(here.path)
    fd = memfd_encrypted("vm", SIZE, os.MFD_CLOEXEC)
    guest = RunningGuest(f"/proc/{os.getpid()}/fd/{fd}")
    try:
        guest.do('write 0x1000 "private"')
        os.close(fd)
        assert bytes.fromhex(guest.do("read 0x1000 7")) == b"private"
        assert free_frames(here.path) < before
    finally:
        guest.end()
    until(lambda: free_frames(here.path) == before, "every frame is back")


IN_OWN_NAMESPACE = """
import ctypes, os, sys
mounted, place = (os.fsencode(argument) for argument in sys.argv[1:])
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0 and libc.mount(None, b"/", None, 16384 | 1 << 18, None) == 0
if place:
    assert libc.mount(mounted, place, None, 4096, None) == 0
for line in open("/proc/self/mounts", "rb").read().splitlines():
    path = line.split()[1].decode("unicode_escape").encode("latin-1")
    if line.split()[2] == b"fuse.memfsd" and path != place:
        libc.umount2(path, 2)
from memfsd import memfd_encrypted
try:
    print(os.readlink(f"/proc/self/fd/{memfd_encrypted('vm', 4096)}"))
except OSError as error:
    print(error.errno, error.strerror)
"""


def in_own_namespace(mounted: Path | str = "", place: Path | str = "") -> str:
    """What a process says that sees no memfsd mount, or only this one and only at this place."""
    environment = {name: value for name, value in os.environ.items() if name != MOUNT_VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", IN_OWN_NAMESPACE, mounted, place],
        cwd=Path(__file__).parents[2],
        env={**environment, "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_a_mount_it_is_enodev_and_says_what_to_do() -> None:
    said = in_own_namespace()
    assert said.startswith(f"{errno.ENODEV} ")
    assert MOUNT_VARIABLE in said


def test_a_directory_that_is_no_mount_is_enodev_and_stays_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MOUNT_VARIABLE, str(tmp_path))
    with refused(errno.ENODEV):
        memfd_encrypted("vm")
    assert list(tmp_path.iterdir()) == []


def test_it_finds_the_mount_whatever_its_name(mount: MountFactory, tmp_path: Path) -> None:
    """/proc/self/mounts escapes blanks and backslashes, and leaves other bytes as they are."""
    place = tmp_path / "ünï code\\here\tthere"
    place.mkdir()
    assert in_own_namespace(mount("open=strict").path, place).startswith(f"{place}/.vm.")
