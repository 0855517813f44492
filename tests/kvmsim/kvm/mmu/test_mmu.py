"""The invalidation bracket and the staleness of faults, as virt/kvm/kvm_main.c has them."""

from collections.abc import Iterator

import pytest

from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.mmu.ept import ACCESSED
from kvmsim.kvm.mmu.mmu import Mmu, PageFault
from kvmsim.kvm.mmu.tlb import Tlb, Translation, tlb_key
from kvmsim.kvm.region import SlotFlag
from kvmsim.kvm.slots.memslots import Memslot
from memfsd.uapi.units import Gfn, HostPfn, Pgoff
from tests.support.slots import NO_BACKING, TRANSLATION


@pytest.fixture
def mmu() -> Iterator[Mmu]:
    """Its lock is held, as every method wants it."""
    made = Mmu()
    with made.lock:
        yield made


SLOT = Memslot(0, PRIVATE, Gfn(0), 100, SlotFlag(0), NO_BACKING, Pgoff(0))


def page_fault(mmu: Mmu, gfn: int, limit: int = 1) -> PageFault:
    return PageFault(Gfn(gfn), True, SLOT, Pgoff(gfn), limit, True, mmu.invalidate_seq, 0)


def mapped(mmu: Mmu) -> list[tuple[int, int, int]]:
    return list(mmu.epts[PRIVATE].runs(Gfn(0), Gfn(200)))


def test_a_fresh_fault_maps_its_run_and_marks_the_page_that_was_asked_for(mmu: Mmu) -> None:
    assert mmu.install(page_fault(mmu, 10, limit=4), HostPfn(500), 4)
    assert mapped(mmu) == [(10, 500, 4)]
    assert mmu.epts[PRIVATE].touched(Gfn(0), Gfn(100)) == [(10, 11)]
    assert (mmu.fault_count, mmu.retry_count) == (1, 0)


def test_a_run_is_cut_at_the_limit_of_the_ticket(mmu: Mmu) -> None:
    assert mmu.install(page_fault(mmu, 10, limit=2), HostPfn(500), 9)
    assert mapped(mmu) == [(10, 500, 2)]


@pytest.mark.parametrize(("gfn", "stale"), [(9, False), (10, True), (19, True), (20, False)])
def test_while_a_bracket_is_open_nothing_in_it_is_mapped(mmu: Mmu, gfn: int, stale: bool) -> None:
    mmu.invalidate_begin(Gfn(10), Gfn(20))
    assert mmu.install(page_fault(mmu, gfn), HostPfn(500), 1) is not stale
    assert mmu.retry_count == stale


def test_a_run_that_reaches_into_a_bracket_is_stale_as_a_whole(mmu: Mmu) -> None:
    mmu.invalidate_begin(Gfn(10), Gfn(20))
    assert mmu.install(page_fault(mmu, 5, limit=5), HostPfn(500), 5)
    assert not mmu.install(page_fault(mmu, 4, limit=7), HostPfn(499), 7)
    assert mapped(mmu) == [(5, 500, 5)]


@pytest.mark.parametrize("gfn", [15, 50], ids=["in the range", "outside"])
def test_a_fault_that_started_before_the_end_is_retried_wherever_it_is(mmu: Mmu, gfn: int) -> None:
    before = page_fault(mmu, gfn)
    mmu.invalidate_begin(Gfn(10), Gfn(20))
    during = page_fault(mmu, gfn)
    mmu.invalidate_end()
    assert not mmu.install(before, HostPfn(500), 1)
    assert not mmu.install(during, HostPfn(500), 1)
    assert mmu.install(page_fault(mmu, gfn), HostPfn(500), 1)


def test_the_sequence_moves_at_end_only(mmu: Mmu) -> None:
    mmu.invalidate_begin(Gfn(1), Gfn(2))
    assert (mmu.invalidate_seq, mmu.in_progress) == (0, 1)
    mmu.invalidate_end()
    assert (mmu.invalidate_seq, mmu.in_progress) == (1, 0)


