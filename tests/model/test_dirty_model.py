"""The dirty log against a plain set of pages."""

from hypothesis import given
from hypothesis import strategies as st

from kvmsim.kvm.slots.dirty import DirtyLog

PAGES = 45


@given(
    rounds=st.lists(st.lists(st.tuples(st.integers(0, PAGES - 1), st.integers(1, PAGES)), max_size=8), max_size=4),
)
def test_a_log_tells_each_page_once_and_is_empty_then(rounds: list[list[tuple[int, int]]]) -> None:
    log = DirtyLog(PAGES)
    for writes in rounds:
        model = set[int]()
        for start, count in writes:
            end = min(start + count, PAGES)
            log.mark(start, end)
            model |= set(range(start, end))
        taken = log.take()
        assert {page for start, end in taken for page in range(start, end)} == model
        assert sorted(taken) == taken and len(taken) == len(set(taken))
        assert log.take() == []
