"""Pages that are blocked: where they are, and whether they were touched."""

from kvmsim.kvm.mmu.blocked import BlockedPages


def test_pages_are_taken_as_they_were_added_and_in_parts() -> None:
    blocked = BlockedPages()
    blocked.add((10, 110, 10), touched=[(12, 14)])
    assert blocked.ranges(0, 100) == [(10, 12), (12, 14), (14, 20)]
    assert blocked.take(13, 16) == [((13, 113, 1), True), ((14, 114, 2), False)]
    assert blocked.take(13, 16) == []
    assert blocked.take(0, 100) == [((10, 110, 2), False), ((12, 112, 1), True), ((16, 116, 4), False)]
    assert len(blocked) == 0


def test_what_was_touched_before_stays_touched() -> None:
    blocked = BlockedPages()
    blocked.add((10, 110, 4), touched=[(11, 12)])
    blocked.add((10, 110, 4), touched=[(13, 14)])
    assert blocked.take_untouched(0, 100) == [(11, 12), (13, 14)]
    assert blocked.take(0, 100) == [((11, 111, 1), True), ((13, 113, 1), True)]
