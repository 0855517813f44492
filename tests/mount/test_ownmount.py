"""memfsd.mounted(): a mount for the time of a block, and nothing left after it."""

import os
import signal
from pathlib import Path

import pytest

import kvmsim
import memfsd
from memfsd.common.mounts import memfsd_mounts


def mount_points() -> set[str]:
    return {mount.path for mount in memfsd_mounts()}


def test_it_is_there_and_then_it_is_gone() -> None:
    with memfsd.mounted(size="16M", options="nr_inodes=100,guest") as mount:
        assert mount.path in mount_points()
        path = mount.create("vm.mem", "1M")
        assert path == os.path.join(mount, "vm.mem") == mount.file("vm.mem")
        assert mount.stat("vm.mem").size == 1 << 20
        assert mount.pool()["frames"] == 4096
        mount.create("ordinary", guest=False)
        mount.seal("ordinary")
        with kvmsim.VM() as vm:
            vm.set_user_memory_region(0, 0, 1 << 20, guest_memfd=path)
            vm.create_vcpu().write(0, b"x")
            mount.punch("vm.mem", 0, 4096)
            assert vm.vcpus[0].read(0, 1) == b"\0"
            assert mount.check() == []
    assert mount.path not in mount_points()
    assert not os.path.exists(os.path.dirname(mount.path))


def test_a_directory_of_ones_own_stays(tmp_path: Path) -> None:
    with memfsd.mounted(tmp_path, size=16 << 20) as mount:
        assert Path(mount.path) == tmp_path
        assert mount.pool()["frames"] == 4096
    assert tmp_path.is_dir()
    assert str(tmp_path) not in mount_points()


def test_it_goes_from_under_whoever_holds_it_and_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), memfsd.mounted(size="16M") as mount:  # noqa: PT012 - the block is what ends
        fd = os.open(mount.create("held", 4096), os.O_WRONLY)
        raise ZeroDivisionError
    os.close(fd)
    assert mount.path not in mount_points()
    assert mount.process is not None
    assert mount.process.returncode is not None


def test_a_daemon_that_was_killed_leaves_no_mount() -> None:
    with memfsd.mounted(size="16M") as mount:
        assert mount.process is not None
        mount.process.send_signal(signal.SIGKILL)
        mount.process.wait()
    assert mount.path not in mount_points()


def test_what_memfsd_says_is_the_reason(tmp_path: Path) -> None:
    with pytest.raises(kvmsim.Refused, match="unknown option 'nonsense'"), memfsd.mounted(options="nonsense"):
        pass
    with pytest.raises(kvmsim.Refused, match="missing"), memfsd.mounted(tmp_path / "missing"):
        pass
