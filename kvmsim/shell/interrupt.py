"""SIGINT while a command runs: the command ends, and the VMs, the prompt and what is under way on a vCPU stay.

Nothing is raised out of the middle of a command, where a lock is held or an answer of the store is due. Each command
that may take long says how it is stopped; the others wait for the store at most, which has a deadline.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from memfsd.common.starting import INTERRUPTED
from memfsd.uapi.limits import ANSWER_DEADLINE_S

_QUIT_SIGNAL = signal.SIGRTMAX
"""Of this process to its own main thread: a handler of SIGINT may not be there, or may be ignored."""


class Quit(Exception):
    """The process was asked to end, by a monitor or by SIGINT, while it waited for a line."""


class Interrupt:
    """Owned by the thread that runs commands, which must be the main one to `listen`."""

    def __init__(self) -> None:
        self.asked = False
        """SIGINT came since the command began."""
        self.ends_process = True
        """The first one ends the process in order, a second one at once. False: at a prompt."""
        self.quits = False
        """The process ends in order, as by `quit`: a monitor said so."""
        self._reads = False
        self._busy = False
        self._stop: Callable[[], None] | None = None

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Take SIGINT for the body; not where it is ignored, as for what a shell starts in the background."""
        previous = signal.getsignal(signal.SIGINT)
        if previous is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(_QUIT_SIGNAL, self._on_quit)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)
            signal.signal(_QUIT_SIGNAL, signal.SIG_IGN)

    def rest(self) -> None:
        """Nothing is running from now on."""
        self._busy = False

    @contextmanager
    def command(self) -> Iterator[None]:
        """A command is running: outside of it SIGINT is a KeyboardInterrupt."""
        self.asked = self.quits
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    @contextmanager
    def stops(self, stop: Callable[[], None]) -> Iterator[None]:
        """How what the body does is stopped: called by a signal handler between two steps of the body, or at once when
        it is too late to begin. It may raise if the body can stand that anywhere."""
        self._stop = stop
        try:
            if self.asked:
                stop()
            yield
        finally:
            self._stop = None

    @contextmanager
    def reads(self) -> Iterator[None]:
        """The body waits for a line, which Quit may end anywhere."""
        self._reads = True
        try:
            if self.quits or (self.asked and self.ends_process):
                raise Quit
            yield
        finally:
            self._reads = False

    def quit(self) -> None:
        """From any thread, while `listen`: what runs is stopped as by SIGINT, and nothing follows."""
        signal.pthread_kill(threading.main_thread().ident or 0, _QUIT_SIGNAL)

    def _on_quit(self, *_: object) -> None:
        self.quits = self.asked = True
        if self._reads:
            self._reads = False
            raise Quit
        if self._stop is not None:
            self._stop()

    def _on_signal(self, *_: object) -> None:
        if not self._busy:
            raise KeyboardInterrupt
        if self.ends_process and self.asked:
            os._exit(INTERRUPTED)
        self.asked = True
        if self._reads:
            self._reads = False
            raise Quit
        if self._stop is not None:
            self._stop()
        elif not self.ends_process:
            os.write(2, b"\nkvmsim: waiting for the store, at most %d s\n" % ANSWER_DEADLINE_S)
