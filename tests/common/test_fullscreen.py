"""The full screen: drawn again, resized, quit by key and by signal, and the terminal is as it was."""

import os
import re
import shlex
import sys

import pytest

from tests.support.tmux import Screen

PROGRAM = """
import os, resource, sys
from memfsd.common import fullscreen
resource.setrlimit(resource.RLIMIT_NOFILE, (1200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
held = [os.dup(2) for _ in range(1050)]  # where select(2) ends
looks = []
def look():
    looks.append(1)
    if len(looks) == int(sys.argv[2]):
        raise SystemExit(7)
    return lambda columns, rows: [[(f"look {len(looks)} on {columns} x {rows} of {os.getpid()}.", "bold red")]] * 99
try:
    fullscreen.show(look, float(sys.argv[1]))
except KeyboardInterrupt:
    sys.exit(3)
"""


def program(interval_s: float, end_at: int = 0) -> str:
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(PROGRAM)} {interval_s} {end_at}"


def drawn_again(shown: str) -> bool:
    """Whichever look it is by now: they come faster than a busy machine can read them."""
    found = re.search(r"look (\d+) on", shown)
    return found is not None and int(found[1]) > 2


def test_it_is_drawn_again_has_the_screens_size_and_q_quits() -> None:
    with Screen(program(0.1)) as screen:
        screen.until("on 80 x 24")
        screen.until(drawn_again)
        screen.resize(50, 10)
        assert len(screen.until("on 50 x 10").rstrip().splitlines()) == 10
        screen.press("Up")  # an escape and more: not Escape
        screen.press("q")
        assert screen.ended() == "0"


def test_a_new_size_shows_before_the_next_look() -> None:
    with Screen(program(3600)) as screen:
        screen.until("look 1 on 80 x 24")
        screen.resize(60, 12)
        screen.until("look 1 on 60 x 12")
        screen.press("C-z")  # nothing
        screen.press("Escape")
        assert screen.ended() == "0"


@pytest.mark.parametrize(("end", "status"), [("C-c", "3"), ("TERM", "143"), ("look", "7")])
def test_the_terminal_is_as_it_was_however_it_ends(end: str, status: str) -> None:
    with Screen(program(0.1, 3 if end == "look" else 0)) as screen:
        if end == "C-c":
            screen.until(drawn_again)
            screen.press(end)
        elif end == "TERM":
            pid = int(screen.until(drawn_again).split("of ")[1].split(".")[0])
            os.kill(pid, 15)
        assert screen.ended() == status
