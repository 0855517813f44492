"""Pages that are hidden and then destroyed, while the host takes their frames for other pages of the same VM."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memfsd.uapi.units import ORDER_2M, PAGE_SIZE, Gfn, Pgoff
from tests.support.both_sides import LocalStore, LocalVm, opened_store, page

LARGE = 1 << ORDER_2M


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalStore]:
    """Frames for one large page."""
    with opened_store(tmp_path, LARGE, encrypted=request.param) as opened:
        yield opened


@pytest.fixture
def hidden(store: LocalStore) -> LocalVm:
    """Page 1 is hidden, then punched by the host, and its frame is page 513's, which the guest has written."""
    store.create("file", 2 * LARGE, page_size="2M")
    local = store.vm()
    local.private_slot(0, 0, page(2 * LARGE), "file")
    assert local.write(page(1), b"first") is None
    local.kvm.blocking.hide(0, Gfn(1), 1)
    store.punch("file", 0, LARGE)
    assert local.write(page(LARGE + 1), b"second") is None
    assert store.file("file").pages.lookup(Pgoff(LARGE + 1)) == 1
    return local


def test_destroy_leaves_a_frame_alone_that_is_another_page_s(hidden: LocalVm) -> None:
    assert hidden.kvm.blocking.destroy(Gfn(1), 1) == 0
    assert hidden.read(page(LARGE + 1), 6) == b"second"


def test_so_it_does_when_that_page_is_hidden_too(hidden: LocalVm) -> None:
    hidden.kvm.blocking.hide(0, Gfn(LARGE + 1), 1)
    assert hidden.kvm.blocking.destroy(Gfn(1), 1) == 0
    hidden.kvm.slots.fill_slot(0, Gfn(LARGE + 1), Gfn(LARGE + 2))
    assert hidden.read(page(LARGE + 1), 6) == b"second"
    hidden.kvm.blocking.hide(0, Gfn(LARGE + 1), 1)
    assert hidden.kvm.blocking.destroy(Gfn(LARGE + 1), 1) == 1
    hidden.kvm.slots.fill_slot(0, Gfn(LARGE + 1), Gfn(LARGE + 2))
    assert hidden.read(page(LARGE + 1), 6) == bytes(6)


@pytest.mark.parametrize(
    "lose",
    [
        lambda local, _: local.kvm.slots.punch_slot(0, page(1), PAGE_SIZE),
        lambda _, store: store.punch("file", 0, LARGE),
    ],
    ids=["its slot", "the store"],
)
def test_a_page_that_is_back_in_its_slot_and_lost_again_takes_no_other_with_it(
    store: LocalStore, hidden: LocalVm, lose: Callable[[LocalVm, LocalStore], object]
) -> None:
    hidden.kvm.slots.fill_slot(0, Gfn(1), Gfn(2))
    lose(hidden, store)
    assert hidden.read(page(LARGE + 1), 6) == b"second"


def test_a_detached_slot_is_destroyed_but_for_what_is_another_page_s(store: LocalStore) -> None:
    store.create("file", LARGE)
    local = store.vm()
    local.private_slot(0, 0, page(4), "file")
    local.private_slot(1, page(8), page(8), "file", page(8))
    for number in range(4):
        assert local.write(page(number), b"data") is None
    local.kvm.blocking.detach(0)
    store.punch("file", 1, 1)
    store.allocate("file", 8, LARGE - 8)
    assert store.file("file").pages.lookup(Pgoff(8)) == 1
    assert local.write(page(8), b"other") is None
    assert local.kvm.blocking.destroy(Gfn(0), 4) == 3
    assert local.read(page(8), 5) == b"other"
