"""Pages that are blocked: where they are, and whether they were touched."""

from kvmsim.kvm.mmu.blocked import BlockedPages
from memfsd.uapi.units import Gfn, HostPfn


def test_pages_are_taken_as_they_were_added_and_in_parts() -> None:
    blocked = BlockedPages()
    blocked.add((Gfn(10), HostPfn(110), 10), touched=[(Gfn(12), Gfn(14))])
    assert blocked.ranges(Gfn(0), Gfn(100)) == [(10, 12), (12, 14), (14, 20)]
    assert blocked.take(Gfn(13), Gfn(16)) == [((13, 113, 1), True), ((14, 114, 2), False)]
    assert blocked.take(Gfn(13), Gfn(16)) == []
    assert blocked.take(Gfn(0), Gfn(100)) == [((10, 110, 2), False), ((12, 112, 1), True), ((16, 116, 4), False)]
    assert len(blocked) == 0


def test_what_was_touched_before_stays_touched() -> None:
    blocked = BlockedPages()
    blocked.add((Gfn(10), HostPfn(110), 4), touched=[(Gfn(11), Gfn(12))])
    blocked.add((Gfn(10), HostPfn(110), 4), touched=[(Gfn(13), Gfn(14))])
    assert blocked.take_untouched(Gfn(0), Gfn(100)) == [(11, 12), (13, 14)]
    assert blocked.take(Gfn(0), Gfn(100)) == [((11, 111, 1), True), ((13, 113, 1), True)]


def test_a_frame_that_holds_another_page_is_blocked_for_that_one_only() -> None:
    blocked = BlockedPages()
    blocked.add((Gfn(10), HostPfn(110), 10), touched=[])
    blocked.claim(Gfn(10), HostPfn(110), 10)
    assert blocked.runs(Gfn(0), Gfn(100)) == [(10, 110, 10)], "the same pages"
    blocked.claim(Gfn(52), HostPfn(112), 3)
    assert blocked.runs(Gfn(0), Gfn(100)) == [(10, 110, 2), (15, 115, 5)]
    blocked.add((Gfn(60), HostPfn(116), 2), touched=[])
    assert blocked.runs(Gfn(0), Gfn(100)) == [(10, 110, 2), (15, 115, 1), (18, 118, 2), (60, 116, 2)]
    blocked.take(Gfn(60), Gfn(61))
    blocked.claim(Gfn(70), HostPfn(116), 2)
    assert blocked.runs(Gfn(60), Gfn(100)) == []
