"""swapoff: all that is out comes back, or is named."""

import errno
import os

import pytest

from memfsd.common.linux import PageRange
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_SWAP_PAGES, SWAP_BLOB_BYTES
from memfsd.uapi.units import PAGE_SIZE, Ino
from tests.support.both_sides import LocalStore, LocalVm, errno_of, page
from tests.support.swapped import PAGES, absent_pages, assert_intact, content, put_blob, slot_of, start


@pytest.fixture
def running(swapping_store: LocalStore) -> LocalVm:
    """16 private pages at GPA 0, each with different contents."""
    return start(swapping_store)


def test_swapoff_brings_everything_in_and_nothing_leaves_any_more(swapping_store: LocalStore, running: LocalVm) -> None:
    swapping_store.page_out("file")
    assert swap_off(swapping_store) == (PAGES, {}, 0)
    assert swapping_store.service.slots.used == 0
    assert errno_of(swapping_store.page_out, "file") == "EOPNOTSUPP"
    assert_intact(running)


def test_a_step_of_swapoff_ends_in_time_and_the_next_goes_on(swapping_store: LocalStore, running: LocalVm) -> None:
    swapping_store.deadlines.swap_off_s = 0.0
    swapping_store.page_out("file")
    step = swapping_store.store.swapoff.swap_off()
    assert (step.page_count, step.left) == (MAX_SWAP_PAGES, PAGES - MAX_SWAP_PAGES)
    assert step.next_page == (swapping_store.file("file").ino, MAX_SWAP_PAGES)
    assert swap_off(swapping_store) == (PAGES - MAX_SWAP_PAGES, {}, 0)
    assert_intact(running)


def test_swapoff_says_what_does_not_fit_and_swap_stays_on(swapping_store: LocalStore) -> None:
    local = start(swapping_store, pages=48)
    assert errno_of(swapping_store.store.swapoff.swap_off) == "ENOSPC"
    assert swapping_store.service.slots.is_on
    assert_intact(local, 48)


def swap_off(store: LocalStore) -> tuple[int, dict[str, tuple[int, str]], int]:
    """memfs swapoff: pages that came back; by file those that cannot, and their VM; pages that are still out."""
    came, stay, at = 0, dict[str, tuple[int, str]](), (0, 0)
    while True:
        step = store.store.swapoff.swap_off(*at)
        came += step.page_count
        if step.why is not None:
            stay[step.name.decode()] = step.stayed, step.vm
        if step.next_page is None:
            return came, stay, step.left
        at = step.next_page


def test_swapoff_leaves_bad_pages_out_and_brings_all_others(swapping_store: LocalStore, running: LocalVm) -> None:
    store, other = swapping_store, start(swapping_store, "other", "vm1", 4)
    store.page_out("file")
    store.page_out("other")
    for number in (0, 7, 15):
        put_blob(store, slot_of(store, number), bytes(SWAP_BLOB_BYTES))
    for _ in range(2):
        came, stay, left = swap_off(store)
        assert (stay, left) == ({"file": (3, "vm0")}, 3)
        assert not store.service.slots.is_on
    assert came == 0, "they came the first time"
    assert absent_pages(store.guest("file").absent) == [0, 7, 15]
    assert_intact(other, 4)
    assert running.read(page(8), PAGE_SIZE) == content(8)
    store.punch("file", 0, PAGES)
    assert swap_off(store) == (0, {}, 0)


def test_swapoff_says_why_and_which_page(swapping_store: LocalStore, running: LocalVm) -> None:
    swapping_store.page_out("file")
    put_blob(swapping_store, slot_of(swapping_store, 7), bytes(SWAP_BLOB_BYTES))
    why = swapping_store.store.swapoff.swap_off().why
    assert why is not None
    assert why.errno == errno.EBADMSG
    assert "page 0x7 of inode" in why.reason


def test_swapoff_of_a_truncated_file_goes_on(swapping_store: LocalStore, running: LocalVm) -> None:
    store = swapping_store
    store.page_out("file")
    assert slot_of(store, 5) == 5
    os.truncate(store.swap_path, 4096 + 5 * SWAP_BLOB_BYTES)
    assert swap_off(store) == (5, {"file": (PAGES - 5, "vm0")}, PAGES - 5)


def test_a_vm_that_refuses_its_pages_is_no_full_pool(
    swapping_store: LocalStore, running: LocalVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else swapoff would end for all."""
    other = start(swapping_store, "other", "vm1", 4)
    swapping_store.page_out("file")
    swapping_store.page_out("other")

    def refuses(*_: object) -> None:
        raise Refused(errno.ENOSPC, "never")

    monkeypatch.setattr(running.kvm.notifier, "on_swap_in", refuses)
    assert swap_off(swapping_store) == (4, {"file": (PAGES, "vm0")}, PAGES)
    assert_intact(other, 4)


def test_pages_that_are_about_to_leave_stay_when_swap_is_turned_off(
    swapping_store: LocalStore, running: LocalVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their VM has acknowledged that they leave, and swapoff finds nothing that is out."""
    populated = swapping_store.windows.populated

    def meanwhile(window: Ino | None) -> list[PageRange]:
        monkeypatch.setattr(swapping_store.windows, "populated", populated)
        assert swap_off(swapping_store) == (0, {}, 0)
        return populated(window)

    monkeypatch.setattr(swapping_store.windows, "populated", meanwhile)
    with pytest.raises(Refused, match="swap is off"):
        swapping_store.page_out("file")
    assert swapping_store.service.slots.used == 0
    assert_intact(running)
