"""GmemFile private memory: bind, get_pfn, invalidate, and the ends of a VM."""

import errno
from collections.abc import Callable

import pytest

from memfsd.core.files.inodes import Regular
from memfsd.core.gmem import guest_of
from memfsd.core.private import strategies
from memfsd.core.private.gmem_file import Pairing, PairState
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.limits import MAX_AHEAD_PAGES
from memfsd.uapi.messages import Kind
from memfsd.uapi.units import PAGE_SIZE, Pgoff
from tests.support.core_store import KEEP_SIZE, NO_LEAKS, PUNCH, RDONLY, CoreStore, refused

P = PAGE_SIZE
PRIVATE, PENDING, CLOSING, QUARANTINED = (
    FrameState.PRIVATE,
    FrameState.PENDING,
    FrameState.CLOSING,
    FrameState.QUARANTINED,
)


# -- bind and unbind


def test_binding_past_the_end_of_the_file_is_einval(store: CoreStore) -> None:
    file = store.guest_file("file", 8)
    guest = store.pair(file)
    for pgoff, pages in ((0, 9), (8, 1), (7, 2), (1 << 50, 1)):
        with refused("EINVAL", match="past the end of the file"):
            store.gmem.bind(file, 1, 0, pgoff, pages)
    assert len(guest.bindings) == 0
    store.gmem.bind(file, 1, 0, 7, 1)


def test_what_was_bound_before_a_shrink_is_bound_again() -> None:
    store = CoreStore(resize_any=True)
    file, guest = store.bound_file("file", 8, gfn=0x100)
    store.gmem.set_size(file, 4 * P)
    store.gmem.unbind(file, 2, 4)
    store.gmem.bind(file, 1, 0x102, 2, 4)
    assert [(b.start, b.end) for b in guest.bindings] == [(0, 8)]
    with refused("EFAULT"):
        store.fault(file, 5)
    with refused("EINVAL", match="past the end of the file"):
        store.gmem.bind(file, 1, 0x108, 8, 1)


def test_a_bound_range_is_eexist_and_a_moved_one_einval(store: CoreStore) -> None:
    file, _ = store.bound_file("file", 8, gfn=0x100)
    with refused("EEXIST"):
        store.gmem.bind(file, 2, 0x500, 7, 1)
    store.gmem.unbind(file, 0, 8)
    with refused("EINVAL", match="fixed_gfn"):
        store.gmem.bind(file, 2, 0x500, 7, 1)
    store.gmem.bind(file, 2, 0x107, 7, 1)


def test_with_fixed_gfn_off_a_page_moves() -> None:
    store = CoreStore(fixed_gfn=False)
    file, _ = store.bound_file("file", 8, gfn=0x100)
    store.gmem.unbind(file, 0, 8)
    store.gmem.bind(file, 1, 0x900, 0, 8)


def test_unbinding_what_is_not_bound_is_einval(store: CoreStore) -> None:
    file, _ = store.bound_file("file", 8)
    store.gmem.unbind(file, 2, 2)
    with refused("EINVAL"):
        store.gmem.unbind(file, 0, 8)


def test_unbinding_keeps_the_data(store: CoreStore) -> None:
    """As delete and recreate of a slot does: only the VM's mappings go."""
    file, guest = store.bound_file("file", 8)
    pfn = store.fault(file, 3).pfn
    store.gmem.unbind(file, 0, 8)
    store.gmem.bind(file, 1, 0x100, 0, 8)
    assert store.fault(file, 3).pfn == pfn
    assert guest.seq == 0


def test_an_ordinary_file_has_no_guest_memory(store: CoreStore) -> None:
    file = store.make("file")
    for call in (
        lambda: store.gmem.bind(file, 0, 0, 0, 1),
        lambda: store.gmem.get_pfn(file, 0, 1),
        lambda: store.gmem.pair(file, Pairing("vm0", 1, 1, frozenset())),
    ):
        with refused("EINVAL", match="not sealed for a guest"):
            call()


