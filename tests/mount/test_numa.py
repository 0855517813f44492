"""fbind, fmove_pages, memfs bind, memfs map and memfs numastat on a real mount."""

import errno
import json
import os
from contextlib import closing
from pathlib import Path

import pytest

import memfsd
from kvmsim.kvm.region import MemoryRegion
from kvmsim.machine import VirtualMachine
from tests.support.real_mount import PAGE, MountFactory, fallocate, opened, refused, seal, sh

TWO = "size=2M,nodes=2"


@pytest.fixture
def place(mount: MountFactory) -> Path:
    return mount(TWO).path


def make(place: Path, seals: str = "", size: int = 0) -> Path:
    path = place / "f"
    path.touch()
    if seals:
        seal(path, seals)
        os.truncate(path, size)
    return path


def numa_of(path: Path) -> str:
    return os.getxattr(path, "user.memfsd.numa").decode()


def test_fbind_and_fmove_pages_work_on_a_write_only_descriptor_of_a_sealed_file(place: Path) -> None:
    path = make(place, "guest", 600 * PAGE)
    with opened(path, os.O_WRONLY) as fd:
        memfsd.fbind(fd, (0, 4 * PAGE), "interleave:0-1")
        memfsd.fbind(fd, (4 * PAGE, 4 * PAGE), "bind:1")
        memfsd.fbind(fd, (0, 0), "bind:1")
        fallocate(fd, 0, 0, 7 * PAGE)
        hole, outside = -errno.ENOENT, -errno.EFAULT
        assert memfsd.fmove_pages(fd, [*range(9), 600]) == [0, 1, 0, 1, 1, 1, 1, hole, hole, outside]
        assert memfsd.fmove_pages(fd, range(300)) == [0, 1, 0, 1, 1, 1, 1, *[hole] * 293]
        assert memfsd.fmove_pages(fd, []) == []
        assert numa_of(path) == "interleave:0-1@0x0+0x4000 bind:1@0x4000+0x4000"
        memfsd.fbind(fd, None, "default")
    assert numa_of(path) == "default"


def test_an_ordinary_file_has_policies_too(place: Path) -> None:
    path = make(place)
    with opened(path, os.O_RDWR) as fd:
        memfsd.fbind(fd, None, "bind:1")
        os.write(fd, bytes(3 * PAGE))
        assert memfsd.fmove_pages(fd, [0, 1, 2, 3]) == [1, 1, 1, -errno.EFAULT]
        with refused(errno.ENOSPC):
            fallocate(fd, 0, 0, 257 * PAGE)
        assert os.pwrite(fd, bytes(300 * PAGE), 0) == 256 * PAGE


def test_what_mbind_and_move_pages_refuse(place: Path, tmp_path: Path) -> None:
    path = make(place, "guest", 8 * PAGE)
    with opened(path, os.O_WRONLY) as fd:
        for where, policy in (
            ((1, PAGE), "bind:0"),
            ((-PAGE, PAGE), "bind:0"),
            ((0, -1), "bind:0"),
            ((0, PAGE), "bind:2"),
            ((0, PAGE), "bind"),
            ((0, PAGE), "default:0"),
            ((0, PAGE), "interleave:"),
            ((0, PAGE), "weighted-interleave:0=256"),
            ((0, PAGE), "best"),
            ((0, PAGE), ""),
            ((0, PAGE), "bind:0 bind:1"),
            (None, "bind:0@0+4096"),
        ):
            with refused(errno.EINVAL):
                memfsd.fbind(fd, where, policy)
        assert numa_of(path) == "default"
        for pages, nodes in (([0, 1], [0]), ([-1], None), ([1 << 51], None), ([0], [-2]), ([0], [-1])):
            with refused(errno.EINVAL):
                memfsd.fmove_pages(fd, pages, nodes)
        assert memfsd.fmove_pages(fd, [0], [1]) == [-errno.ENOENT]
        assert memfsd.fmove_pages(fd, [0], [9]) == [-errno.ENODEV]
        with pytest.raises(OSError, match=r"'bind:2@0x0\+0x1000' names a node that does not exist"):
            memfsd.fbind(fd, (0, PAGE), "bind:2")
        with pytest.raises(OSError, match="must begin and end at multiples of 4096"):
            memfsd.fbind(fd, (1, PAGE), "bind:0")
        with pytest.raises(TypeError, match="policy is a str, not int"):
            memfsd.fbind(fd, None, 3)  # type: ignore[arg-type]
    for number in (-1, 1 << 20, 1 << 40):
        with refused(errno.EBADF):
            memfsd.fbind(number, None, "bind:0")
        with refused(errno.EBADF):
            memfsd.fmove_pages(number, [0])
    with opened(tmp_path / "elsewhere", os.O_WRONLY | os.O_CREAT) as fd:
        with refused(errno.ENOTTY):
            memfsd.fbind(fd, None, "default")
        with refused(errno.ENOTTY):
            memfsd.fmove_pages(fd, [0])


