"""What each strategy of an invalidation leaves of the pages and of the frames."""

import pytest

from memfsd.core.effects import Effect
from memfsd.core.private import strategies
from memfsd.core.private.absent import Lost
from memfsd.core.private.gmem_file import Invalidation
from memfsd.core.private.strategies import Strategy, Taking, UpCall
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.messages import Body, Empty, Kind, Reason, Report
from tests.support.core_store import CoreStore, refused


@pytest.fixture
def store() -> CoreStore:
    return CoreStore()


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        (strategies.PUNCH, Reason.PUNCH),
        (strategies.TRUNCATE, Reason.TRUNCATE),
        (strategies.RECLAIM, Reason.RECLAIM),
        (strategies.POISON, Reason.POISON),
    ],
)
def test_the_vm_is_told_why(strategy: Strategy, reason: Reason) -> None:
    assert strategy.reason is reason


def test_punch_leaves_holes_and_reclaim_what_was_touched(store: CoreStore) -> None:
    file, _ = store.bound_file("file", 16)
    for pgoff in range(8):
        store.fault(file, pgoff, 1)
    store.invalidate(file, 0, 16, strategies.RECLAIM)
    assert file.pages.page_count == 8
    store.invalidate(file, 2, 4, strategies.PUNCH)
    assert [count for _, _, count in file.pages.extents(0, 16)] == [2, 4]
    assert store.pool.free_count == store.pool.frame_count - 6


def test_poison_leaves_pages_that_a_punch_makes_holes_again(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 16)
    store.fault(file, 3, 1)
    store.invalidate(file, 3, 4, strategies.POISON)
    assert list(guest.absent.runs(0, 16)) == [(3, 4, Lost.POISONED)]
    with refused("EHWPOISON", match="page 0x3"):
        store.fault(file, 3)
    store.invalidate(file, 0, 16, strategies.PUNCH)
    assert not guest.absent
    store.fault(file, 3)
    assert store.pool.count(FrameState.POISONED) == 1


class Asking(strategies.Unmap):
    """As PUNCH, with a call that a VM may refuse."""

    def __init__(self) -> None:
        super().__init__(Reason.MOVE)
        self.answers: list[Body | None] = []

    def call(self, closing: Invalidation) -> UpCall:
        return UpCall(Kind.REPORT, Report(closing.start), Empty)

    def take(self, taking: Taking) -> list[Effect]:
        self.answers.append(taking.answer)
        return []


def test_a_strategy_has_its_own_call_and_its_answer(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 16)
    store.fault(file, 3, 1)
    asking = Asking()
    store.invalidate(file, 3, 4, asking)
    assert store.vm_of(file).calls == [Kind.REPORT, Kind.INVALIDATE_END]
    assert (asking.answers, guest.seq) == ([Empty()], 1)


def test_a_call_that_is_refused_has_opened_no_bracket_in_the_vm(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 16)
    store.fault(file, 3, 1)
    store.vm_of(file).refuses.add(Kind.REPORT)
    asking = Asking()
    with refused("ECANCELED", match="does not do it"):
        store.invalidate(file, 3, 4, asking)
    assert store.vm_of(file).calls == [Kind.REPORT]
    assert (asking.answers, guest.seq, guest.open_invalidation) == ([None], 0, None)
    assert guest.active is not None


def test_a_vm_that_refuses_begin_is_cut_off(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 16)
    store.fault(file, 3, 1)
    store.vm_of(file).refuses.add(Kind.INVALIDATE_BEGIN)
    store.vm_of(file).is_dead = False
    with refused("ETIMEDOUT", match="did not acknowledge"):
        store.invalidate(file, 3, 4, strategies.PUNCH)
    assert guest.active is None
