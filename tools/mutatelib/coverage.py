"""Which tests execute a function, and how long they take: recorded once, kept in a file if one is named, and brought up
to date for the test files that have changed since.
"""

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from mutatelib.mutations import Mutation
from mutatelib.workplace import Workplace

# What counts: tests of single modules (tests/mount mirrors memfsd/fuse and the programs), pairs, models and races.
UNIT = ("tests/uapi", "tests/core", "tests/kvmsim", "tests/peers", "tests/mount")
WHOLE = ("tests/model", "tests/pair", "tests/race")
_LIMIT_S = 1800


@dataclass
class TestFile:
    digest: str
    tests: dict[str, float] = field(
        default_factory=dict
    )  # those that passed, in their order, and the seconds they take
    functions: dict[str, list[str]] = field(default_factory=dict)  # path:function -> tests that execute it
    left_out: list[str] = field(default_factory=list)  # failed without any mutation, or skipped


class Coverage:
    def __init__(self, files: dict[str, TestFile]) -> None:
        self._files = files

    def tests_for(self, mutation: Mutation) -> dict[str, float]:
        """The tests that can find it, and their seconds: those named like the module first, then the fast files."""
        chosen: list[tuple[bool, float, dict[str, float]]] = []
        for name, file in self._files.items():
            executing = _executing(file, mutation)
            tests = {test: took for test, took in file.tests.items() if test in executing or "" in executing}
            if tests:
                chosen.append((not _mirrors(name, mutation.path), sum(tests.values()), tests))
        chosen.sort(key=lambda each: each[:2])
        return {test: took for _, _, tests in chosen for test, took in tests.items()}


def _executing(file: TestFile, mutation: Mutation) -> set[str]:
    """A module's or class's own code runs once, on import: for it, all tests of the files that import the module."""
    if mutation.function:
        return set(file.functions.get(f"{mutation.path}:{mutation.function}", ()))
    ours = (tests for function, tests in file.functions.items() if function.startswith(f"{mutation.path}:"))
    return {test for tests in ours for test in tests}


def _mirrors(test_file: str, path: str) -> bool:
    return Path(test_file).stem.removeprefix("test_").startswith(Path(path).stem)


def test_files(root: Path) -> dict[str, str]:
    """Each test file that counts, and the digest of its text."""
    paths = [path for directory in UNIT + WHOLE for path in sorted((root / directory).rglob("test_*.py"))]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def load(path: Path | None) -> dict[str, TestFile]:
    if path is None or not path.exists():
        return {}
    return {name: TestFile(**file) for name, file in json.loads(path.read_text()).items()}


def save(path: Path, files: dict[str, TestFile]) -> None:
    path.write_text(json.dumps({name: vars(file) for name, file in files.items()}))


def outdated(root: Path, known: dict[str, TestFile]) -> list[str]:
    return [name for name, digest in test_files(root).items() if name not in known or known[name].digest != digest]


def record(workplace: Workplace, name: str) -> TestFile:
    """Runs one test file, without a mutation. Tests that fail or are skipped are left out: they can find nothing."""
    log, times = workplace.root.parent / "record", workplace.root.parent / "times"
    for path in (log, times):
        path.write_text("")
    workplace.pytest([name], _LIMIT_S, MUTATE_RECORD=str(log), MUTATE_TIMES=str(times))
    passed, others = _outcomes(times.read_text())
    return TestFile(test_files(workplace.root)[name], passed, _functions(log.read_text()), others)


def _outcomes(times: str) -> tuple[dict[str, float], list[str]]:
    """The seconds of each test that passed, and the names of the others."""
    seconds: dict[str, float] = defaultdict(float)
    bad = set()
    for line in times.splitlines():
        test, _, outcome, duration = line.split("\t")
        seconds[test] += float(duration)
        if outcome != "passed":
            bad.add(test)
    return {test: round(took, 3) for test, took in seconds.items() if test not in bad}, sorted(bad)


def _functions(log: str) -> dict[str, list[str]]:
    """What a fixture's set-up or the import of the file executes counts for each of its tests: they may share it."""
    found: dict[str, set[str]] = defaultdict(set)
    for line in log.splitlines():
        test, tab, function = line.rpartition("\t")
        own, _, phase = test.rpartition(" (")
        if tab:
            found[function].add(own if phase in ("call)", "teardown)") else "")
    return {function: sorted(tests) for function, tests in found.items()}
