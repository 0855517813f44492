"""P9: how long the programs take to start, beside an import of numpy."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .figure import Figure, Progress

_BIN = Path(sys.executable).parent
_HELP = ("memfs", "memfsd", "kvmsim", "kvmsim run", "kvmsim top", "kvmsim race", "kvmsim compare")
"""Of the commands of kvmsim those whose --help loads most."""
_TARGETS = {f"{program} --help": 1.25 for program in _HELP} | {"kvmsim run": 2.5, "memfsd": 4.0}
_DEADLINE_S = 60


def measure(progress: Progress, *, rounds: int = 9) -> Figure:
    """The value is the ratio that comes nearest to its target, or is furthest beyond it, as a part of that target."""
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "empty.kvm"
        script.touch()
        numpy, nothing = _run(sys.executable, "-c", "import numpy"), _run(sys.executable, "-c", "pass")
        measured: dict[str, Callable[[], float]] = {
            "import numpy": numpy,
            "python3": nothing,
            **{f"{program} --help": _run(*_program(program), "--help") for program in _HELP},
            "kvmsim run": _run(_BIN / "kvmsim", "run", script),
            "memfsd": lambda: _until_mounted(Path(directory) / "mnt"),
        }
        times: dict[str, list[float]] = {name: [] for name in measured}
        for done in range(rounds + 1):
            progress.round(done + 1, rounds + 1)
            for name, start in measured.items():
                took = start()
                if done:  # the first fills caches
                    times[name].append(took)
    medians = {name: statistics.median(took) for name, took in times.items()}
    ratios = {name: medians[name] / medians["import numpy"] for name in _TARGETS}
    parts = {f"{name} / import numpy": ratio for name, ratio in ratios.items()}
    parts |= {f"{name} (ms)": took * 1e3 for name, took in medians.items()}
    worst = max(ratios[name] / target for name, target in _TARGETS.items())
    what = "start of --help of the programs, an empty script, memfsd / import numpy; targets 1.25, 2.5, 4"
    return Figure(what, "largest part of its target", 1.0, True, worst, parts)


def _program(words: str) -> list[Path | str]:
    name, *rest = words.split()
    return [_BIN / name, *rest]


def _run(*command: object) -> Callable[[], float]:
    def run() -> float:
        begin = time.perf_counter()
        subprocess.run(
            [str(word) for word in command],
            stdout=subprocess.DEVNULL,
            env=_environment(),
            timeout=_DEADLINE_S,
            check=True,
        )
        return time.perf_counter() - begin

    return run


def _until_mounted(mountpoint: Path) -> float:
    """memfsd without -f returns when the mount is live."""
    mountpoint.mkdir(exist_ok=True)
    begin = time.perf_counter()
    with _mounted(mountpoint):
        return time.perf_counter() - begin


@contextmanager
def _mounted(mountpoint: Path) -> Iterator[None]:
    subprocess.run([_BIN / "memfsd", "-o", "size=16M", mountpoint], env=_environment(), timeout=_DEADLINE_S, check=True)
    try:
        yield
    finally:
        subprocess.run(["fusermount3", "-u", mountpoint], timeout=_DEADLINE_S, check=True)


def _environment() -> dict[str, str]:
    """With compiled modules kept, as they are for a user."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
