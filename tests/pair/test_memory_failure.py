"""A frame fails under a running guest: EHWPOISON for that page, and nothing else changes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.exits import MemoryErrorExit
from memfsd.uapi.errors import EHWPOISON
from memfsd.uapi.frame_state import FrameState
from tests.support.both_sides import LocalStore, LocalVm, opened_store, page
from tests.support.threads import Beside


@pytest.fixture
def running(store: LocalStore) -> LocalVm:
    """8 private pages at GPA 0, each holding its number."""
    store.create("file", 8)
    local = store.vm()
    local.private_slot(0, 0, page(8), "file")
    for number in range(8):
        assert local.write(page(number), bytes([number + 1])) is None
    return local


def poison(store: LocalStore, pgoff: int) -> None:
    store.store.failures.poison(store.file("file").ino, pgoff)


def test_the_next_touch_of_that_page_exits_and_all_others_go_on(store: LocalStore, running: LocalVm) -> None:
    running.vm.create_vcpu(1)
    poison(store, 3)
    for access in (lambda: running.read(page(3), 1), lambda: running.write(page(3) + 9, b"x")):
        exit_ = access()
        assert isinstance(exit_, MemoryErrorExit)
        assert (exit_.gpa, exit_.size, exit_.private, exit_.errno) == (page(3), 4096, True, EHWPOISON)
        assert exit_.fields()["hwpoison"] is True
    assert [running.read(page(n), 1) for n in range(8) if n != 3] == [bytes([n + 1]) for n in range(8) if n != 3]
    assert store.count(FrameState.POISONED) == 1


def test_an_access_across_the_page_stops_at_it(store: LocalStore, running: LocalVm) -> None:
    poison(store, 3)
    exit_ = running.read(page(2) + 4000, 200)
    assert isinstance(exit_, MemoryErrorExit)
    assert exit_.gpa == page(3)


def test_a_punch_gives_a_good_frame_that_reads_zero(store: LocalStore, running: LocalVm) -> None:
    poison(store, 3)
    store.punch("file", 3, 1)
    assert running.read(page(3), 4) == bytes(4)
    assert running.write(page(3), b"good") is None
    assert running.read(page(3), 4) == b"good"
    assert store.count(FrameState.POISONED) == 1, "the bad one stays out"


def test_the_marker_ends_with_the_vm_and_the_frame_never_comes_back(store: LocalStore, running: LocalVm) -> None:
    poison(store, 3)
    running.close()
    assert store.guest("file").absent.count == 0
    assert store.free_count == store.service.pool.frame_count - 1


def test_other_vcpus_run_while_frames_fail_and_are_replaced(store: LocalStore, running: LocalVm) -> None:
    running.vm.create_vcpu(1)
    seen: list[object] = []

    def guest() -> None:
        for _ in range(300):
            seen.append(running.guest.read(running.vm.vcpu(1), page(5), 1))

    beside = Beside(guest)
    for _ in range(20):
        poison(store, 3)
        store.punch("file", 3, 1)
        assert running.write(page(3), b"x") is None
    beside.result()
    assert set(seen) == {b"\x06"}
    assert store.count(FrameState.POISONED) == 20


MIB2 = 512


@pytest.fixture
def split_store(tmp_path: Path) -> Iterator[LocalStore]:
    with opened_store(tmp_path, 8 * MIB2, split=True) as opened:
        yield opened


def large_vm(store: LocalStore, pages: int) -> LocalVm:
    store.create("file", pages, page_size="2M")
    local = store.vm()
    local.private_slot(0, 0, page(pages), "file")
    return local


def hwpoison_at(local: LocalVm, pgoff: int) -> bool:
    exit_ = local.read(page(pgoff), 1)
    return isinstance(exit_, MemoryErrorExit) and (exit_.errno, exit_.gpa) == (EHWPOISON, page(pgoff))


@pytest.mark.parametrize("bad", [0, 100, MIB2 - 1])
def test_a_small_page_that_fails_leaves_the_rest_of_its_large_page_alone(split_store: LocalStore, bad: int) -> None:
    local = large_vm(split_store, MIB2)
    assert local.write(page(7), b"kept") is None
    split_store.punch("file", 200, 16)
    poison(split_store, bad)
    assert local.read(page(200), 4) == bytes(4)
    assert local.write(page(215), b"hole") is None
    assert [local.read(page(n), 4) for n in (7, 215)] == [b"kept", b"hole"]
    assert hwpoison_at(local, bad)
    split_store.punch("file", bad, 1)
    assert local.read(page(bad), 4) == bytes(4)
    assert split_store.findings() == []


def test_parts_of_a_large_page_without_a_good_frame_get_some_as_they_are_punched(split_store: LocalStore) -> None:
    local = large_vm(split_store, MIB2)
    assert local.write(page(7), b"gone") is None
    for pgoff in range(8):
        poison(split_store, pgoff)
    split_store.punch("file", 8, MIB2 - 8)
    assert split_store.file("file").pages.page_count == 0
    split_store.punch("file", 1, 2)
    assert local.write(page(1), b"good") is None
    assert (local.read(page(1), 4), local.read(page(2), 4)) == (b"good", bytes(4))
    assert all(hwpoison_at(local, pgoff) for pgoff in (0, 3, 7))
    assert split_store.findings() == []


def test_other_large_pages_of_a_file_with_a_failed_one_keep_large_leaves(split_store: LocalStore) -> None:
    local = large_vm(split_store, 3 * MIB2)
    assert local.touch(0, 1) is None
    poison(split_store, 5)
    assert local.touch(page(MIB2 + 9), 1) is None
    assert local.touch(page(2 * MIB2), 1) is None
    assert local.vm.mmu.epts[PRIVATE].leaf_counts[1] == 2
