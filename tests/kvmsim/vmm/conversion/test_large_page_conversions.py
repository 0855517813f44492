"""Conversions inside large pages: what is around them survives where the design keeps it, and merges back."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmsim.kvm.alias import PRIVATE
from tests.kvmsim.vmm.conversion.world import DESIGNS
from tests.support.both_sides import LocalStore, LocalVm, opened_store, page

MIB2 = 512
AROUND = (0, 99, 101, 511, 512, 1023)


@pytest.fixture
def store(tmp_path: Path, encrypted: bool) -> Iterator[LocalStore]:
    with opened_store(tmp_path, 8 * MIB2, encrypted=encrypted) as opened:
        yield opened


def private_vm(store: LocalStore, policy: str, under: str) -> LocalVm:
    """Two pages of 2 MiB, each in one leaf; some pages say their number."""
    store.create("file", 2 * MIB2, page_size="2M")
    local = store.vm()
    local.private_slot(0, 0, page(2 * MIB2), "file")
    local.vmm.set_policy(policy, under)
    for number in AROUND:
        assert local.write(page(number), b"%4d" % number) is None
    assert local.vm.mmu.epts[PRIVATE].leaf_counts == (0, 2, 0)
    return local


def around(local: LocalVm) -> list[object]:
    return [local.read(page(number), 4) for number in AROUND]


@pytest.mark.parametrize(("policy", "under"), [design for design in DESIGNS if design[0] != "recreate"])
def test_4_kib_inside_2_mib_is_shared_and_private_again(store: LocalStore, policy: str, under: str) -> None:
    local = private_vm(store, policy, under)
    kept = [b"%4d" % number for number in AROUND]
    assert local.vmm.run(local.vcpu, lambda: local.write(page(100), b"shared", shared=True)) is None
    assert local.vm.mmu.epts[PRIVATE].leaf_counts == (511, 1, 0)
    assert around(local) == kept
    assert local.vmm.run(local.vcpu, lambda: local.read(page(100), 6)) == bytes(6)
    assert around(local) == kept
    assert local.vm.mmu.epts[PRIVATE].leaf_counts == (0, 2, 0)


def test_recreate_converts_it_too_and_destroys_what_is_around(store: LocalStore) -> None:
    local = private_vm(store, "recreate", "kept")
    assert local.vmm.run(local.vcpu, lambda: local.write(page(100), b"shared", shared=True)) is None
    assert around(local) == [bytes(4)] * len(AROUND)
    assert local.read(page(100), 6, shared=True) == b"shared"


def test_the_store_takes_whole_pages_and_what_it_does_not_take_is_told(store: LocalStore) -> None:
    local = private_vm(store, "punch", "kept")
    free = store.free_count
    request = lambda: local.guest.map(local.vcpu, page(100), page(2 * MIB2 - 100), private=False)  # noqa: E731
    assert local.vmm.run(local.vcpu, request) is None
    assert store.free_count == free + MIB2, "the second 2 MiB went back"
    assert local.vmm.tally.unreturned_pages == MIB2 - 100
    assert local.read(page(99), 4) == b"  99"
    back = lambda: local.guest.map(local.vcpu, page(100), page(2 * MIB2 - 100), private=True)  # noqa: E731
    assert local.vmm.run(local.vcpu, back) is None
    assert [local.read(page(number), 4) for number in (99, 101, 512)] == [b"  99", bytes(4), bytes(4)]