# -- pairing


def test_a_file_is_paired_once_for_life(store: CoreStore) -> None:
    """R1, whatever became of the first VM."""
    file = store.guest_file("file", 8)
    store.pair(file, "first")
    steps: list[Callable[[], object]] = [
        lambda: None,
        lambda: store.gmem.disconnect(file),
        lambda: store.release_guest(file),
    ]
    for step in steps:
        step()
        with refused("EPERM", match="belongs to VM first"):
            store.pair(file, "second")
        with refused("EPERM"):
            store.gmem.check_owner(file, Pairing("first", 4242, 1000, frozenset()))


def test_only_the_vm_that_ended_its_pairing_may_come_back(store: CoreStore) -> None:
    """The same process and the same secret: a pid that was taken over, and a child that was forked, are others."""
    file = store.guest_file("file", 8)

    def pairing(pid: int = 1, uid: int = 1, secret: bytes = b"s" * 16) -> Pairing:
        return Pairing("vm", pid, uid, frozenset(), secret)

    store.gmem.pair(file, pairing())
    with refused("EPERM", match="paired"):
        store.gmem.pair(file, pairing())
    store.gmem.bind(file, 0, 0x100, 0, 8)
    store.perform(store.service.release_guest(file.ino))
    for other in (pairing(pid=2), pairing(uid=2), pairing(secret=b"t" * 16), pairing(secret=b"")):
        with refused("EPERM", match="ended"):
            store.gmem.pair(file, other)
    store.gmem.pair(file, pairing())
    with refused("EINVAL", match="GFN 0x100"):
        store.gmem.bind(file, 0, 0x200, 0, 8)
    store.gmem.bind(file, 0, 0x100, 0, 8)
    store.gmem.disconnect(file)
    with refused("EPERM", match="cut"):
        store.gmem.pair(file, pairing())


# -- get_pfn


@pytest.mark.parametrize("pgoff", [0, 1, 6, 7, 8, 1000])
def test_a_page_that_is_not_bound_is_efault(store: CoreStore, pgoff: int) -> None:
    file = store.guest_file("file", 8)
    store.pair(file)
    store.gmem.bind(file, 1, 0x100, 2, 4)
    with refused("EFAULT"):
        store.fault(file, pgoff)
    assert store.pool.free_count == 64


def test_the_page_that_was_asked_for_is_private_and_what_came_along_pending(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 32)
    counts = [store.fault(file, pgoff, 512).page_count for pgoff in (0, 1, 3, 7)]
    assert counts == [1, 2, 4, 8]
    assert (store.pool.count(PRIVATE), store.pool.count(PENDING), guest.pending) == (4, 11, 11)
    store.fault(file, 8, 1)
    assert (store.pool.count(PRIVATE), guest.pending) == (5, 10)
    store.fault(file, 8, 1)
    assert (store.pool.count(PRIVATE), guest.pending) == (5, 10)
    assert store.audit() == []


def test_a_guest_that_touches_here_and_there_gets_single_pages(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 64)
    assert [store.fault(file, pgoff, 512).page_count for pgoff in (50, 3, 40, 7, 21)] == [1] * 5
    assert guest.pending == 0


def test_no_run_is_longer_than_the_longest() -> None:
    store = CoreStore(pages=4 * MAX_AHEAD_PAGES)
    file, _ = store.bound_file("file", 4 * MAX_AHEAD_PAGES)
    at, longest = 0, 0
    while at < 4 * MAX_AHEAD_PAGES - 1:
        count = store.gmem.get_pfn(file, at, MAX_AHEAD_PAGES).page_count
        at, longest = at + count, max(longest, count)
    assert longest == MAX_AHEAD_PAGES


