"""Every design, each step of a conversion refused in turn: slots, bindings and data are as they were."""

import errno
from collections.abc import Callable

import pytest

from kvmsim.kvm.exits import MemoryErrorExit
from kvmsim.vmm.conversion.transaction import Transaction
from memfsd.uapi.errors import PeerLost, Refused
from tests.kvmsim.vmm.conversion.world import DESIGNS, Breaker, World
from tests.support.both_sides import LocalStore, page
from tests.support.threads import until


def _share_middle(world: World) -> None:
    world.map(4, 8, private=False)
    for number in range(4, 12):
        assert world.touch(number, shared=True, data=bytes([100 + number]) * 8) is None


def _share_two(world: World) -> None:
    for number in (5, 9):
        assert world.touch(number, shared=True, data=bytes([100 + number]) * 8) is None


CASES: dict[str, tuple[Callable[[World], None], Callable[[World], object]]] = {
    "one page to shared": (lambda world: None, lambda world: world.touch(6, shared=True)),
    "a range to shared": (lambda world: None, lambda world: world.map(4, 8, private=False)),
    "everything to shared": (lambda world: None, lambda world: world.map(0, 16, private=False)),
    "a range with shared pages in it to shared": (_share_two, lambda world: world.map(4, 8, private=False)),
    "beside a shared page to shared": (_share_two, lambda world: world.touch(6, shared=True)),
    "one page to private": (_share_two, lambda world: world.touch(5, shared=False)),
    "a part of a shared range to private": (_share_middle, lambda world: world.map(6, 2, private=True)),
    "several ranges to private": (_share_two, lambda world: world.map(0, 16, private=True)),
    "a shared range and more to private": (_share_middle, lambda world: world.map(2, 12, private=True)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("policy", "under"), DESIGNS, ids=lambda word: word)
def test_a_conversion_that_is_refused_at_any_step_changes_nothing(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, policy: str, under: str, case: str
) -> None:
    prepare, convert = CASES[case]
    world = World(store, policy, under)
    prepare(world)
    breaker = Breaker(world, monkeypatch)
    before = world.state()
    steps = 0
    while _is_refused(lambda: convert(world), breaker, steps):
        assert world.state() == before, f"step {steps} was refused"
        assert store.findings() == []
        steps += 1
        assert world.local.vmm.tally.rolled_back == steps
    assert steps > 0, "a conversion has steps that can be refused"
    assert world.state() != before, "without a fault it happens"
    assert store.findings() == []


def _is_refused(convert: Callable[[], object], breaker: Breaker, step: int) -> bool:
    """False when the conversion happened: there is no such step, or the store did not take back all (it is counted)."""
    breaker.arm(step)
    try:
        convert()
    except Refused as refused:
        return refused.reason == "injected" and breaker.disarm()
    assert not breaker.disarm() or breaker.world.local.vmm.tally.unreturned_pages
    return False


@pytest.mark.parametrize(("policy", "under"), [("recreate", "kept"), ("overlay", "freed")], ids=lambda word: word)
def test_a_store_that_dies_in_the_middle_leaves_the_slots_as_they_were(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, policy: str, under: str
) -> None:
    world = World(store, policy, under)
    world.touch(12, shared=True)
    slots = world.state().slots
    link = world.local.link()

    def die(*_: object) -> None:
        store.hang_up("file")
        until(lambda: bool(link.lost), "the VM has heard of it")
        raise Refused(errno.ECONNABORTED, "punch: Software caused connection abort")

    monkeypatch.setattr(link, "punch", die)
    with pytest.raises(Refused, match="connection abort"):
        world.map(4, 2, private=False)
    assert world.state().slots == slots
    exit_ = world.local.read(page(1), 1)
    assert isinstance(exit_, MemoryErrorExit) and exit_.errno == errno.EIO


@pytest.mark.parametrize("refusal", [Refused(errno.EIO, "not undone"), PeerLost("the store is gone")], ids=repr)
@pytest.mark.parametrize("unexpected", [None, OSError(errno.ENOMEM, "the window is full")], ids=repr)
def test_all_steps_are_taken_back_whatever_one_of_them_says(refusal: Exception, unexpected: OSError | None) -> None:
    undone: list[int] = []

    def undo(step: int, error: Exception | None) -> None:
        undone.append(step)
        if error is not None:
            raise error

    failed = Refused(errno.ENOSPC, "a later step")

    def change() -> None:
        with Transaction() as transaction:
            for step, error in enumerate((None, refusal, None, unexpected, None)):
                transaction.did(undo, step, error)
            raise failed

    with pytest.raises(OSError if unexpected else Refused) as raised:
        change()
    assert undone == [4, 3, 2, 1, 0]
    assert raised.value is (unexpected or failed)


def test_what_has_happened_is_not_taken_back() -> None:
    undone: list[None] = []
    with Transaction() as transaction:
        transaction.did(undone.append, None)
    assert undone == []
