"""The peers of tools/bench do what they claim; how fast they are is no business of a test."""

import errno
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchlib import machine, minimal_fuse, raw_socket, real_kvm

kvm_reason = real_kvm.available()
needs_kvm = pytest.mark.skipif(kvm_reason is not None, reason=kvm_reason or "")

MIB = 1 << 20


@pytest.fixture
def open_fds() -> Iterator[None]:
    """Nothing the test opens stays open."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def children() -> Iterator[None]:
    """No process that the test starts is left, running or not reaped."""
    before = child_pids()
    yield
    assert child_pids() == before


def child_pids() -> set[str]:
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


# raw_socket


@pytest.mark.usefixtures("open_fds", "children")
def test_a_round_trip_takes_time_and_leaves_no_child_and_no_pinning() -> None:
    cpus = os.sched_getaffinity(0)

    assert raw_socket.round_trip_us(64, 96, rounds=20, repeats=2) > 0

    assert os.sched_getaffinity(0) == cpus


@pytest.mark.usefixtures("open_fds", "children")
def test_a_child_ends_when_the_measuring_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> float:
        raise RuntimeError("measuring failed")

    monkeypatch.setattr(raw_socket, "_median_ns", fail)

    with pytest.raises(RuntimeError, match="measuring failed"):
        raw_socket.round_trip_us(1, 1)


@pytest.mark.parametrize(("request_bytes", "reply_bytes"), [(0, 1), (1, 0)])
def test_an_empty_packet_is_refused(request_bytes: int, reply_bytes: int) -> None:
    with pytest.raises(ValueError, match="end of file"):
        raw_socket.round_trip_us(request_bytes, reply_bytes)


# minimal_fuse


@pytest.mark.usefixtures("open_fds")
def test_the_filesystem_answers_and_refuses_and_is_gone_afterwards() -> None:
    with minimal_fuse.mounted() as mount:
        assert minimal_fuse.is_mounted(mount.mountpoint)
        assert mount.file.is_file()
        assert minimal_fuse.getattr_rate(mount.file, count=10, repeats=2) > 0
        assert minimal_fuse.rejected_write_rate(mount.file, count=10, repeats=2) > 0
        with pytest.raises(FileNotFoundError):
            (mount.mountpoint / "other").stat()

    assert not minimal_fuse.is_mounted(mount.mountpoint)
    assert not mount.mountpoint.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(mount.pid, 0)


def test_every_getattr_reaches_the_daemon_and_a_dead_one_leaves_no_mount() -> None:
    with minimal_fuse.mounted() as mount:
        fd = os.open(mount.file, os.O_PATH)
        try:
            os.fstat(fd)
            os.kill(mount.pid, signal.SIGKILL)
            os.waitid(os.P_PID, mount.pid, os.WEXITED | os.WNOWAIT)
            with pytest.raises(OSError, match=r"not connected|connection abort"):
                os.fstat(fd)
        finally:
            os.close(fd)

    assert not minimal_fuse.is_mounted(mount.mountpoint)


def test_a_mount_goes_when_its_user_fails() -> None:
    with pytest.raises(KeyError), minimal_fuse.mounted() as mount:
        raise KeyError

    assert not minimal_fuse.is_mounted(mount.mountpoint)


def test_a_mount_goes_when_its_user_is_killed() -> None:
    program = (
        "import sys, benchlib.minimal_fuse as peer\n"
        "with peer.mounted() as mount:\n"
        "    print(mount.mountpoint, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "tools")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as user:
        assert user.stdout is not None
        mountpoint = Path(user.stdout.readline().strip())
        # The daemon holds the user's stdout too: its end of file is the daemon's end.
        user.kill()
        assert user.stdout.read() == ""

    assert not minimal_fuse.is_mounted(mountpoint)
    mountpoint.rmdir()


def test_with_memfd_the_file_keeps_what_is_written() -> None:
    with minimal_fuse.mounted(memfd=True) as mount:
        mount.file.write_bytes(b"abcdef")
        assert mount.file.read_bytes() == b"abcdef"
        with open(mount.file, "r+b") as file:
            file.seek(8192)
            file.write(b"x")
        assert mount.file.stat().st_size == 8193
        os.truncate(mount.file, 3)
        assert mount.file.read_bytes() == b"abc"
        with pytest.raises(RuntimeError, match="accepted"):
            minimal_fuse.rejected_write_rate(mount.file, count=1, repeats=1)


def test_a_rate_of_cached_answers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(RuntimeError, match="without the daemon"):
        minimal_fuse.getattr_rate(tmp_path / "file", count=1000, repeats=1)


def test_a_filesystem_that_cannot_start_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with pytest.raises(RuntimeError, match="ended before"), minimal_fuse.mounted():
        pass

    assert list(tmp_path.iterdir()) == []


def test_mount_points_with_blanks_are_recognised() -> None:
    line = rb"36 35 98:0 / /mnt/a\040b rw,noatime - fuse.minimal minimal rw" + b"\n"

    assert minimal_fuse._listed(Path("/mnt/a b"), line)
    assert not minimal_fuse._listed(Path("/mnt/a"), line)


# real_kvm


@needs_kvm
@pytest.mark.usefixtures("open_fds")
def test_a_guest_touches_every_page() -> None:
    assert real_kvm.first_touch(4 * MIB) > 0


@needs_kvm
def test_a_guest_touches_nothing_beyond_its_memory() -> None:
    with real_kvm._Guest(4096) as guest, pytest.raises(RuntimeError, match="1 of 1 pages"):
        guest.check(real_kvm._MARK)


@needs_kvm
@pytest.mark.usefixtures("open_fds")
@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("host_mapped", [True, False])
def test_a_punch_leaves_zeros(mapped: bool, host_mapped: bool) -> None:
    assert real_kvm.punch(4 * MIB, mapped=mapped, host_mapped=host_mapped) > 0


@pytest.mark.parametrize("size_bytes", [0, 4095, 4097, 3 << 30])
def test_sizes_the_guest_cannot_have_are_refused(size_bytes: int) -> None:
    with pytest.raises(ValueError, match="whole 4 KiB pages"):
        real_kvm.first_touch(size_bytes)


def test_a_machine_without_kvm_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(path: str, flags: int) -> int:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("os.open", absent)

    assert real_kvm.available() == "/dev/kvm cannot be opened: No such file or directory"


# machine


def test_the_machine_is_named() -> None:
    described = machine.describe("2000-01-01")

    assert described["date"] == "2000-01-01"
    assert described["kernel"] == os.uname().release
    assert described["cores"] == len(os.sched_getaffinity(0))
    assert described["dev_kvm"] is os.access("/dev/kvm", os.R_OK | os.W_OK)


def test_pinning_ends_with_its_block_even_on_an_error() -> None:
    before = os.sched_getaffinity(0)

    def fail_pinned() -> None:
        with machine.pin(machine.first_cpu()):
            assert os.sched_getaffinity(0) == {min(before)}
            raise KeyError

    with pytest.raises(KeyError):
        fail_pinned()

    assert os.sched_getaffinity(0) == before


def test_the_scattered_order_has_every_page_once_and_leaves_no_neighbours_together() -> None:
    order = real_kvm.scattered(1 << 12)
    assert sorted(order) == list(range(1 << 12))
    assert sum(abs(a - b) == 1 for a, b in itertools.pairwise(order)) < 40
    with pytest.raises(ValueError, match="power of two"):
        real_kvm.scattered(1000)


@needs_kvm
def test_a_guest_that_touches_at_random_has_written_every_page() -> None:
    assert real_kvm.random_touch(4 * MIB) > 0