def test_memfs_bind_and_map_show_policy_and_node(place: Path) -> None:
    make(place, "guest", 8 * PAGE)
    assert sh("memfs bind f interleave:0,1", place) == "f: interleave:0-1\n"
    assert sh("memfs bind f -o 4K -l 8K bind:1", place).startswith("f: interleave:0-1@0x0+0x1000 bind:1@0x1000+0x2000 ")
    assert json.loads(sh("memfs bind f -o 16K default --json", place))["numa"][-1] == "interleave:0-1@0x3000+0x1000"
    sh("memfs fallocate -l 32K f", place)
    runs = json.loads(sh("memfs map f --json", place))["runs"]
    assert [(run["offset"] // PAGE, run["length"] // PAGE, run["node"]) for run in runs] == [
        (0, 1, 0),
        (1, 3, 1),
        (4, 4, 0),
    ]
    header, first, *_ = sh("memfs map f", place).splitlines()
    assert (header.split()[4], first.split()[4]) == ("NODE", "0")


def test_memfs_bind_says_what_is_wrong(place: Path) -> None:
    make(place, "guest", 8 * PAGE)
    said = sh("memfs bind f bind:2 2>&1; echo $?", place)
    assert said.startswith("memfs: f: 'bind:2' names a node that does not exist: memfs numastat MOUNTPOINT")
    assert said.endswith("(EINVAL)\n1\n")
    assert "is not a policy: choose default" in sh("memfs bind f nearest 2>&1; echo $?", place)
    said = sh("memfs bind f -o 1 -l 4K bind:0 2>&1 >/dev/null; echo $?", place)
    assert said == "memfs: f: 'bind:0@1+4096': the range must begin and end at multiples of 4096 (EINVAL)\n1\n"
    assert sh("memfs bind . bind:0 2>&1; echo $?", place) == "memfs: .: only files have a policy (EPERM)\n1\n"


def test_numastat_counts_hits_misses_and_interleaved(place: Path) -> None:
    sh("memfs create a --size 64K --guest && memfs bind a interleave:0-1 && memfs fallocate -l 64K a", place)
    sh("memfs create b --size 1M --guest && memfs bind b preferred:1 && memfs fallocate -l 1M b", place)
    shown = json.loads(sh("memfs numastat . --json", place))
    here, there = shown["nodes"]
    assert shown["distances"] == [[10, 20], [20, 10]]
    assert (here["interleave_hit"], there["interleave_hit"]) == (8, 8)
    assert (here["numa_hit"], here["numa_miss"], here["numa_foreign"]) == (8, 8, 0)
    assert (there["numa_hit"], there["numa_miss"], there["numa_foreign"]) == (256, 0, 8)
    assert (there["total"], there["used"], there["free"]) == (256, 256, 0)
    printed = {line.split()[0]: line.split()[1:] for line in sh("memfs numastat .", place).splitlines()}
    assert printed["numa_foreign"] == ["0", "8"]
    assert printed["local_node"] == ["16", "0"]


def test_a_table_of_distances_says_where_an_allocation_goes_on(mount: MountFactory) -> None:
    place = mount("size=3M,nodes=3,distances=10:30:20/30:10:20/20:30:10").path
    sh("memfs create f --size 2M --guest && memfs fallocate -l 2M f", place)
    shown = json.loads(sh("memfs numastat . --json", place))
    assert [node["used"] for node in shown["nodes"]] == [256, 0, 256]
    assert shown["distances"][0] == [10, 30, 20]


def test_who_moves_pages_of_a_vm_in_its_own_process_does_not_keep_it_from_answering(place: Path) -> None:
    path = make(place, "guest", 4 * PAGE)
    with closing(VirtualMachine("vm0", 4)) as machine, opened(path, os.O_WRONLY) as fd:
        machine.kvm.slots.set_private_slot(MemoryRegion.private(0, 0, 4 * PAGE), str(path))
        assert machine.guest.write(machine.vm.vcpu(0), 0, b"here", shared=False) is None
        assert memfsd.fmove_pages(fd, [0], [1]) == [1]
        assert machine.guest.read(machine.vm.vcpu(0), 0, 4, shared=False) == b"here"