def test_a_run_ends_at_what_was_asked_the_binding_the_file_and_frames_that_are_there(store: CoreStore) -> None:
    file = store.guest_file("file", 32)
    store.pair(file)
    store.gmem.bind(file, 1, 0, 0, 10)
    store.gmem.bind(file, 2, 0x500, 10, 22)
    store.fallocate(file, 0, 0, 32 * P)
    assert store.fault(file, 2, 3).page_count == 3
    assert store.fault(file, 2, 100).page_count == 8
    assert store.fault(file, 10, 100).page_count == 22
    assert store.fault(file, 31, 100).page_count == 1


def test_readahead_stops_at_an_allocated_page(store: CoreStore) -> None:
    file, _ = store.bound_file("file", 32)
    store.fallocate(file, 0, 5 * P, P)
    assert [store.fault(file, pgoff, 512).page_count for pgoff in (0, 1, 3)] == [1, 2, 2]


def test_the_same_page_is_the_same_frame_until_it_is_freed(store: CoreStore) -> None:
    """R4."""
    file, _ = store.bound_file("file", 8)
    pfn = store.fault(file, 4).pfn
    assert {store.fault(file, 4).pfn for _ in range(3)} == {pfn}
    store.fault(file, 3)
    assert store.fault(file, 4).pfn == pfn


def test_a_full_pool_is_enospc_and_what_is_allocated_is_still_granted(store: CoreStore) -> None:
    file, _ = store.bound_file("file", 64)
    store.fault(file, 9)
    store.fallocate(store.make("rest"), 0, 0, 63 * P)
    with refused("ENOSPC"):
        store.fault(file, 10)
    store.fault(file, 9)
    assert store.audit() == []


def test_a_grant_is_as_long_as_the_pool_has(store: CoreStore) -> None:
    file, _ = store.bound_file("file", 64)
    for pgoff in (0, 1, 3):
        store.fault(file, pgoff, 512)
    store.fallocate(store.make("rest"), 0, 0, 54 * P)
    assert store.fault(file, 7, 512).page_count == 3


def test_frames_allocated_before_are_private_and_not_pending(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 8)
    store.fallocate(file, 0, 0, 8 * P)
    assert store.fault(file, 0, 8).page_count == 8
    assert (guest.pending, store.pool.count(PRIVATE)) == (0, 8)


def test_memory_of_two_files_never_meets(store: CoreStore) -> None:
    """R1: frames of faults that interleave."""
    files = [store.bound_file(name, 24)[0] for name in "ab"]
    for pgoff in range(24):
        for file in files:
            store.fault(file, pgoff, 4)
    held = [{pfn + n for _, pfn, count in f.pages.extents(0, 24) for n in range(count)} for f in files]
    assert [len(frames) for frames in held] == [24, 24]
    assert not held[0] & held[1]
    assert store.audit() == []


# -- the bracket


def test_nothing_in_a_closing_range_is_granted_and_all_around_it_is(store: CoreStore) -> None:
    """R7; the run before it ends where it begins."""
    file, _ = store.bound_file("file", 16)
    store.fallocate(file, 0, 0, 16 * P)
    store.gmem.invalidate_begin(file, 4, 8, strategies.PUNCH)
    for pgoff in (4, 5, 7):
        with refused("EAGAIN"):
            store.fault(file, pgoff)
    assert store.fault(file, 0, 16).page_count == 4
    assert store.fault(file, 3, 16).page_count == 1
    assert store.fault(file, 8, 16).page_count == 8
    scrubs = store.gmem.take(file, None)
    assert scrubs is not None
    with refused("EAGAIN"):
        store.fault(file, 4)
    store.perform(scrubs)
    with refused("EAGAIN"):
        store.fault(file, 4)
    store.gmem.invalidate_end(file)
    assert store.fault(file, 4).seq == 1


