"""Shares of a bounded resource."""

from memfsd.core.files.shares import Shares

OWNER = 7


def test_a_user_has_a_bound_and_others_have_theirs() -> None:
    shares = Shares(10, 4, 1, OWNER)
    assert shares.take(1, 3)
    assert not shares.take(1, 2), "all or nothing"
    assert shares.take(1)
    assert shares.take(2, 4)
    assert (shares.held(1), shares.held(2), shares.used) == (4, 4, 8)


def test_the_reserve_is_for_root_and_the_owner() -> None:
    shares = Shares(10, 10, 2, OWNER)
    assert not shares.take(1, 9)
    assert shares.take(1, 8)
    assert not shares.take(2)
    assert shares.take(OWNER)
    assert shares.take(0)
    assert not shares.take(0), "there is no more"


def test_what_is_given_back_can_be_taken_again() -> None:
    shares = Shares(2, 1, 0, OWNER)
    for _ in range(3):
        assert shares.take(1)
        assert not shares.take(1)
        shares.give(1)
    assert shares.used == 0


def test_what_is_moved_is_above_the_bound_until_it_is_given_back() -> None:
    shares = Shares(10, 2, 0, OWNER)
    assert shares.take(0, 5)
    shares.move(0, 1, 5)
    assert (shares.held(0), shares.held(1), shares.used) == (0, 5, 5)
    assert not shares.take(1)
    shares.give(1, 4)
    assert shares.take(1)


def test_root_and_the_owner_are_bound_by_the_total_only() -> None:
    shares = Shares(10, 1, 5, OWNER)
    assert shares.take(OWNER, 5)
    assert shares.take(0, 5)
    assert not shares.take(OWNER)
