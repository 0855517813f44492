"""The prompts of kvmsim: lines from a terminal, with history and completion where readline is there."""

import contextlib
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Protocol

from .interrupt import Interrupt, Quit
from .script.complete import completions

_HISTORY = 1000
_MORE = "... "


Complete = Callable[[str, str], list[str]]


class Feeds(Protocol):
    """What a prompt hands its lines to."""

    @property
    def is_open(self) -> bool:
        """It wants more lines before it does anything."""
        ...

    def feed(self, text: str) -> bool:
        """False when it asks to leave."""
        ...


def prompt(
    session: Feeds,
    interrupt: Interrupt,
    greeting: str,
    *,
    text: str = "(kvmsim) ",
    complete: Complete = completions,
) -> None:
    """Until end of file or `quit`. Ctrl-C stops a command, or clears the line that is being typed."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    _load_readline(complete)
    if greeting:
        print(greeting)
    interrupt.ends_process = False
    interrupt.rest()
    while True:
        try:
            with interrupt.reads():
                line = input(_MORE if session.is_open else text)
            with interrupt.command():
                if not session.feed(line):
                    return
        except (EOFError, Quit):
            print()
            return
        except KeyboardInterrupt:
            print()


def _load_readline(completions: Complete) -> None:
    """Arrow keys, Tab, and a history that outlives the session."""
    with contextlib.suppress(ImportError):
        import atexit
        import readline

        path = Path.home() / ".kvmsim_history"
        with contextlib.suppress(OSError):
            readline.read_history_file(path)
        readline.set_history_length(_HISTORY)

        def save() -> None:
            with contextlib.suppress(OSError):
                readline.write_history_file(path)

        def complete(word: str, index: int) -> str | None:
            found = completions(readline.get_line_buffer()[: readline.get_begidx()], word)
            return found[index] if index < len(found) else None

        atexit.register(save)
        readline.set_completer_delims(" \t")
        readline.set_completer(complete)
        readline.parse_and_bind("tab: complete")