def test_a_frame_is_free_only_after_the_acknowledgement_and_the_scrub(store: CoreStore) -> None:
    """R6 and R8, step by step."""
    file, _ = store.bound_file("file", 8)
    pfn = store.fault(file, 2).pfn
    store.gmem.invalidate_begin(file, 2, 3, strategies.PUNCH)
    assert store.pool.state(pfn) is PRIVATE
    scrubs = store.gmem.take(file, None)
    assert scrubs is not None
    assert store.pool.state(pfn) is CLOSING
    assert (file.ino, pfn) in store.memory
    store.perform(scrubs)
    assert store.pool.state(pfn) is FrameState.FREE
    assert (file.ino, pfn) not in store.memory
    store.gmem.invalidate_end(file)


def test_the_sequence_number_grows_when_the_range_was_bound_and_else_not(store: CoreStore) -> None:
    file = store.guest_file("file", 16)
    guest = store.pair(file)
    store.gmem.bind(file, 1, 0x100, 4, 4)
    for start, end, seq in ((0, 4, 0), (8, 16, 0), (0, 5, 1), (7, 8, 2), (0, 16, 3)):
        closing = store.gmem.invalidate_begin(file, start, end, strategies.PUNCH)
        assert closing.upcall is (seq > guest.seq)
        assert closing.seq == guest.seq
        store.gmem.take(file, None)
        assert store.gmem.invalidate_end(file) == seq


def test_a_file_without_a_live_vm_is_invalidated_without_asking(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 8)
    store.release_guest(file)
    assert store.gmem.invalidate_begin(file, 0, 8, strategies.PUNCH).upcall is False
    assert store.gmem.take(file, None) is None
    store.gmem.invalidate_end(file)
    assert guest.seq == 0


def test_one_invalidation_of_a_file_at_a_time(store: CoreStore) -> None:
    file, _ = store.bound_file("file", 8)
    store.gmem.invalidate_begin(file, 0, 1, strategies.PUNCH)
    with pytest.raises(AssertionError):
        store.gmem.invalidate_begin(file, 4, 5, strategies.PUNCH)
    with pytest.raises(AssertionError):
        store.gmem.bind(file, 2, 0, 0, 1)
    with pytest.raises(AssertionError):
        store.gmem.unbind(file, 0, 1)


def test_a_punched_page_comes_back_as_zeros_and_its_neighbours_keep_their_data(store: CoreStore) -> None:
    """R5 and R8."""
    file, _ = store.bound_file("file", 8)
    frames = [store.fault(file, pgoff).pfn for pgoff in range(8)]
    store.fallocate(file, PUNCH, 3 * P, 2 * P)
    assert {(file.ino, pfn) in store.memory for pfn in frames[:3] + frames[5:]} == {True}
    for pgoff in (3, 4):
        pfn = store.fault(file, pgoff, touch=False).pfn
        assert (file.ino, pfn) not in store.memory
    assert [store.fault(file, pgoff).pfn for pgoff in (0, 1, 2, 5, 6, 7)] == frames[:3] + frames[5:]


def test_a_punch_counts_the_pending_pages_it_took(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 16)
    for pgoff in (0, 1, 3, 7):
        store.fault(file, pgoff, 512)
    assert guest.pending == 11
    store.fallocate(file, PUNCH, 8 * P, 4 * P)
    assert guest.pending == 7 == store.pool.count(PENDING)
    store.fallocate(file, PUNCH, 0, 16 * P)
    assert guest.pending == 0 == store.pool.count(PENDING)
    assert store.pool.free_count == 64


# -- reclaim


def granted_ahead(store: CoreStore) -> tuple:  # type: ignore[type-arg]
    """A file of 15 granted pages, 4 touched at 0, 1, 3 and 7."""
    file, guest = store.bound_file("file", 16)
    for pgoff in (0, 1, 3, 7):
        store.fault(file, pgoff, 512)
    return file, guest


def test_reclaim_asks_for_the_range_of_untouched_pages(store: CoreStore) -> None:
    file, _ = granted_ahead(store)
    other, _ = store.bound_file("other", 8, gfn=0x900)
    store.fault(other, 0)
    files = store.service.inodes.sealed_files()
    assert store.gmem.reclaimable(files) == [(file.ino, 2, 15)]
    store.gmem.invalidate_begin(file, 0, 1, strategies.PUNCH)
    assert store.gmem.reclaimable(files) == []