def test_two_open_brackets_are_one_range_until_both_are_closed(mmu: Mmu) -> None:
    mmu.invalidate_begin(Gfn(10), Gfn(20))
    mmu.invalidate_begin(Gfn(40), Gfn(50))
    assert (mmu.range_start, mmu.range_end, mmu.in_progress) == (10, 50, 2)
    mmu.invalidate_end()
    assert not mmu.install(page_fault(mmu, 30), HostPfn(500), 1), (
        "between the two: the merged range is wider than both, as in KVM"
    )
    mmu.invalidate_end()
    assert mmu.install(page_fault(mmu, 30), HostPfn(500), 1)
    mmu.invalidate_begin(Gfn(60), Gfn(61))
    assert (mmu.range_start, mmu.range_end) == (60, 61), "the next one starts again"
    mmu.invalidate_end()


def test_an_end_without_a_begin_is_a_bug(mmu: Mmu) -> None:
    with pytest.raises(AssertionError, match="END without BEGIN"):
        mmu.invalidate_end()


def test_two_vcpus_that_fault_on_one_page_map_it_once(mmu: Mmu) -> None:
    assert mmu.install(page_fault(mmu, 10), HostPfn(500), 1)
    assert mmu.install(page_fault(mmu, 10), HostPfn(500), 1)
    assert mmu.epts[PRIVATE].leaf_count == 1


def test_zap_tells_what_was_there_and_counts(mmu: Mmu) -> None:
    mmu.install(page_fault(mmu, 10, limit=8), HostPfn(500), 8)
    assert mmu.zap(Gfn(12), Gfn(30), private=True) == [(12, 502, 6)]
    assert mmu.zap(Gfn(12), Gfn(30), private=False) == [], "the aliases are apart"
    assert (mapped(mmu), mmu.zapped_count) == ([(10, 500, 2)], 6)


def test_reclaim_zaps_what_was_never_touched_and_names_the_rest(mmu: Mmu) -> None:
    mmu.install(page_fault(mmu, 10, limit=8), HostPfn(500), 8)
    mmu.epts[PRIVATE].mark(Gfn(13), ACCESSED)
    mmu.epts[PRIVATE].mark_range(Gfn(15), Gfn(17), ACCESSED)
    assert mmu.zap_untouched(Gfn(0), Gfn(100)) == [(10, 11), (13, 14), (15, 17)]
    assert mapped(mmu) == [(10, 500, 1), (13, 503, 1), (15, 505, 2)]
    assert mmu.zapped_count == 4


LARGE_SLOT = Memslot(0, PRIVATE, Gfn(0), 4096, SlotFlag(0), NO_BACKING, Pgoff(0), max_order=9)


def large_ticket(mmu: Mmu, gfn: int, limit: int) -> PageFault:
    return PageFault(Gfn(gfn), True, LARGE_SLOT, Pgoff(gfn), limit, True, mmu.invalidate_seq, 9)


def test_a_large_leaf_is_mapped_around_the_page_and_counts_as_one_fault(mmu: Mmu) -> None:
    assert mmu.install_large(large_ticket(mmu, 700, 324), HostPfn(1024), 512, 9)
    assert list(mmu.epts[PRIVATE].runs(Gfn(0), Gfn(4096))) == [(512, 1024, 512)]
    assert (mmu.epts[PRIVATE].leaf_counts, mmu.fault_count) == ((0, 1, 0), 1)


def test_a_run_is_mapped_in_whole_leaves_inside_the_limit(mmu: Mmu) -> None:
    assert mmu.install_large(large_ticket(mmu, 700, 324 + 512 + 511), HostPfn(1024), 4096, 9)
    assert list(mmu.epts[PRIVATE].runs(Gfn(0), Gfn(4096))) == [(512, 1024, 1024)]
    assert mmu.epts[PRIVATE].touched(Gfn(0), Gfn(4096)) == [(512, 1024)]


