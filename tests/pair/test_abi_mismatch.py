"""A VM and a mount of different ABIs: refused at HELLO, in one line, and nothing is left behind."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from kvmsim.kvm.kvm import Kvm
from kvmsim.kvm.region import GmemFd, MemoryRegion
from kvmsim.kvm.vm import Vm
from memfsd.uapi import messages as m
from memfsd.uapi.abi import ABIS, Abi
from memfsd.uapi.units import PAGE_SIZE
from tests.support.both_sides import LocalStore, errno_of, opened_store
from tests.support.wire import Wire


@contextmanager
def closing_fd(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


def a_file_of(store: LocalStore, abi: Abi) -> None:
    if abi.has_one_space:
        store.create_memfd("f", 4)
    else:
        store.create("f", 4)


@pytest.mark.parametrize("mount", ABIS.values(), ids=lambda abi: abi.name)
def test_a_file_of_one_abi_never_mixes_with_a_vm_of_another(mount: Abi, tmp_path: Path) -> None:
    with opened_store(tmp_path, 16, abi=mount) as store:
        a_file_of(store, mount)
        for vm in ABIS.values():
            if vm is mount:
                continue
            with closing(Kvm(Vm(vm.name, abi=vm), store.pair)) as kvm:
                if vm.has_one_space:
                    with closing_fd(store.path("f")) as fd:
                        assert errno_of(kvm.guest_memfds.own, GmemFd(fd, "f")) == "EINVAL"
                else:
                    region = MemoryRegion.private(0, 0, 4 * PAGE_SIZE)
                    assert errno_of(kvm.slots.set_private_slot, region, store.path("f")) == "EINVAL"
        assert store.guest("f").pairing is None, "whoever speaks its ABI may have it"


def test_hello_says_the_abi_of_both(tmp_path: Path) -> None:
    with opened_store(tmp_path, 16, abi=ABIS["gmem-7.2"]) as store, Wire(store) as wire:
        a_file_of(store, ABIS["gmem-7.2"])
        assert wire.hello() == "EINVAL", "a guest that says nothing else speaks the thread's"
        reply = wire.hello(abi="gmem-7.2")
        assert isinstance(reply, m.HelloReply)
        assert reply.abi == "gmem-7.2"


def test_an_observer_speaks_to_any_mount(tmp_path: Path) -> None:
    with opened_store(tmp_path, 16, abi=ABIS["gmem-6.18"]) as store, Wire(store) as wire:
        a_file_of(store, ABIS["gmem-6.18"])
        assert isinstance(wire.hello(role=m.Role.OBSERVER), m.HelloReply)
