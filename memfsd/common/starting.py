"""Ctrl-C while a program is still starting: it ends with status 130 and says nothing.

A program's first module calls `be_quiet_when_interrupted` before it imports anything else, and `take_interrupts` when
what it imports is there and there may be something to clean up.
"""

import os
import signal
import threading

INTERRUPTED = 130
"""Exit status, as shells report a death by SIGINT."""


def be_quiet_when_interrupted() -> None:
    """Not where SIGINT is ignored, as for what a shell starts in the background, nor where somebody has taken it."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def take_interrupts() -> None:
    """From now on Ctrl-C is a KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: object) -> None:
    os._exit(INTERRUPTED)
