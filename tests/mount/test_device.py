"""memfs device, on a real mount."""

import json
from pathlib import Path

import pytest

from memfsd.common.observer import Observer
from memfsd.common.stores import store_of
from memfsd.uapi.messages import DeviceFile, Empty, Kind
from tests.support.real_mount import Mount, MountFactory, run, sh


@pytest.fixture
def mounted(mount: MountFactory) -> Mount:
    return mount("size=16M,open=rw")


def base(mounted: Mount) -> Path:
    return mounted.path.parent


SIDE_BY_SIDE = """\
slot set 0 private gpa=0 size=1M file=mnt/vm.mem
slot set 1 private gpa=1G size=32M file=mnt/gpu
slot set 2 private gpa=2G size=64K file=mnt/nic
slot set 3 shared gpa=3G size=1M
write 0 "private"
write 1G "gpu memory"
write 2G "nic regs"
write 3G "shared" shared
info ept
sh memfs map mnt/gpu --json > map; memfs check mnt
slot delete 2 private
slot set 2 private gpa=2G size=64K file=mnt/nic
read 2G 8
expect data "nic regs"
sh memfs device remove mnt gpu; memfs check mnt
read 1G 10
expect exit MEMORY_ERROR gpa=1G errno=19
read 0 7
expect data "private"
read 2G 8
expect data "nic regs"
read 3G 6 shared
expect data "shared"
sh memfs device add mnt gpu --size 4M
slot delete 1 private
slot set 1 private gpa=1G size=4M file=mnt/gpu
read 1G 4
expect data 00000000
sh memfs kcore mnt -o core
"""


def test_private_shared_and_device_slots_in_one_guest(mounted: Mount) -> None:
    """A device is larger than the pool, since it is no part of it."""
    place = base(mounted)
    sh("memfs create mnt/vm.mem --size 1M --guest; memfs device add mnt gpu --size 32M --page-size 2M", place)
    sh("memfs device add mnt nic --size 64K", place)
    printed = sh(f"kvmsim run --journal vm.journal - <<'E'\n{SIDE_BY_SIDE}E", place)
    (mapped,) = json.loads((place / "map").read_text())["runs"]
    assert (mapped["offset"], mapped["length"], mapped["gpa"], mapped["state"]) == (0, 32 << 20, 1 << 30, "device")
    rows = [line.split() for line in printed.splitlines() if line.split()[:1] in (["private"], ["shared"])]
    assert [row[1:] for row in rows if row[-1] == "UC"] == [
        ["0x40000000", "16M", "0x0", "2M", "UC"],
        ["0x80000000", "64K", "0x0", "4K", "UC"],
    ]
    assert len([row for row in rows if row[-1] == "WB"]) == 2
    assert b"gpu memory" not in (place / "core").read_bytes()
    assert b"nic regs" not in (place / "core").read_bytes()
    assert sh("kvmsim journal check vm.journal", place).startswith("all rules hold")


def test_what_a_device_refuses(mounted: Mount) -> None:
    place = base(mounted)
    sh("memfs device add mnt dev --size 64K; touch mnt/f; memfs create mnt/vm.mem --size 1M --guest", place)
    for command, said in (
        ("memfs device add mnt dev --size 64K", "mnt/dev: File exists (EEXIST)"),
        ("memfs device add mnt f --size 64K", "mnt/f: File exists (EEXIST)"),
        ("memfs device add mnt x --size 0", "choose a --size of whole pages of 4096, one at least (EINVAL)"),
        ("memfs device add mnt x --size 5000", "whole pages of 4096"),
        ("memfs device add mnt x --size 1M --page-size 2M", "whole pages of 2097152"),
        ("memfs device add mnt x --size 2T", "(EFBIG)"),
        ("memfs device add mnt a/b --size 4K", "is not a name"),
        ("memfs device add mnt '' --size 4K", "is not a name"),
        ("memfs device add mnt .. --size 4K", "is not a name"),
        ("memfs device add . x --size 4K", "is not on a memfsd mount"),
        ("memfs device add mnt/f x --size 4K", "is not the root of a mount"),
        ("memfs device remove mnt vm.mem", "is not a device"),
        ("memfs device remove mnt f", "EINVAL"),
        ("memfs device remove mnt none", "No such file or directory (ENOENT)"),
        ("memfs fallocate -l 4K mnt/dev", "EOPNOTSUPP"),
        ("memfs fallocate -p -l 4K mnt/dev", "EOPNOTSUPP"),
        ("memfs poison mnt/dev 0", "EOPNOTSUPP"),
        ("truncate -s 4K mnt/dev", "Operation not permitted"),
        ("cat mnt/dev", "Operation not permitted"),
    ):
        done = run(command, place)
        assert (done.returncode, said in done.stdout) == (1, True), (command, done.stdout)
        assert done.stdout.count("\n") == 1
    assert sorted(path.name for path in mounted.path.iterdir()) == ["dev", "f", "vm.mem"]


def test_add_and_remove_take_arguments_of_their_own(mounted: Mount) -> None:
    place = base(mounted)
    for command, said in (
        ("memfs device add mnt x", "arguments are required: --size"),
        ("memfs device remove mnt x --size 4K", "unrecognized arguments: --size 4K"),
        ("memfs device grow mnt x", "invalid choice: 'grow'"),
        ("memfs device", "arguments are required: add|remove"),
    ):
        assert said in sh(command, place, status=2), command
    assert "--page-size 4K|2M|1G" in sh("memfs device add --help", place)
    assert "size" not in sh("memfs device remove --help", place)
    for option in ("device add mnt x --size 4K --json", "device --json remove mnt x"):
        assert json.loads(sh(f"memfs {option}", place))["file"] == "mnt/x"


def test_nothing_is_left_of_a_device(mounted: Mount) -> None:
    place = base(mounted)

    def held() -> list[int]:
        facts = json.loads(sh("memfs stat mnt --json", place))
        return [facts[name] for name in ("inodes", "windows", "fds")]

    sh("memfs device add mnt warm --size 64K; memfs device remove mnt warm", place)
    before = held()
    for number in range(3):
        sh(f"memfs device add mnt dev{number} --size 64K", place)
    sh("memfs device remove mnt dev0; memfs device remove mnt dev1; rm mnt/dev2; ls mnt", place)
    assert held() == before


def test_a_removal_that_was_interrupted_is_finished_by_the_next(mounted: Mount) -> None:
    """As a Ctrl-C leaves it: memfsd has removed the device, its name is still there."""
    place = base(mounted)
    sh("memfs device add mnt dev --size 64K", place)
    with Observer(store_of(str(mounted.path))) as observer:
        observer.ask(Kind.DEVICE_REMOVE, DeviceFile((mounted.path / "dev").stat().st_ino), Empty)
    assert "device=0 removed=1" in sh("getfattr --only-values -n user.memfsd.frames mnt/dev", place)
    assert sh("memfs device remove mnt dev", place) == "mnt/dev: removed\n"
    assert list(mounted.path.iterdir()) == []
    assert "ENOENT" in sh("memfs device remove mnt dev", place, status=1)


def test_devices_where_every_file_is_born_sealed(mount: MountFactory) -> None:
    mounted = mount("size=16M,guest")
    assert "mnt/dev: device, 64K" in sh("memfs device add mnt dev --size 64K", base(mounted))
    assert "R1-R8 hold" in sh("memfs device remove mnt dev; memfs check mnt", base(mounted))
