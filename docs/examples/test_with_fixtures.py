"""A test of a VMM, with the fixtures of this project: a mount and a VM for each test."""

import pytest

import kvmsim
import memfsd


@pytest.fixture
def memfsd_options() -> str:
    return "size=16M,split=on"


def test_a_punch_is_seen_by_the_guest(memfsd_mount: memfsd.Mount, kvmsim_vm: kvmsim.VM) -> None:
    memory = memfsd_mount.create("vm.mem", "4M", page_size="2M")
    kvmsim_vm.set_user_memory_region(0, 0, 4 << 20, guest_memfd=memory)
    vcpu = kvmsim_vm.create_vcpu()
    vcpu.write(0x1000, b"gone")
    vcpu.write(0x3000, b"here")
    memfsd_mount.punch("vm.mem", 0x1000, 0x1000)
    assert (vcpu.read(0x1000, 4), vcpu.read(0x3000, 4)) == (bytes(4), b"here")


def test_the_next_test_has_a_mount_of_its_own(memfsd_mount: memfsd.Mount) -> None:
    assert memfsd_mount.pool()["private"] == 0
    with pytest.raises(FileNotFoundError):
        memfsd_mount.stat("vm.mem")
