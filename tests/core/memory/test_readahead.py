"""How many pages one grant brings."""

import pytest

from memfsd.core.memory.readahead import Readahead
from memfsd.uapi.limits import MAX_AHEAD_PAGES


def fault(stream: Readahead, pgoff: int) -> int:
    """A fault whose wish is granted in full; the pages."""
    wish = stream.wish(pgoff)
    stream.granted(pgoff, wish)
    return wish


def test_faults_here_and_there_get_single_pages() -> None:
    stream = Readahead()
    assert [fault(stream, pgoff) for pgoff in (900, 3, 77, 5, 40_000, 1000, 0)] == [1] * 7


def test_faults_in_order_double_up_to_the_longest_run() -> None:
    stream, at, grants = Readahead(), 1000, []
    for _ in range(15):
        grants.append(fault(stream, at))
        at += grants[-1]
    assert grants == [min(1 << n, MAX_AHEAD_PAGES) for n in range(15)]
    assert grants[-1] == MAX_AHEAD_PAGES


def test_backwards_is_not_in_order() -> None:
    stream = Readahead()
    assert [fault(stream, pgoff) for pgoff in (9, 8, 7, 6, 5)] == [1] * 5


def test_a_run_cut_short_goes_on_from_what_was_granted() -> None:
    stream = Readahead()
    for pgoff in (0, 1, 3):
        fault(stream, pgoff)
    assert stream.wish(7) == 8
    stream.granted(7, 3)
    assert fault(stream, 10) == 6


@pytest.mark.parametrize("vcpus", [2, 16])
def test_interleaved_streams_do_not_spoil_each_other(vcpus: int) -> None:
    stream = Readahead()
    at = [100_000 * vcpu for vcpu in range(vcpus)]
    for round_ in range(6):
        for vcpu in range(vcpus):
            granted = fault(stream, at[vcpu])
            assert granted == 1 << round_
            at[vcpu] += granted


def test_a_stream_survives_a_few_strays_and_not_a_storm() -> None:
    stream = Readahead()
    fault(stream, 0)
    fault(stream, 1)
    for stray in range(10):
        fault(stream, 50_000 + 7 * stray)
    assert fault(stream, 3) == 4
    for stray in range(16):
        fault(stream, 90_000 + 7 * stray)
    assert fault(stream, 7) == 1
