"""A VM of the API over a store in this process."""

from collections.abc import Iterator

import pytest

import kvmsim
from kvmsim.machine import VirtualMachine
from tests.support.both_sides import LocalStore


@pytest.fixture
def api(store: LocalStore) -> Iterator[kvmsim.VM]:
    """VM api: private slot 0 of 64 pages at 0, over the file `file`."""
    store.create("file", 64)
    with kvmsim.VM.of(VirtualMachine("api", 100, store.pair)) as vm:
        vm.set_user_memory_region(0, 0, 64 << 12, guest_memfd=store.path("file"))
        yield vm


@pytest.fixture
def vcpu(api: kvmsim.VM) -> kvmsim.VCPU:
    return api.create_vcpu()