def test_reclaim_frees_untouched_pages_alone(store: CoreStore) -> None:
    file, guest = granted_ahead(store)
    store.invalidate(file, 2, 15, strategies.RECLAIM)
    assert [pgoff for pgoff in range(16) if file.pages.lookup(pgoff) is not None] == [0, 1, 3, 7]
    assert (guest.pending, store.pool.count(PRIVATE), store.pool.free_count) == (0, 4, 60)
    assert guest.seq == 1
    assert store.audit() == []


def test_reclaim_keeps_what_the_vm_says_it_touched(store: CoreStore) -> None:
    file, guest = granted_ahead(store)
    store.invalidate(file, 2, 15, strategies.RECLAIM, kept=[(Pgoff(4), Pgoff(6)), (Pgoff(10), Pgoff(11))])
    assert [pgoff for pgoff in range(16) if file.pages.lookup(pgoff) is not None] == [0, 1, 3, 4, 5, 7, 10]
    assert (guest.pending, store.pool.count(PRIVATE), store.pool.count(PENDING)) == (0, 7, 0)


@pytest.mark.parametrize("kept", [[(0, 1 << 50)], [(0, 2), (14, 99)], [(9, 3)], [(5, 5)], [(4, 8), (4, 8), (2, 15)]])
def test_ranges_to_keep_that_make_no_sense_harm_nobody(store: CoreStore, kept: list[tuple[int, int]]) -> None:
    file, guest = granted_ahead(store)
    store.invalidate(file, 2, 15, strategies.RECLAIM, kept=kept)  # type: ignore[arg-type]
    assert guest.pending == store.pool.count(PENDING) == 0
    assert store.audit() == []


def test_reclaim_of_a_part_leaves_the_rest_pending(store: CoreStore) -> None:
    file, guest = granted_ahead(store)
    store.invalidate(file, 8, 12, strategies.RECLAIM)
    assert guest.pending == 7 == store.pool.count(PENDING)


def test_reclaim_never_takes_what_fallocate_allocated(store: CoreStore) -> None:
    file, _ = store.bound_file("file", 8)
    store.fallocate(file, 0, 0, 8 * P)
    assert store.gmem.reclaimable([file]) == []
    store.invalidate(file, 0, 8, strategies.RECLAIM)
    assert file.pages.page_count == 8


def test_frames_that_hold_memory_were_touched(store: CoreStore) -> None:
    file, guest = granted_ahead(store)
    base = file.pages.lookup(0)
    assert base is not None
    assert store.gmem.settle(file, [(base, base + 6), (base + 9, base + 10)], Pgoff(0)) is None
    assert (guest.pending, store.pool.count(PRIVATE)) == (11 - 4, 8)
    assert store.gmem.settle(file, [(base, base + 64)], Pgoff(0)) is None
    assert (guest.pending, store.pool.count(PENDING)) == (0, 0)


def test_a_vm_that_writes_all_over_its_window_settles_only_its_own_frames(store: CoreStore) -> None:
    """A window is as long as the pool: nothing keeps a VM from storing where another file's frames would be."""
    victim, its = granted_ahead(store)
    liar, mine = store.bound_file("liar", 16, gfn=0x900)
    for pgoff in (0, 1, 3):
        store.fault(liar, pgoff, 512)
    assert store.gmem.settle(liar, [(0, 64)], Pgoff(0)) is None
    assert (mine.pending, its.pending) == (0, 11)
    assert store.pool.count(PENDING) == 11
    store.fallocate(victim, PUNCH, 0, 16 * P)
    assert (its.pending, store.pool.count(PENDING)) == (0, 0)


# -- the ends of a VM


