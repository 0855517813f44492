"""One mutation: the tests that execute it, until the first that fails."""

import re
from dataclasses import dataclass

from mutatelib.coverage import Coverage
from mutatelib.mutations import Mutation
from mutatelib.workplace import Workplace

_AT_LEAST_S = 60  # for the start of pytest, on a busy machine
_SLOWER = 5  # a fault may make the tests slower by so much before it counts as found
_TEST_S = 60  # for one test: a deadline of the product is 30 s at most
_PURE = ("tests/core/", "tests/uapi/")  # no thread, no process and no clock
_OPTIONS = ("-x", f"--timeout={_TEST_S}")
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S.*?)(?: - |$)", re.MULTILINE)

DIED, TIMED_OUT, SURVIVED, NOT_EXECUTED, EQUIVALENT = "died", "timed out", "survived", "not executed", "equivalent"


@dataclass(frozen=True)
class Verdict:
    outcome: str
    why: str = ""  # the test that failed first, or the reason of an equivalent one
    tests: int = 0


def try_one(workplace: Workplace, coverage: Coverage, mutation: Mutation, source: str) -> Verdict:
    tests = coverage.tests_for(mutation)
    if not tests:
        return Verdict(NOT_EXECUTED)
    workplace.write(mutation.path, mutation.apply(source))
    try:
        return _verdict(workplace, tests)
    finally:
        workplace.write(mutation.path, source)


def _verdict(workplace: Workplace, tests: dict[str, float]) -> Verdict:
    """A test with threads, processes or deadlines must fail again by itself: a busy machine is not a fault found."""
    left = dict(tests)
    while left:
        limit_s = _AT_LEAST_S + _SLOWER * sum(left.values())
        run = workplace.pytest([*_OPTIONS, *left], limit_s)
        if run.status in (4, 5) and "not found:" in run.output:
            # Parameters, and with them the names of tests, come from the mutated code.
            run = workplace.pytest([*_OPTIONS, *dict.fromkeys(test.partition("::")[0] for test in left)], limit_s)
        if run.status is None:
            return Verdict(TIMED_OUT, f"after {limit_s:.0f} s", len(tests))
        if run.status == 0:
            break
        failed = _FAILED.search(run.output)
        name = failed[1] if failed else ""
        if name not in left or name.startswith(_PURE) or workplace.pytest([*_OPTIONS, name], limit_s).status != 0:
            return Verdict(DIED, name or f"pytest ended with status {run.status}", len(tests))
        del left[name]
    return Verdict(SURVIVED, tests=len(tests))
