"""VMs that are asked side by side, each on its own thread."""

import threading
from collections.abc import Iterator

import pytest

from memfsd.core.files.shares import Shares
from memfsd.store.peer import Peer
from memfsd.store.questions import Questions
from memfsd.uapi.units import Ino
from tests.support.core_store import ScriptedVm
from tests.support.threads import DEADLINE_S, Gate, until


@pytest.fixture
def questions() -> Questions:
    return Questions("ask", owner_uid=0)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def peer(ino: int, uid: int = 0) -> Peer:
    vm = ScriptedVm(uid=uid)
    return Peer(Ino(ino), "vm", vm, vm, vm.shut)


def test_who_waits_for_any_answer_does_not_wait_for_all(questions: Questions, gate: Gate) -> None:
    with questions.lock:
        assert questions.begin(peer(1), gate.wait)
        assert questions.begin(peer(2), lambda: None)
        while questions.asked == {1, 2}:
            questions.wait(DEADLINE_S)
        assert questions.asked == {1}
    gate.open()
    with questions.lock:
        questions.wait(DEADLINE_S, Ino(1))
        assert questions.asked == set()


def test_who_waits_goes_on_when_the_time_is_over(questions: Questions, gate: Gate) -> None:
    with questions.lock:
        assert questions.begin(peer(1), gate.wait)
        questions.wait(0.01)
        questions.wait(0.01, Ino(1))
        assert questions.asked == {1}


def test_slow_vms_of_one_user_leave_threads_for_those_of_others(questions: Questions, gate: Gate) -> None:
    questions._shares = Shares(3, 1, 1, owner_uid=0)
    nobody, other, third = 65534, 65533, 65532
    with questions.lock:
        assert questions.begin(peer(1, nobody), gate.wait)
        assert not questions.begin(peer(2, nobody), gate.wait)
        assert questions.begin(peer(3, other), gate.wait)
        assert not questions.begin(peer(4, third), gate.wait), "the last is for root and the owner"
        assert questions.begin(peer(5), gate.wait)
        assert questions.asked == {1, 3, 5}


def test_a_question_that_fails_is_answered(questions: Questions, caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> None:
        raise ValueError("no such thing")

    with questions.lock:
        assert questions.begin(peer(7), fails)
        questions.wait(DEADLINE_S, Ino(7))
        assert questions.asked == set()
    assert "ask: inode 7 failed" in caplog.text


def test_without_threads_nobody_is_asked(questions: Questions, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched, questions.lock:
        patched.setattr(threading.Thread, "start", no_more)
        assert not questions.begin(peer(1), lambda: None)
        assert questions.asked == set()
    with questions.lock:
        assert questions.begin(peer(1), lambda: None)
    until(lambda: not questions.asked, "its place was given back")
