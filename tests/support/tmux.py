"""A program on the full screen of a terminal: keys go in, what the screen shows comes out, and its size changes."""

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from .terminal import DEADLINE_S

_LOOK_AGAIN_S = 0.1
ENDED = "the program has ended with status"


class Screen:
    """tmux on its own server, without anybody's configuration. The command is a line of sh; its exit status, and
    whether the terminal is as it was, are shown when it has ended."""

    def __init__(self, command: str, *, columns: int = 80, rows: int = 24) -> None:
        self._place = Path(tempfile.mkdtemp(prefix="memfsd-tmux-"))
        self._socket = str(self._place / "socket")
        before, after = "trap : INT; before=$(stty -g)", '[ "$before" = "$(stty -g)" ] && echo restored; cat'
        line = f"{before}; {command}; echo {ENDED} $?; {after}"
        environment = {**os.environ, "TERM": "screen-256color", "LC_ALL": "C.UTF-8"}
        for name in ("COLUMNS", "LINES", "TMUX"):
            environment.pop(name, None)
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", str(columns), "-y", str(rows),
                   f"exec sh -c {shlex.quote(line)}", environment=environment)  # fmt: skip

    def _tmux(self, *arguments: str, environment: dict[str, str] | None = None) -> str:
        return subprocess.run(
            ["tmux", "-S", self._socket, *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            env=environment,
        ).stdout

    def text(self, *, styled: bool = False) -> str:
        """What is shown now; styled: with the escapes of its colours."""
        return self._tmux("capture-pane", "-p", *(["-e"] if styled else []))

    def until(self, what: str | Callable[[str], bool], *, styled: bool = False) -> str:
        """What is shown once it has the text, or is as wanted."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            shown = self.text(styled=styled)
            if what in shown if isinstance(what, str) else what(shown):
                return shown
            assert time.monotonic() < deadline, f"{what} did not come, but:\n{shown}"
            time.sleep(_LOOK_AGAIN_S)

    def press(self, key: str) -> None:
        """As tmux names keys: q, C-c, Up."""
        self._tmux("send-keys", key)

    def resize(self, columns: int, rows: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def ended(self) -> str:
        """The exit status, once it has ended and the terminal is as it was."""
        shown = self.until("restored")
        return shown.split(ENDED)[1].split()[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self._tmux("kill-server")
        shutil.rmtree(self._place)
