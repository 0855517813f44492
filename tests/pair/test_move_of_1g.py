"""Pages of 1 GiB move in parts of 2 MiB where the mount splits them; else they stay, each with its status."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmsim.kvm.alias import PRIVATE
from tests.support.both_sides import LocalStore, LocalVm, opened_store, page

GIB = 1 << 18
MIB2 = 512


@pytest.fixture
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[LocalStore]:
    with opened_store(tmp_path, 4 * GIB, split=request.param, nodes=2) as opened:
        yield opened


def running(store: LocalStore) -> LocalVm:
    store.create("file", GIB, page_size="1G")
    local = store.vm()
    local.private_slot(0, 0, page(GIB), "file")
    for number in (0, 511, 512, GIB - 1):
        assert local.write(page(number), b"%6d" % number) is None
    return local


def assert_intact(local: LocalVm) -> None:
    for number in (0, 511, 512, GIB - 1):
        assert local.read(page(number), 6) == b"%6d" % number


@pytest.mark.parametrize("store", [True], indirect=True)
def test_with_split_a_part_moves_and_the_others_stay(store: LocalStore) -> None:
    local, guest = running(store), None
    requests = local.link().request_count
    assert store.move("file", [5], 1) == [1]
    guest = store.guest("file")
    assert store.move("file", [0, 511, 512], 0) == [0, 0, 0], "it moves back, to where it was"
    assert (guest.split_count, guest.merge_count) == (1, 1)
    assert store.move("file", range(MIB2, 3 * MIB2), 1) == [1] * 2 * MIB2
    assert local.vm.mmu.epts[PRIVATE].leaf_counts == (0, 512, 0)
    assert local.link().request_count == requests, "nobody faulted"
    assert_intact(local)
    assert store.findings() == []


@pytest.mark.parametrize("store", [False], indirect=True)
def test_without_split_all_of_it_stays_and_each_page_says_so(store: LocalStore) -> None:
    local = running(store)
    assert store.move("file", range(2048), 1) == [-errno.EBUSY] * 2048
    assert local.vm.mmu.epts[PRIVATE].leaf_counts == (0, 0, 1)
    assert_intact(local)
