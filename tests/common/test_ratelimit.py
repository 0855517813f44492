"""A limit on how much of the time something takes."""

from memfsd.common.ratelimit import Ratelimit

MS = 1_000_000


def test_it_is_done_each_time_until_a_burst_is_spent_and_then_for_a_small_share_of_the_time() -> None:
    limit, now, done = Ratelimit(), 0, []
    for _ in range(5000):
        if limit.allows(now):
            limit.spent(MS)
            now += MS
            done.append(now)
        now += MS
    assert done[:2] == [1 * MS, 3 * MS], "at first each time"
    assert 11 <= len(done) <= 13, "2 ms, and a 500th part of 5 s"


def test_one_that_takes_long_is_not_soon_done_again() -> None:
    limit = Ratelimit()
    assert limit.allows(0)
    limit.spent(1000 * MS)
    assert not limit.allows(400_000 * MS)
    assert limit.allows(600_000 * MS)


def test_what_is_left_over_does_not_add_up() -> None:
    limit = Ratelimit()
    assert limit.allows(10**15)
    limit.spent(6 * MS)
    assert not limit.allows(10**15 + MS)