def test_a_vm_that_is_cut_off_keeps_its_frames_in_quarantine_until_it_is_dead(store: CoreStore) -> None:
    """R6: nobody gets a frame that a living peer may still reach."""
    file, guest = store.bound_file("file", 16)
    for pgoff in (0, 1, 3):
        store.fault(file, pgoff, 512)
    store.gmem.disconnect(file)
    assert guest.pairing is not None
    assert [guest.pairing.state] == [PairState.DISCONNECTED]
    assert (store.pool.count(QUARANTINED), store.pool.free_count, guest.pending) == (7, 57, 0)
    assert (len(guest.bindings), file.pages.page_count) == (0, 0)
    with refused("EFAULT"):
        store.fault(file, 0)
    store.fallocate(store.make("rest"), 0, 0, 57 * P)
    with refused("ENOSPC"):
        store.fallocate(store.make("more"), 0, 0, P)
    assert store.audit() == []
    store.release_guest(file)
    assert (store.pool.count(QUARANTINED), store.pool.free_count) == (0, 7)
    assert guest.pairing.state is PairState.ENDED
    assert store.audit() == []


def test_a_cut_within_a_bracket_takes_nothing_away_from_quarantine(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 8)
    store.fault(file, 0)
    store.fault(file, 5)
    store.gmem.invalidate_begin(file, 0, 4, strategies.PUNCH)
    store.gmem.disconnect(file)
    assert store.gmem.take(file, None) is None
    store.gmem.invalidate_end(file)
    assert store.pool.count(QUARANTINED) == 2
    assert guest.open_invalidation is None


def test_release_closes_scrubs_and_frees_and_the_file_stays_sealed(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 16)
    for pgoff in (0, 1, 3):
        store.fault(file, pgoff, 512)
    effects = store.service.release_guest(file.ino)
    assert store.pool.count(CLOSING) == 7
    assert store.pool.free_count == 57
    store.perform(effects)
    assert store.pool.free_count == 64
    assert store.dropped == [file.ino]
    assert (file.size, guest.pending, len(guest.bindings)) == (16 * P, 0, 0)
    with refused("EPERM"):
        store.open(file, RDONLY)
    assert store.memory == {}


def test_an_unlinked_file_lives_until_its_vm_is_gone(store: CoreStore) -> None:
    file, _ = store.bound_file("file", 8)
    store.fault(file, 0)
    store.unlink("file")
    store.forget_all()
    assert store.fault(file, 0).page_count == 1
    assert store.pool.count(PRIVATE) == 1
    store.release_guest(file)
    assert store.leaks() == NO_LEAKS


def test_an_unlinked_file_whose_vm_is_cut_off_lives_in_quarantine(store: CoreStore) -> None:
    file, _ = store.bound_file("file", 8)
    store.fault(file, 0)
    store.gmem.disconnect(file)
    store.unlink("file")
    store.forget_all()
    assert store.pool.count(QUARANTINED) == 1
    store.release_guest(file)
    assert store.leaks() == NO_LEAKS


# -- large pages


def test_a_large_page_is_one_aligned_run_of_frames() -> None:
    store = CoreStore(pages=4 * 512)
    file = store.guest_file("file")
    store.setfattr(file, "page_size", "2M")
    store.resize(file, 2 << 21)
    store.pair(file)
    store.gmem.bind(file, 1, 0x200, 0, 1024)
    reply = store.gmem.get_pfn(file, 700, 4096)
    assert (reply.order, reply.page_count) == (9, 1024 - 700)
    assert reply.pfn % 512 == 700 - 512
    assert file.pages.page_count == 512
    with refused("EINVAL"):
        store.fallocate(file, PUNCH, 0, P)
    store.fallocate(file, PUNCH, 1 << 21, 1 << 21)
    assert store.pool.free_count == 4 * 512
    assert guest_of(file).seq == 1


