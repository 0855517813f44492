"""Logging that waits for nobody: a bounded queue, and a thread that passes records on to who may be stuck.

A syslogd that is stopped, or a pipe that nobody reads, would otherwise hold up whoever logs, the FUSE loop included.
What finds no room is dropped; the next record that gets through is followed by how many were.
"""

import copy
import logging
import os
import queue
import threading
import time

MAX_QUEUED = 1000
END_DEADLINE_S = 1.0
"""For all that is queued, when the process ends."""


class LogQueue(logging.Handler):
    """`target` is called on one thread alone. Make it after the process has forked: threads do not survive that."""

    def __init__(self, target: logging.Handler) -> None:
        super().__init__()
        self._target = target
        self._queue: queue.Queue[logging.LogRecord | None] = queue.Queue(MAX_QUEUED)
        self._dropped = 0
        self._count_lock = threading.Lock()
        self._thread = threading.Thread(target=self._pass_on, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        record = copy.copy(record)
        record.msg, record.args = record.getMessage(), None  # while its arguments are what they were
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            with self._count_lock:
                self._dropped += 1

    def close(self) -> None:
        """Passes on what is queued, as far as the deadline lets it."""
        until = time.monotonic() + END_DEADLINE_S
        try:
            self._queue.put(None, timeout=END_DEADLINE_S)
        except queue.Full:
            return
        self._thread.join(max(until - time.monotonic(), 0))
        super().close()

    def _pass_on(self) -> None:
        while (record := self._queue.get()) is not None:
            # Without the target's lock, for which the end of the process would wait.
            self._target.emit(record)
            with self._count_lock:
                dropped, self._dropped = self._dropped, 0
            if dropped:
                self._target.emit(_lost(record, dropped))


class StderrHandler(logging.Handler):
    """Past sys.stderr, whose lock the interpreter wants when it ends."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.write(2, (self.format(record) + "\n").encode(errors="backslashreplace"))
        except Exception:
            self.handleError(record)


def _lost(after: logging.LogRecord, count: int) -> logging.LogRecord:
    text = f"{count} messages were dropped: whoever takes the log was stuck"
    return logging.LogRecord(after.name, logging.WARNING, __file__, 0, text, None, None)
