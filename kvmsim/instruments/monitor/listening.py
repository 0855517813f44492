"""What every run has of a monitor: sockets, and a thread that waits for the first client. That one loads the rest."""

import contextlib
import logging
import os
import select
from typing import TYPE_CHECKING

from kvmsim.shell.execute import Executor
from memfsd.common import sync
from memfsd.uapi.limits import MONITOR_END_DEADLINE_S

from .places import Listener

if TYPE_CHECKING:
    from .monitor import Monitor

log = logging.getLogger("kvmsim.monitor")

_JOIN_S = MONITOR_END_DEADLINE_S + 2.0


class Listening:
    """start, then stop, then detach: the last when no VM can be at a trace point any more."""

    def __init__(self, listeners: list[Listener], executor: Executor) -> None:
        """Takes the listeners."""
        self._listeners = listeners
        self._executor = executor
        self._monitor: Monitor | None = None
        self._why: str | None = None
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) if listeners else -1
        self._thread = sync.thread(self._run, "monitor")

    def start(self) -> None:
        if self._listeners:
            try:
                self._thread.start()
            except RuntimeError as error:
                log.warning("no monitor: %s", error)

    def stop(self, why: str) -> None:
        """SHUTDOWN for all clients, and the end of their connections; bounded by a deadline."""
        self._why = why
        if self._thread.is_alive():
            os.eventfd_write(self._wake_fd, 1)
            if self._monitor is not None:
                self._monitor.end(why)
            self._thread.join(_JOIN_S)
        for listener in self._listeners:
            listener.close()
        self._listeners = []
        if self._wake_fd >= 0:
            os.close(self._wake_fd)
            self._wake_fd = -1

    def detach(self) -> None:
        if self._monitor is not None:
            self._monitor.detach()

    def load(self) -> "Monitor":
        from .monitor import Monitor

        if self._monitor is None:
            self._monitor = Monitor(self._listeners, self._executor)
        return self._monitor

    def _run(self) -> None:
        poll = select.poll()
        for fd in (self._wake_fd, *(listener.socket.fileno() for listener in self._listeners)):
            poll.register(fd, select.POLLIN)
        poll.poll()
        if self._why is not None:
            return
        try:
            monitor = self.load()
            if self._why is not None:  # `stop` has looked for it before it was there
                monitor.end(self._why)
            with contextlib.closing(monitor):
                monitor.serve()
        except Exception:
            log.exception("the monitor has failed and ends")
