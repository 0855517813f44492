"""Ctrl-C and SIGTERM raise once; what comes later changes nothing."""

import os
import signal
import sys

import pytest

from kvmsim.instruments.race.interrupts import Interrupts


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_raises_and_the_next_does_not(number: int, status: int) -> None:
    interrupts, before = Interrupts(), signal.getsignal(number)
    with interrupts.taken():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert interrupts.status == status
    assert signal.getsignal(number) is before


def test_one_that_was_swallowed_raises_again_at_the_end_of_the_run() -> None:
    """Code under test takes any exception, and the exploration went on for hours."""
    interrupts = Interrupts()
    with interrupts.taken():
        interrupts.raise_lost()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            interrupts.raise_lost()
    assert interrupts.status == 143


def test_one_that_comes_in_a_destructor_prints_no_traceback() -> None:
    """The interpreter printed "Exception ignored in", and a traceback."""

    class Interrupted:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    class Failing:
        def __del__(self) -> None:
            raise ValueError("reported")

    interrupts, reported = Interrupts(), list[str]()
    before, sys.unraisablehook = sys.unraisablehook, lambda lost: reported.append(str(lost.exc_value))
    try:
        with interrupts.taken():
            Interrupted()
            Failing()
            with pytest.raises(KeyboardInterrupt):
                interrupts.raise_lost()
        assert reported == ["reported"]
        Failing()
        assert reported == ["reported", "reported"]
    finally:
        sys.unraisablehook = before


def test_none_raises_when_the_exploration_is_over() -> None:
    interrupts = Interrupts()
    with interrupts.taken():
        interrupts.over()
        os.kill(os.getpid(), signal.SIGINT)


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts().taken():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
