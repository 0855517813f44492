"""Who logs waits for nobody."""

import logging
import threading
import time

import pytest

from memfsd.common import logqueue
from memfsd.common.logqueue import LogQueue
from tests.support.threads import DEADLINE_S, until


class Sink(logging.Handler):
    """Takes records while its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.stuck = threading.Event()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.stuck.set()
        assert self.gate.wait(DEADLINE_S)
        self.lines.append(record.getMessage())


@pytest.fixture
def sink() -> Sink:
    return Sink()


def logger_to(handler: logging.Handler) -> logging.Logger:
    logger = logging.Logger("test")
    logger.addHandler(handler)
    return logger


def test_nobody_waits_for_a_log_that_is_stuck_and_what_is_dropped_is_counted(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logqueue, "MAX_QUEUED", 3)
    handler = LogQueue(sink)
    logger = logger_to(handler)
    logger.info("first")
    assert sink.stuck.wait(DEADLINE_S)
    for number in range(10):  # would wait forever without the queue: the gate opens after it
        logger.info("line %d", number)
    sink.gate.set()
    handler.close()
    assert sink.lines == [
        "first",
        "7 messages were dropped: whoever takes the log was stuck",
        "line 0",
        "line 1",
        "line 2",
    ]


def test_the_end_waits_for_what_is_queued(sink: Sink) -> None:
    handler = LogQueue(sink)
    logger_to(handler).info("last words")
    sink.gate.set()
    handler.close()
    assert sink.lines == ["last words"]


def test_the_end_has_a_deadline(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logqueue, "END_DEADLINE_S", 0.01)
    handler = LogQueue(sink)
    logger_to(handler).info("nobody takes it")
    begun = time.monotonic()
    handler.close()
    assert time.monotonic() - begun < DEADLINE_S / 2
    sink.gate.set()
    until(lambda: sink.lines == ["nobody takes it"], "it comes through")


def test_a_record_says_what_was_true_when_it_was_made(sink: Sink) -> None:
    handler, seen = LogQueue(sink), ["before"]
    logger_to(handler).info("%s", seen)
    seen.append("after")
    sink.gate.set()
    handler.close()
    assert sink.lines == ["['before']"]
