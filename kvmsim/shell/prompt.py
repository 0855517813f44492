"""The prompt of `kvmsim attach`: lines from a terminal, with history and completion where readline is there."""

import contextlib
import sys
from io import TextIOWrapper
from pathlib import Path

from .interrupt import Interrupt
from .script.complete import completions
from .script.runner import Session

_HISTORY = 1000


def prompt(session: Session, interrupt: Interrupt, greeting: str) -> None:
    """Until end of file or `quit`. Ctrl-C stops a command, or clears the line that is being typed."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    _load_readline()
    if greeting:
        print(greeting)
    interrupt.ends_process = False
    interrupt.rest()
    while True:
        try:
            line = input("(kvmsim) ")
            with interrupt.command():
                if not session.feed(line):
                    return
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()


def _load_readline() -> None:
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
