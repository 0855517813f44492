"""A real guest, in its own process: kvmsim attached to a sealed file, given a line at a time."""

import contextlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.attack.target import FILE_BYTES, SECRET
from tests.support.real_mount import BIN, DEADLINE_S, ENVIRONMENT


class RunningGuest:
    """`kvmsim attach FILE --json`; guest physical address 0 is the file's start."""

    def __init__(self, path: str | Path, command: list[str] | None = None, options: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*(command or [str(BIN / "kvmsim")]), "attach", str(path), "--gpa", "0", "--json", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        self.pid = self._process.pid

    def ask(self, line: str) -> dict[str, object]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        said = self._process.stdout.readline()
        assert said, f"kvmsim ended at '{line}'"
        answer: dict[str, object] = json.loads(said)
        return answer

    def do(self, line: str) -> str:
        """What a command answered that must succeed: its data, or its text."""
        answer = self.ask(line)
        assert answer["ok"], answer
        return str(answer["data"] or answer.get("text") or "")

    def keep_secret(self, directory: Path) -> None:
        """Fill the first 64 KiB of private memory with SECRET."""
        source = directory / "secret"
        source.write_bytes(SECRET * (FILE_BYTES // len(SECRET)))
        self.do(f"load 0 {source}")

    def digest(self, length: int = FILE_BYTES) -> str:
        return self.do(f"sha256 0 {length}")

    def wait(self) -> int:
        """The exit status of a kvmsim that ends by itself."""
        self._process.communicate(timeout=DEADLINE_S)
        return self._process.returncode

    def end(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(DEADLINE_S)
        self._process.stdout.close()
