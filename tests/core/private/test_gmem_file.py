"""A sealed file's state: who may come back to it, and what it counts as held."""

import pytest

from memfsd.core.private.gmem_file import GmemFile, Invalidation, Pairing, PairState
from memfsd.core.private.strategies import PUNCH
from memfsd.uapi.messages import Kind
from memfsd.uapi.units import Pgoff, Seq

SECRET = b"s" * 16


def pairing(pid: int = 4, uid: int = 1000, secret: bytes = SECRET, state: PairState = PairState.ACTIVE) -> Pairing:
    return Pairing("vm", pid, uid, frozenset({Kind.INVALIDATE_BEGIN}), secret, state)


def test_the_same_process_may_come_back_after_it_ended_well() -> None:
    assert pairing(state=PairState.ENDED).may_become(pairing())


@pytest.mark.parametrize(
    "again",
    [pairing(pid=5), pairing(uid=0), pairing(secret=b"t" * 16), pairing(secret=b"")],
    ids=["another process", "another user", "another secret", "no secret"],
)
def test_nobody_else_may(again: Pairing) -> None:
    assert not pairing(state=PairState.ENDED).may_become(again)


@pytest.mark.parametrize("state", [PairState.ACTIVE, PairState.DISCONNECTED])
def test_not_while_the_first_may_still_reach_the_memory(state: PairState) -> None:
    assert not pairing(state=state).may_become(pairing())


def test_an_empty_secret_is_nobodys() -> None:
    assert not pairing(secret=b"", state=PairState.ENDED).may_become(pairing(secret=b""))


def test_a_vm_implements_what_it_said_in_its_greeting() -> None:
    assert pairing().implements(Kind.INVALIDATE_BEGIN)
    assert not pairing().implements(Kind.REPORT)


@pytest.mark.parametrize(
    ("state", "active", "holds"),
    [(PairState.ACTIVE, True, True), (PairState.DISCONNECTED, False, True), (PairState.ENDED, False, False)],
)
def test_memory_is_held_until_the_vm_is_proven_dead(state: PairState, active: bool, holds: bool) -> None:
    guest = GmemFile(pairing=pairing(state=state))
    assert (guest.active is guest.pairing, guest.holds_memory) == (active, holds)


def test_a_file_that_never_had_a_vm_holds_nothing() -> None:
    assert (GmemFile().active, GmemFile().holds_memory) == (None, False)


@pytest.mark.parametrize(("populated", "untouched"), [(None, 5), (0, 5), (8, 2), (10, 0), (12, 0)])
def test_no_more_pages_are_untouched_than_the_window_lacks(populated: int | None, untouched: int) -> None:
    """Of 10 pages with a frame, 5 are pending."""
    assert GmemFile(pending=5).untouched(10, populated) == untouched


def test_an_invalidation_has_taken_nothing_when_it_opens() -> None:
    opened = Invalidation(Pgoff(4), Pgoff(9), PUNCH, upcall=True, seq=Seq(0))
    assert opened.taken_to == opened.start
