"""SIGINT while a program starts."""

import signal
import threading
from collections.abc import Iterator

import pytest

from memfsd.common import starting
from memfsd.common.starting import INTERRUPTED, be_quiet_when_interrupted, take_interrupts


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_ends_a_start_with_the_status_of_shells_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    be_quiet_when_interrupted()
    signal.raise_signal(signal.SIGINT)
    assert ended == [INTERRUPTED] == [128 + signal.SIGINT]


def test_after_the_start_it_is_an_interrupt_again() -> None:
    be_quiet_when_interrupted()
    take_interrupts()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_others_have_chosen_stays() -> None:
    """A shell ignores SIGINT for what it starts in the background."""
    for chosen in (signal.SIG_IGN, lambda *_: None):
        signal.signal(signal.SIGINT, chosen)
        be_quiet_when_interrupted()
        take_interrupts()
        assert signal.getsignal(signal.SIGINT) is chosen


def test_a_thread_other_than_the_main_one_changes_nothing() -> None:
    thread = threading.Thread(target=be_quiet_when_interrupted)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is not starting._end
