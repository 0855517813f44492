"""Large pages in the swap file: split as they leave, with their contents when they come back, and whole again."""

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.exits import MemoryErrorExit
from kvmsim.kvm.mmu.ept import Ept
from memfsd.uapi.errors import Refused, errno_name
from tests.support.both_sides import LocalStore, LocalVm, errno_of, opened_store, page
from tests.support.swapped import content

MIB2 = 512
WRITTEN = (0, 99, 100, 101, 102, 511, 512, 700)


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[LocalStore]:
    with opened_store(tmp_path, 3 * MIB2, split=True, encrypted=request.param, swap_pages=2 * MIB2, nodes=1) as opened:
        yield opened


def running(store: LocalStore, name: str = "file", vm: str = "vm0", large: int = 2) -> LocalVm:
    store.create(name, large * MIB2, page_size="2M")
    local = store.vm(vm)
    local.private_slot(0, 0, page(large * MIB2), name)
    return local


def write(local: LocalVm, pages: tuple[int, ...] = WRITTEN) -> None:
    for number in pages:
        assert local.write(page(number), content(number % 255)) is None


def assert_intact(local: LocalVm, pages: tuple[int, ...] = WRITTEN) -> None:
    for number in pages:
        assert local.read(page(number), 4096) == content(number % 255), number


def leaves(local: LocalVm) -> tuple[int, int, int]:
    return local.vm.mmu.epts[PRIVATE].leaf_counts


def counts(store: LocalStore) -> tuple[int, int]:
    guest = store.guest("file")
    return guest.split_count, guest.merge_count


def test_a_part_of_a_large_page_leaves_and_it_is_whole_again_when_it_is_back(store: LocalStore) -> None:
    local = running(store)
    write(local)
    free = store.free_count
    assert store.page_out("file", 98, 6) == 4, "the two that nobody wrote are holes, and need no slot"
    assert (store.free_count, counts(store), leaves(local)[1]) == (free + 6, (1, 0), 1)
    assert store.findings() == []
    assert_intact(local)
    assert local.touch(page(98), page(6)) is None
    assert (store.free_count, counts(store), leaves(local)) == (free, (1, 1), (0, 2, 0))
    assert store.service.slots.used == 0
    assert_intact(local)


def test_what_is_out_stays_known_when_a_punch_is_refused_for_want_of_a_table(store: LocalStore) -> None:
    store.create("file", 2 * MIB2, page_size="2M")
    local = store.vm()
    local.vm.mmu.epts = (Ept(), Ept(max_tables=5))
    local.private_slot(0, 0, page(2 * MIB2), "file")
    write(local)
    assert store.page_out("file", 700, 1) == 1
    assert leaves(local) == (511, 1, 0), "the last table is in use"
    assert errno_of(store.punch, "file", 300, 724) == "ENOMEM"
    assert_intact(local)


def test_all_of_it_leaves_and_comes_back(store: LocalStore) -> None:
    local = running(store)
    write(local)
    for _ in range(2):
        assert store.page_out("file") == len(WRITTEN)
        assert store.free_count == 3 * MIB2
        assert store.findings() == []
        assert_intact(local)


def test_a_punch_of_what_is_out_gives_its_slots_back_and_a_large_frame_comes(store: LocalStore) -> None:
    local = running(store)
    write(local)
    store.page_out("file")
    store.punch("file", 0, MIB2)
    assert store.service.slots.used == 2
    assert local.read(page(99), 4) == bytes(4)
    assert leaves(local)[1] == 1
    assert_intact(local, (512, 700))


def test_idle_large_pages_make_room_for_other_vms(tmp_path: Path) -> None:
    """Two VMs, each as large as the pool."""
    with opened_store(tmp_path, 2 * MIB2, split=True, swap_pages=4 * MIB2) as store:
        vms = [running(store, name, name) for name in ("file", "other")]
        for local in vms:
            write(local)
        for _ in range(2):
            for local in vms:
                assert_intact(local)
        assert store.service.slots.out_count > len(WRITTEN)


def test_without_split_they_stay_and_it_is_said_why(tmp_path: Path) -> None:
    with opened_store(tmp_path, 2 * MIB2, swap_pages=MIB2) as store:
        local = running(store)
        write(local, (0,))
        with pytest.raises(Refused, match=r"has pages of 2M, which are swapped in parts only: mount with split=on"):
            store.page_out("file")
        assert errno_of(store.page_out, "file") == "EOPNOTSUPP"
        assert_intact(local, (0,))


def test_a_store_that_grants_a_large_frame_over_a_page_that_is_out_is_found_out(store: LocalStore) -> None:
    """Also where the page is before the one that was touched."""
    local = running(store)
    write(local, (5,))
    store.page_out("file")
    store.guest("file").absent.take(0, MIB2)
    exit_ = local.touch(page(300), page(1))
    assert isinstance(exit_, MemoryErrorExit) and errno_name(exit_.errno) == "EBADMSG", exit_
    assert local.vm.mmu.epts[PRIVATE].page_count == 0


@pytest.mark.parametrize("seed", range(4))
def test_random_sequences_are_those_of_a_dictionary(store: LocalStore, seed: int) -> None:
    dice, model, local = random.Random(seed), dict[int, bytes](), running(store)
    for step in range(120):
        first = dice.choice((0, 100, 500, 511, 512, 800)) + dice.randrange(8)
        count = dice.choice((1, 3, 8, MIB2))
        end = min(first + count, 2 * MIB2)
        match dice.randrange(6):
            case 0 | 1:
                model[first] = content(step)
                assert local.write(page(first), model[first]) is None
            case 2:
                assert local.read(page(first), 4096) == model.get(first, bytes(4096)), step
            case 3:
                with suppress(Refused):  # there is nothing of it
                    store.page_out("file", first, end - first)
            case 4:
                store.punch("file", first, end - first)
                model = {at: data for at, data in model.items() if not first <= at < end}
            case 5:
                assert local.touch(page(first), page(1)) is None
        if step % 20 == 0:
            assert store.findings() == []
    for number in range(2 * MIB2):
        assert local.read(page(number), 4096) == model.get(number, bytes(4096)), number
