"""Ctrl-C and SIGTERM end an exploration once; what it has found is then kept, whatever comes."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """The first is a KeyboardInterrupt. Others change nothing: what is left to do is little, and must be done."""

    def __init__(self) -> None:
        self.signal = 0
        """What ended the exploration."""
        self._is_over = False

    @property
    def status(self) -> int:
        """Exit status, as shells report a death by that signal."""
        return 128 + (self.signal or signal.SIGINT)

    def raise_lost(self) -> None:
        """KeyboardInterrupt once more, if the one that was raised has met somebody who takes any exception."""
        if self.signal:
            raise KeyboardInterrupt

    def over(self) -> None:
        self._is_over = True

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Not where they are ignored, as SIGINT is for what a shell starts in the background."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {one: signal.getsignal(one) for one in SIGNALS}
        unraisable = sys.unraisablehook

        def ignored(lost: "sys.UnraisableHookArgs") -> None:
            """Raised in a destructor, it cannot propagate: `raise_lost` raises it again, so no traceback is printed."""
            if not (self.signal and issubclass(lost.exc_type, KeyboardInterrupt)):
                unraisable(lost)

        sys.unraisablehook = ignored
        for one in SIGNALS:
            if before[one] is not signal.SIG_IGN:
                signal.signal(one, self._came)
        try:
            yield
        finally:
            sys.unraisablehook = unraisable
            for one in SIGNALS:
                signal.signal(one, before[one])

    def _came(self, number: int, _: object) -> None:
        if not self.signal and not self._is_over:
            self.signal = number
            raise KeyboardInterrupt