def test_a_poisoned_frame_is_out_of_service_and_its_page_ehwpoison_until_it_is_punched(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 8)
    pfn = store.fault(file, 2, 1).pfn
    store.invalidate(file, 2, 3, strategies.POISON)
    assert store.pool.state(pfn) is FrameState.POISONED
    assert (file.ino, pfn) not in store.memory, "nobody reads what was there"
    with refused("EHWPOISON"):
        store.fault(file, 2)
    assert store.fault(file, 0, 8).page_count <= 2, "a run ends before it"
    assert store.fault(file, 3, 1).page_count == 1
    assert store.audit() == []
    store.invalidate(file, 2, 3, strategies.PUNCH)
    assert store.fault(file, 2, 1).pfn != pfn
    store.release_guest(file)
    assert (guest.absent.count, store.pool.count(FrameState.POISONED)) == (0, 1)
    assert store.pool.free_count == store.pool.frame_count - 1


def test_a_poisoned_page_is_not_filled_by_fallocate(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 8)
    store.fault(file, 2, 1)
    store.invalidate(file, 2, 3, strategies.POISON)
    store.fallocate(file, KEEP_SIZE, 0, 8 * P)
    assert file.pages.page_count == 7
    with refused("EHWPOISON"):
        store.fault(file, 2)
    assert [run[:2] for run in guest.absent.runs(0, 8)] == [(2, 3)]


# -- NUMA policies


def test_a_grant_goes_where_the_policy_of_its_page_says() -> None:
    store = CoreStore(64, nodes=2)
    file, _ = store.bound_file("file", 16)
    store.setfattr(file, "numa", f"interleave:0-1@0+{4 * P} bind:1@{4 * P}+{4 * P}")
    granted = [store.fault(file, pgoff, 512) for pgoff in range(16) if file.pages.lookup(Pgoff(pgoff)) is None]
    assert [reply.page_count for reply in granted[:4]] == [1, 1, 1, 1]
    assert [store.pool.node_of(file.pages.lookup(Pgoff(pgoff)) or 0) for pgoff in range(9)] == [
        0,
        1,
        0,
        1,
        1,
        1,
        1,
        1,
        0,
    ]
    assert store.audit() == []


def test_bind_is_enospc_when_its_nodes_are_full_though_others_have_room() -> None:
    store = CoreStore(16, nodes=2)
    file, _ = store.bound_file("file", 16)
    store.setfattr(file, "numa", "bind:1")
    for pgoff in range(8):
        store.fault(file, pgoff)
    before = store.pool.counts(), file.pages.page_count
    with refused("ENOSPC", "where policy bind:1 has them: 8 of 16 are free elsewhere"):
        store.fault(file, 8)
    with refused("ENOSPC", "where policy bind:1 has them"):
        store.fallocate(file, 0, 8 * P, P)
    assert (store.pool.counts(), file.pages.page_count) == before
    store.setfattr(file, "numa", "preferred:1")
    assert store.pool.node_of(store.fault(file, 8).pfn) == 0
    store.fallocate(file, PUNCH, 0, P)
    assert store.pool.node_of(store.fault(file, 9).pfn) == 1


def test_a_full_bind_takes_back_what_no_guest_has_touched() -> None:
    store = CoreStore(16, nodes=2)
    file, _ = store.bound_file("file", 16)
    store.setfattr(file, "numa", "bind:1")
    paired = store.seen_by_vm(file)
    for pgoff in (0, 1, 3):
        store.touch(file, paired.get_pfn(pgoff, 512).pfn)
    assert store.pool.node_free_counts()[1] == 1
    for pgoff in (15, 14):
        store.touch(file, paired.get_pfn(pgoff, 512).pfn)
    assert store.pool.node_free_counts()[0] == 8
    assert store.audit() == []


# -- large pages that split


def large_file(store: CoreStore, pages: int = 2) -> Regular:
    file = store.guest_file("file")
    store.setfattr(file, "page_size", "2M")
    store.resize(file, pages * 512 * P)
    store.pair(file)
    store.gmem.bind(file, 1, 0, 0, pages * 512)
    return file


