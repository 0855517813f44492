"""Cells on several mounts side by side."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.real_mount import remove_mount

from .model import DEADLINES, PAGE_MAP, SHORT, Cell, Outcome
from .scenarios import SCENARIOS
from .table import Census, Results, merge, outlasts

WATCHDOG_S = 400.0
"""For one request; a cell's own deadlines are shorter, so this means that the harness hangs in the mount."""
RESCUE_S = 60.0
"""No stop of a cell lasts as long: it came when the worker had looked away, and was in a system call on the mount."""
_ROOT = Path(__file__).parents[2]


class Workers:
    """Each has its own mount. Used as a context: afterwards nothing of them is left."""

    def __init__(self, count: int = 2, defect: str = "", *, page_map: bool = True) -> None:
        self._count = count
        self._arguments = [defect, PAGE_MAP if page_map else ""]

    def census(self) -> Census:
        parts: list[tuple[str, dict[str, int]]] = []
        for short in (False, True):
            names = [scenario.name for scenario in SCENARIOS if scenario.stops == short]
            counted = self._all([{"census": name} for name in names], lambda _: None, short=short)
            parts += zip(names, counted, strict=True)
        return merge(parts)

    def run(self, cells: list[Cell], shown: Callable[[Cell, Outcome], None] = lambda cell, outcome: None) -> Results:
        """Those that outlast deadlines come last, with short ones."""
        results: Results = {}
        for short in (False, True):
            group = [cell for cell in cells if outlasts(cell) == short]
            requests = [{"cell": [c.point, c.side, c.scenario, c.nth, c.fault.value, c.victim]} for c in group]
            answers = self._all(requests, partial(_show, shown, group), short=short)
            results |= {cell: Outcome(*answer) for cell, answer in zip(group, answers, strict=True)}
        return {cell: results[cell] for cell in cells}

    def _all(
        self, requests: list[dict[str, Any]], report: Callable[[tuple[int, Any]], None], *, short: bool
    ) -> list[Any]:
        """Each request's answer, in their order. short: of processes with short deadlines."""
        waiting: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        for numbered in enumerate(requests):
            waiting.put(numbered)
        answers: list[Any] = [None] * len(requests)
        errors: list[BaseException] = []
        told_lock = threading.Lock()

        def serve() -> None:
            try:
                with _Worker(self._arguments, short=short) as worker:
                    while not errors:
                        try:
                            index, request = waiting.get_nowait()
                        except queue.Empty:
                            return
                        answers[index] = worker.ask(request)
                        with told_lock:
                            report((index, answers[index]))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=serve) for _ in range(min(self._count, len(requests)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return answers


def _show(shown: Callable[[Cell, Outcome], None], group: list[Cell], done: tuple[int, Any]) -> None:
    index, answer = done
    shown(group[index], Outcome(*answer))


class _Worker:
    def __init__(self, arguments: list[str], *, short: bool) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="death-")
        self._base = Path(self._directory.name)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.death.worker", self._base, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", DEADLINES: SHORT if short else ""},
        )

    def __enter__(self) -> "_Worker":
        return self

    def ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        watchdog = threading.Timer(WATCHDOG_S, self._abort)
        rescue = threading.Timer(RESCUE_S, self._wake)
        watchdog.start()
        rescue.start()
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        finally:
            watchdog.cancel()
            rescue.cancel()
        if not answer:
            raise RuntimeError(f"the harness itself failed at {request}: its status is {self._process.wait(10)}")
        return json.loads(answer)

    def __exit__(self, *_: object) -> None:
        """A worker that ends well has looked for what is left by itself."""
        assert self._process.stdin is not None
        watchdog = threading.Timer(WATCHDOG_S, self._abort)
        watchdog.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            status = self._process.wait()
        finally:
            watchdog.cancel()
            remove_mount(self._base / "mnt")
            self._process.stdout.close()  # type: ignore[union-attr]
            left = [name for name in os.listdir(self._base) if name.endswith(".sock")]
            self._directory.cleanup()
        assert status == 0, f"a worker ended with {status}"
        assert left == [], f"socket files stay: {left}"

    def _wake(self) -> None:
        """The worker has one thread: it cannot wake the memfsd that it waits for."""
        for pid, state in self._children():
            if state == "T":
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGCONT)

    def _abort(self) -> None:
        """What hangs in a mount cannot be interrupted from within, and a store that is held at a point hears no
        SIGTERM."""
        remove_mount(self._base / "mnt")
        children = self._children()
        self._process.kill()
        for pid, _ in children:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def _children(self) -> list[tuple[int, str]]:
        """Of the worker: pid and state."""
        found = []
        for task in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, parent = task.read_text().rpartition(")")[2].split()[:2]
                if int(parent) == self._process.pid:
                    found.append((int(task.parent.name), state))
        return found
