"""The verdict on a guest program: what it prints, unless something was taken from it, or the pool was full."""

import errno
import threading
from pathlib import Path

import pytest
from soaklib.kvm import Trouble
from soaklib.ledger import Ledger
from soaklib.model import Lost, Wrong
from soaklib.plan import Plan
from soaklib.programs import PROGRAMS, GuestProgram, Programs

PAGES = 4096
TOUCH, LOOPING = PROGRAMS[0], GuestProgram("looping", "")


class FakeVm:
    """Prints the given lines, and exits as given."""

    def __init__(self, printed: str, trouble: Trouble | None = None, *, loops: bool = False) -> None:
        self.lost = ""
        self.fault_count = 0
        self._printed = ["", printed]
        self._trouble = trouble
        self._loops = loops
        self._back = threading.Event()

    def boot(self, vcpu: int, name: str) -> None:
        return None

    def execute(self, vcpu: int, *, again: bool = False) -> Trouble | None:
        if self._loops:
            self._back.wait()
            return Trouble(errno.EINTR, "kicked", refused=True)
        return self._trouble

    def console(self, vcpu: int) -> str:
        return self._printed.pop(0)

    def await_loss(self) -> None:
        self.lost = "closed"

    def want_back(self) -> None:
        self._back.set()

    def let_go_on(self) -> None:
        self._back.clear()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger", PAGES, create=True)


def judged(ledger: Ledger, vm: FakeVm, program: GuestProgram = TOUCH) -> dict[str, int]:
    plan = Plan("vm", "", "", 0, PAGES << 12, 4096, "punch", "kept", 2, False, "1", True)
    programs = Programs(plan, vm, ledger)  # type: ignore[arg-type]
    programs._one(program)
    return dict(programs.counts)


def test_a_program_that_does_its_work(ledger: Ledger) -> None:
    assert judged(ledger, FakeVm(TOUCH.prints)) == {"programs": 1, "programs_ok": 1, "verified_pages": 1024}


@pytest.mark.parametrize("vm", [FakeVm("touch: failed\n"), FakeVm("", Trouble(0, "SHUTDOWN"))])
def test_one_that_does_not_is_wrong_if_nothing_was_taken(ledger: Ledger, vm: FakeVm) -> None:
    with ledger.moments.taking(2000, 2048), ledger.moments.taking(0, 256):
        pass
    with pytest.raises(Wrong, match="from which nothing was taken"):
        judged(ledger, vm)


def test_what_is_taken_excuses_it(ledger: Ledger) -> None:
    with ledger.moments.taking(2000, 2001):
        assert judged(ledger, FakeVm("touch: failed\n")) == {"programs": 1, "programs_taken_from": 1}
    with ledger.moments.taking(260, 261):
        assert judged(ledger, FakeVm("", loops=True)) == {"programs": 1, "programs_taken_from": 1}, "its code"


def test_one_that_loops_because_the_soak_ends_is_neither(ledger: Ledger) -> None:
    ledger.tell_to_stop()
    assert judged(ledger, FakeVm("", loops=True), LOOPING) == {"programs": 1}


def test_one_that_loops_is_wrong(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soaklib.programs._DEADLINE_S", 0.05)
    with pytest.raises(Wrong, match="does not end"):
        judged(ledger, FakeVm("", loops=True))


def test_a_full_pool_and_a_lost_store_are_told_apart(ledger: Ledger) -> None:
    assert judged(ledger, FakeVm("", Trouble(errno.ENOSPC, "full"))) == {"programs": 1, "pool_full": 1}
    with pytest.raises(Lost):
        judged(ledger, FakeVm("", Trouble(errno.ENOTCONN, "gone", refused=True)))