def test_a_part_of_a_large_page_is_punched_only_with_split() -> None:
    for split, number in ((False, "EINVAL"), (True, None)):
        store = CoreStore(2048, split=split)
        file = large_file(store)
        store.fault(file, 0, 512)
        if number is not None:
            with refused(number, "or mount with split=on"):
                store.fallocate(file, PUNCH, P, P)
        else:
            store.fallocate(file, PUNCH, P, P)
            assert (file.pages.page_count, store.pool.free_count) == (511, 2048 - 511)
            with refused("EINVAL"):
                store.fallocate(file, 1, P, P)
        assert store.audit() == []


def test_a_hole_of_a_split_page_is_granted_as_in_a_file_of_small_pages() -> None:
    store = CoreStore(2048, split=True)
    file = large_file(store)
    store.fault(file, 0, 512)
    store.fallocate(file, PUNCH, 100 * P, 100 * P)
    counts = [store.fault(file, pgoff, 512).page_count for pgoff in (100, 101)]
    assert counts == [1, 2]
    assert store.pool.count(FrameState.PENDING) == 1
    assert store.fault(file, 100, 512).page_count == 3, "a run ends at a hole"
    assert store.getfattr(file, "frames").endswith("splits=1 merges=0")
    assert store.audit() == []


def test_a_poisoned_part_keeps_a_page_from_getting_a_large_frame() -> None:
    store = CoreStore(2048, split=True)
    file = large_file(store)
    store.fault(file, 0, 512)
    store.invalidate(file, 7, 8, strategies.POISON)
    store.fallocate(file, PUNCH, 0, 7 * P)
    store.fallocate(file, PUNCH, 8 * P, 504 * P)
    with refused("ENOENT", "is split"):
        store.gmem.get_pfn(file, 0, 512, 9)
    assert store.fault(file, 0, 512).page_count <= 7
    with refused("EHWPOISON"):
        store.fault(file, 7, 1)
    assert store.audit() == []


def test_the_audit_finds_parts_of_large_pages_where_none_may_go() -> None:
    store = CoreStore(2048)
    file = large_file(store)
    store.fault(file, 0, 512)
    assert store.audit() == []
    ((_, pfn, _),) = file.pages.unmap(Pgoff(5), Pgoff(6))
    store.pool.set_state(pfn, 1, FrameState.CLOSING)
    assert [rule for rule, _ in store.audit()] == ["R5"]


@pytest.mark.parametrize(
    ("pages", "refusal", "is_disconnected"),
    [(1, errno.ENOMEM, False), (513, errno.ENOMEM, False), (512, errno.ENOMEM, True), (1, errno.EBUSY, True)],
)
def test_a_vm_may_refuse_a_cut_for_want_of_memory_and_nothing_else(
    pages: int, refusal: int, is_disconnected: bool
) -> None:
    store = CoreStore(2048, split=True)
    file = large_file(store)
    for pgoff in (0, 512):
        store.fault(file, pgoff, 512)
    guest, vm = guest_of(file), store.vm_of(file)
    vm.refuses, vm.refusal, vm.is_dead = {Kind.INVALIDATE_BEGIN}, refusal, False
    before = store.pool.counts(), file.mtime_ns, guest.seq, guest.split_count
    with refused("ETIMEDOUT" if is_disconnected else "ENOMEM"):
        store.fallocate(file, PUNCH, 0, pages * P)
    if is_disconnected:
        assert guest.quarantine.page_count == 1024
    else:
        assert (store.pool.counts(), file.mtime_ns, guest.seq, guest.split_count) == before
        assert vm.calls == [Kind.INVALIDATE_BEGIN], "it knows of no bracket"
        vm.refuses.clear()
        store.fallocate(file, PUNCH, 0, pages * P)
        assert file.pages.page_count == 1024 - pages
    assert store.audit() == []
