"""memfsd.create() and its kin on a real mount: what memfs does, from Python."""

import os
from pathlib import Path

import pytest

import kvmsim
import memfsd
from tests.support.real_mount import refused


def test_a_file_is_born_sealed_and_says_so(place: Path) -> None:
    path = memfsd.create(place / "vm.mem", "2M", page_size="2M")
    assert path == str(place / "vm.mem")
    about = memfsd.stat(path)
    assert (about.size, about.seals, about.page_size, about.owner) == (2 << 20, "guest", 2 << 20, "none")
    assert about.inode == os.stat(path).st_ino
    assert about.frames["private"] == 0


def test_an_ordinary_file_is_sealed_later(place: Path) -> None:
    path = memfsd.create(place / "later", guest=False)
    assert memfsd.stat(path).seals == ""
    memfsd.seal(path)
    memfsd.seal(path, "shrink,grow")
    assert set(memfsd.stat(path).seals.split(",")) == {"guest", "shrink", "grow"}


def test_frames_come_and_go(place: Path) -> None:
    path = memfsd.create(place / "vm.mem", 1 << 20)
    memfsd.allocate(path, 0, 16384)
    assert memfsd.stat(path).blocks == 32
    memfsd.punch(path, 4096, 4096)
    assert memfsd.stat(path).blocks == 24


def test_what_is_not_on_a_mount_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    for call in (memfsd.stat, memfsd.seal, lambda path: memfsd.punch(path, 0, 4096)):
        with refused(22):
            call(tmp_path / "elsewhere")
    with refused(22):
        memfsd.create(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_file_that_is_refused_leaves_nothing(place: Path) -> None:
    with refused(22):
        memfsd.create(place / "odd", page_size=12345)
    assert list(place.iterdir()) == []
    memfsd.create(place / "twice")
    with refused(17):
        memfsd.create(place / "twice")


def test_a_descriptor_of_memfd_encrypted_is_a_guest_memfd(place: Path) -> None:
    fd = memfsd.memfd_encrypted("vm", 1 << 20, mount=str(place))
    with kvmsim.VM() as vm:
        vm.set_user_memory_region(0, 0, 1 << 20, guest_memfd=fd)
        vcpu = vm.create_vcpu()
        vcpu.write(0, b"without a name")
        assert vcpu.read(0, 14) == b"without a name"
    os.close(fd)


def test_every_name_of_the_package_is_there() -> None:
    assert {name: getattr(memfsd, name) for name in memfsd.__all__}.keys() == set(memfsd.__all__)
    with pytest.raises(AttributeError):
        memfsd.nothing  # noqa: B018 - to see it refused
