"""A view that fills the terminal until q or Ctrl-C, and then leaves it as it was. Only this loads rich."""

import contextlib
import errno
import os
import re
import select
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from types import FrameType

from memfsd.uapi.errors import Refused

from .lines import Line

_QUIT = b"qQ\x1b\x03\x04"
"""Keys, Escape, Ctrl-C and Ctrl-D among them: where the terminal sends no signal for Ctrl-C, the byte comes."""
_SEQUENCE = re.compile(rb"\x1b[\[O][0-9;]*[A-Za-z~]")
"""An arrow, and its like."""
Draw = Callable[[int, int], list[Line]]
"""Lines for a screen of so many columns and rows."""


def is_possible() -> bool:
    """Standard output is a terminal that can move its cursor."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


def show(look: Callable[[], Draw], interval_s: float, count: int = 0) -> None:
    """Look each interval_s, count times or until it is quit. EOPNOTSUPP (Refused) where rich is not installed."""
    try:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.text import Text
    except ImportError:
        way_out = "install it (pip install 'memfsd[top]'), or look once (--once)"
        raise Refused(errno.EOPNOTSUPP, f"the view of a terminal needs rich: {way_out}") from None
    console = Console(highlight=False, markup=False, emoji=False)

    def screen(draw: Draw) -> Group:
        columns, rows = console.size
        lines = [Text.assemble(*line, no_wrap=True) for line in draw(columns, rows)[:rows]]
        for line in lines:
            line.truncate(columns, overflow="crop")
        return Group(*lines)

    draw = look()  # what is wrong is said before the screen changes
    with _ended_by_signals(), _keys() as wait, Live(console=console, screen=True, auto_refresh=False) as live:
        for number in range(1, sys.maxsize):
            live.update(screen(draw), refresh=True)
            if number == count:
                return
            until = time.monotonic() + interval_s
            while (left := until - time.monotonic()) > 0:
                pressed = wait(left)
                if any(key in _QUIT for key in pressed):
                    return
                live.update(screen(draw), refresh=True)  # it may have another size now
            draw = look()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP leave the terminal as it was, too."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bytes]]:
    """A wait for keys, or for a change of the screen's size, of at most so many seconds. Keys are not shown meanwhile,
    and Ctrl-Z does nothing."""
    fd = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
    resized, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    sources = select.poll()
    for source in (resized, fd):
        if source >= 0:
            sources.register(source, select.POLLIN)

    def wait(seconds: float) -> bytes:
        ready = dict(sources.poll(seconds * 1000))
        if resized in ready:
            os.read(resized, 4096)
        if fd not in ready:
            return b""
        pressed = os.read(fd, 256)
        if not pressed:  # the terminal has hung up
            return _QUIT
        return _SEQUENCE.sub(b"", pressed)

    before = signal.signal(signal.SIGWINCH, lambda *_: None)
    woken = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    settings = termios.tcgetattr(fd) if fd >= 0 else None
    try:
        if settings is not None:
            quiet = termios.tcgetattr(fd)
            quiet[3] &= ~(termios.ICANON | termios.ECHO)
            quiet[6][termios.VSUSP] = b"\0"
            termios.tcsetattr(fd, termios.TCSADRAIN, quiet)
        yield wait
    finally:
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGWINCH, before)
        if settings is not None:
            with contextlib.suppress(termios.error):  # it has hung up
                termios.tcsetattr(fd, termios.TCSADRAIN, settings)
        os.close(resized)
        os.close(wake)