@pytest.mark.parametrize(
    ("start", "end", "stale"), [(0, 512, False), (511, 513, True), (900, 901, True), (1024, 1025, False)]
)
def test_a_bracket_anywhere_in_the_leaf_makes_it_stale(mmu: Mmu, start: int, end: int, stale: bool) -> None:
    mmu.invalidate_begin(Gfn(start), Gfn(end))
    assert mmu.install_large(large_ticket(mmu, 700, 324), HostPfn(1024), 512, 9) is not stale


@pytest.mark.parametrize(
    ("gfn", "clear"), [(0, (0, 10)), (9, (0, 10)), (10, (0, 100)), (19, (0, 100)), (20, (20, 100)), (99, (20, 100))]
)
def test_what_is_clear_of_an_open_bracket(mmu: Mmu, gfn: int, clear: tuple[int, int]) -> None:
    assert mmu.clear_of_brackets(Gfn(gfn), Gfn(0), Gfn(100)) == (0, 100)
    mmu.invalidate_begin(Gfn(10), Gfn(20))
    assert mmu.clear_of_brackets(Gfn(gfn), Gfn(0), Gfn(100)) == clear


def test_a_zap_drops_its_own_translations_of_its_own_alias(mmu: Mmu) -> None:
    tlbs: list[Tlb[Translation]] = [Tlb(), Tlb()]
    mmu.tlbs += tlbs
    mmu.install(page_fault(mmu, 10, limit=8), HostPfn(500), 8)
    for tlb in tlbs:
        for gfn in (9, 10, 11):
            tlb.insert(tlb_key(gfn, False), TRANSLATION)
            tlb.insert(tlb_key(gfn, True), TRANSLATION)
    mmu.zap(Gfn(0), Gfn(11), private=True)
    for tlb in tlbs:
        assert [gfn for gfn in (9, 10, 11) if tlb.lookup(tlb_key(gfn, False)) is None] == [10]
        assert all(tlb.lookup(tlb_key(gfn, True)) for gfn in (9, 10, 11))
        assert (tlb.flush_count, tlb.ranged_flush_count) == (0, 1)


def test_a_zap_that_removes_nothing_and_a_reclaim_flush_nothing(mmu: Mmu) -> None:
    tlb: Tlb[Translation] = Tlb()
    mmu.tlbs.append(tlb)
    tlb.insert(tlb_key(10, False), TRANSLATION)
    mmu.install(page_fault(mmu, 10, limit=8), HostPfn(500), 8)
    mmu.zap(Gfn(50), Gfn(60), private=True)
    mmu.zap_untouched(Gfn(0), Gfn(100))
    assert (tlb.flush_count, tlb.ranged_flush_count, len(tlb)) == (0, 0, 1)


@pytest.mark.parametrize(("pages", "flushes"), [(512, (0, 1)), (513, (1, 0))])
def test_a_large_zap_empties_the_tlb(mmu: Mmu, pages: int, flushes: tuple[int, int]) -> None:
    tlb: Tlb[Translation] = Tlb()
    mmu.tlbs.append(tlb)
    mmu.install(page_fault(mmu, 0, limit=pages), HostPfn(500), pages)
    mmu.zap(Gfn(0), Gfn(10_000), private=True)
    assert (tlb.flush_count, tlb.ranged_flush_count) == flushes


def test_a_zap_answers_with_its_own_part_of_a_leaf_that_could_not_be_split(mmu: Mmu) -> None:
    tlb: Tlb[Translation] = Tlb()
    mmu.tlbs.append(tlb)
    assert mmu.install_large(large_ticket(mmu, 512, 512), HostPfn(1024), 512, 9)
    mmu.epts[PRIVATE]._max_tables = mmu.epts[PRIVATE]._next_table
    tlb.insert(tlb_key(600, False), TRANSLATION)  # beside the range
    assert mmu.zap(Gfn(700), Gfn(701), private=True) == [(700, 1024 + 188, 1)]
    assert mmu.epts[PRIVATE].leaf_count == 0
    assert len(tlb) == 0, "all that went is flushed"
