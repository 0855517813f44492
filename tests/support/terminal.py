"""A program on a terminal, as a person uses it: what is typed, Ctrl-C included, and what the screen says."""

import contextlib
import os
import pty
import select
import subprocess
import time
from pathlib import Path
from typing import Self

DEADLINE_S = 60.0
CTRL_C, CTRL_D, TAB = "\x03", "\x04", "\t"


class Terminal:
    """The program's controlling terminal, so that Ctrl-C reaches it and its children."""

    def __init__(self, command: list[str], home: Path) -> None:
        self._fd, inner = pty.openpty()
        environment = {**os.environ, "HOME": str(home), "TERM": "dumb", "INPUTRC": os.devnull}
        self.process = subprocess.Popen(
            command, preexec_fn=lambda: os.login_tty(inner), start_new_session=False, env=environment
        )
        os.close(inner)
        self._unread = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def interrupt(self, answer: str) -> str:
        """Ctrl-C at a prompt, until the answer comes: readline looks for signals only while it waits for a key, so one
        that arrives while it echoes the last is not seen before the next."""
        for _ in range(int(DEADLINE_S)):
            self.type(CTRL_C)
            with contextlib.suppress(TimeoutError):
                return self.until(answer, 1.0)
        raise AssertionError(f"Ctrl-C did nothing: {self._unread}")

    def until(self, text: str, within_s: float = DEADLINE_S) -> str:
        """All that the screen says, up to and with the text. TimeoutError when it does not come."""
        deadline = time.monotonic() + within_s
        while text not in self._unread:
            screen = select.poll()
            screen.register(self._fd, select.POLLIN)
            if not screen.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError(f"'{text}' did not come, but: {self._unread}")
            try:
                self._unread += os.read(self._fd, 65536).decode(errors="replace").replace("\r\n", "\n")
            except OSError:
                raise AssertionError(f"it ended before '{text}': {self._unread}") from None
        said, self._unread = self._unread.split(text, 1)
        return said + text

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.process.poll() is None:
                self.process.kill()
        self.process.wait()
        os.close(self._fd)
