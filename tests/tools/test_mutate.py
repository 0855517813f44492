"""tools/mutate makes the faults it says, draws the same ones from a seed, and knows which the tests find."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mutatelib import __main__ as command
from mutatelib import coverage
from mutatelib.catalogue import Equivalent, Equivalents, catalogue, known_equivalents, sample, sources
from mutatelib.mutations import Mutation, mutations_of
from mutatelib.trial import DIED, NOT_EXECUTED, SURVIVED, TIMED_OUT, Verdict, try_one
from mutatelib.workplace import Run, Workplace

ROOT = Path(__file__).parents[2]


def inside(*body: str) -> list[str]:
    """Every mutation of a function with this body, as the text of the body after it."""
    source = "def f(a, b):\n" + "".join(f"    {line}\n" for line in body)
    return [
        each.apply(source).partition("\n")[2].strip().replace("\n    ", "; ") for each in mutations_of("m.py", source)
    ]


# the faults


@pytest.mark.parametrize(
    ("line", "mutated"),
    [
        ("b = a < 7", ["b = a <= 7", "b = a < (7 + 1)", "b = a < (7 - 1)"]),
        ("b = a is None", ["b = a is not None"]),
        ("b = a is not None", ["b = a is None"]),
        ("b = a not in b", ["b = a in b"]),
        ("b = a and b", ["b = a or b"]),
        ("b = (a + b) // a", ["b = (a + b) * a", "b = (a - b) // a"]),
        ("b = min(a, b)", ["b = max(a, b)"]),
        ("b = any(a)", ["b = all(a)"]),
        ("b = a(True)", ["b = a(False)"]),
        ("b = 0", ["b = (0 + 1)"]),
        ("return a", ["return None"]),
        ("return 0", ["return None", "return (0 + 1)"]),
        ("return False", ["return True"]),
        ("a.close()", ["pass"]),
        ("await a.close()", ["pass"]),
        ("a.b = b", ["pass"]),
        ("a += b", ["pass"]),
        ("raise a", ["pass"]),
        ("del a[b]", ["pass"]),
        ("b = a if b else b", ["b = a if not (b) else b"]),
    ],
)
def test_each_kind_of_fault(line: str, mutated: list[str]) -> None:
    assert sorted(inside(line)) == sorted(mutated)


def test_a_condition_is_negated_and_its_body_left_out() -> None:
    assert inside("if a:", "    b()") == ["if not (a):;     b()", "if a:;     pass"]


def test_a_lock_is_left_out_but_what_with_binds_is_not() -> None:
    assert inside("with a.lock:", "    b = a") == ["if True:;     b = a"]
    assert inside("with a.lock, (a.other):", "    b = a") == ["if True:;     b = a"]
    assert inside("with a.open() as c:", "    b = c") == []


def test_a_loop_goes_on_instead_of_ending() -> None:
    assert inside("for a in b:", "    break") == ["for a in b:;     continue"]


def test_what_no_test_should_find_is_left_alone() -> None:
    assert inside("'about 3 things'", "assert a < 3", "b: 'int | None' = a", "b = f'{a + 1}'", "b = a") == []
    assert mutations_of("m.py", "@dataclass(slots=True)\nclass C:\n    a: Literal[1]\n\nT = A | B\n") == []


def test_a_mutation_names_its_function_and_shows_whole_lines() -> None:
    source = (
        "class C:\n    limit = 8\n\n"
        "    def f(self):\n        def g():\n            return (1,\n                    'é')\n"
    )
    at_class, returned = mutations_of("m.py", source)[0], mutations_of("m.py", source)[2]
    assert (at_class.function, at_class.line, at_class.lines(source)) == ("", 2, ("limit = 8", "limit = (8 + 1)"))
    assert (returned.function, returned.line) == ("C.f", 6)
    assert returned.lines(source) == ("return (1, 'é')", "return None")


def test_every_mutation_of_the_tree_is_python_and_the_instruments_have_none() -> None:
    texts = sources(ROOT, ["memfsd/core/private/bindings.py", "kvmsim/kvm/mmu/physmap.py", "kvmsim/instruments/race"])
    assert list(texts) == ["memfsd/core/private/bindings.py", "kvmsim/kvm/mmu/physmap.py"]
    for each in catalogue(texts):
        compile(each.apply(texts[each.path]), each.path, "exec")


# the sample, and what is known to be equivalent


def test_a_seed_draws_the_same_again_and_more_of_them_begin_alike() -> None:
    everything = catalogue(sources(ROOT, ["memfsd/core"]))
    ten = sample(everything, 7, 10)
    assert ten == sample(everything, 7, 10) == sample(everything, 7, 20)[:10]
    assert ten != sample(everything, 8, 10)


def test_an_equivalent_one_is_known_by_its_lines_wherever_they_move() -> None:
    source = "def f(a):\n    return max(a, 0)\n"
    (fault,) = [each for each in mutations_of("m.py", source) if each.kind == "call"]
    known = Equivalents([Equivalent("m.py", "f", "return max(a, 0)", "return min(a, 0)", "a is 0")])
    assert known.reason(fault, source) == "a is 0"
    moved = "import os\n\n\n" + source
    (there,) = [each for each in mutations_of("m.py", moved) if each.kind == "call"]
    assert known.reason(there, moved) == "a is 0"
    assert known.stale({"m.py": moved}, [there]) == []
    assert known.stale({"m.py": moved}, []) == [("m.py", "f", "return max(a, 0)", "return min(a, 0)")]


def test_each_equivalent_one_has_its_reason() -> None:
    for entry in known_equivalents():
        assert len(entry.reason) > 10 and entry.before != entry.after


# which tests are run, and the verdict


def fault(function: str = "C.f", path: str = "memfsd/core/m.py") -> Mutation:
    return Mutation(path, function, 1, "constant", 4, 5, "2")


FILES = {
    "tests/core/test_slow.py": coverage.TestFile(
        "", {"slow::a": 9.0, "slow::b": 1.0}, {"memfsd/core/m.py:C.f": ["slow::b"], "memfsd/core/m.py:C.g": ["slow::a"]}
    ),
    "tests/core/test_m.py": coverage.TestFile("", {"m::a": 20.0}, {"memfsd/core/m.py:C.f": ["m::a"]}),
    "tests/core/test_fixture.py": coverage.TestFile("", {"fix::a": 2.0}, {"memfsd/core/m.py:C.f": [""]}),
    "tests/core/test_other.py": coverage.TestFile("", {"other::a": 1.0}, {"memfsd/core/mm.py:C.f": ["other::a"]}),
}


def test_what_executes_the_function_is_run_the_modules_own_tests_first() -> None:
    known = coverage.Coverage(FILES)
    assert list(known.tests_for(fault())) == ["m::a", "slow::b", "fix::a"]
    assert list(known.tests_for(fault(""))) == ["m::a", "fix::a", "slow::a", "slow::b"]
    assert known.tests_for(fault("C.h")) == {}


def test_a_constant_is_for_all_tests_of_a_file_that_imports_it() -> None:
    file = coverage.TestFile("", {"n::a": 1.0, "n::b": 1.0}, {"memfsd/core/m.py:<module>": [""]})
    known = coverage.Coverage({"tests/core/test_n.py": file})
    assert list(known.tests_for(fault(""))) == ["n::a", "n::b"]
    assert known.tests_for(fault()) == {}


class Place:
    """Of a workplace, what a trial uses."""

    def __init__(self, *runs: Run) -> None:
        self.runs, self.asked, self.text = list(runs), list[list[str]](), ""

    def write(self, path: str, text: str) -> None:
        self.text = text

    def pytest(self, arguments: list[str], limit_s: float) -> Run:
        assert self.text == "a = 2\n"
        self.asked.append(arguments)
        return self.runs.pop(0)


@pytest.mark.parametrize(
    ("runs", "outcome", "why"),
    [
        ([Run(0, "3 passed")], SURVIVED, ""),
        ([Run(1, "FAILED m::a - assert 1 == 2"), Run(1, "")], DIED, "m::a"),
        ([Run(1, "FAILED m::a - busy"), Run(0, ""), Run(0, "")], SURVIVED, ""),
        ([Run(1, "FAILED m::a - busy"), Run(0, ""), Run(1, "FAILED slow::b - it"), Run(None, "")], DIED, "slow::b"),
        ([Run(1, "FAILED tests/core/test_n.py::a - assert 1 == 2")], DIED, "tests/core/test_n.py::a"),
        ([Run(2, "ERROR tests/core/test_m.py - SyntaxError")], DIED, "tests/core/test_m.py"),
        ([Run(None, "")], TIMED_OUT, "after 175 s"),
    ],
)
def test_the_verdict_needs_a_test_that_fails_again_and_the_module_is_whole_after_it(
    runs: list[Run], outcome: str, why: str
) -> None:
    place = Place(*runs)
    verdict = try_one(place, coverage.Coverage(FILES), fault(), "a = 1\n")  # type: ignore[arg-type]
    assert (verdict.outcome, verdict.why) == (outcome, why)
    assert place.text == "a = 1\n" and not place.runs


def test_tests_whose_names_the_fault_changes_are_run_by_file() -> None:
    place = Place(Run(4, "ERROR: not found: m::a"), Run(0, ""))
    assert try_one(place, coverage.Coverage(FILES), fault(), "a = 1\n").outcome == SURVIVED  # type: ignore[arg-type]
    assert place.asked[1][2:] == ["m", "slow", "fix"]


def test_what_no_test_executes_is_not_tried() -> None:
    assert try_one(Place(), coverage.Coverage(FILES), fault("C.h"), "").outcome == NOT_EXECUTED  # type: ignore[arg-type]


# the whole way


@pytest.fixture(scope="module")
def workplace() -> Iterator[Workplace]:
    place = Workplace(ROOT)
    yield place
    place.remove()
    assert not place.root.exists()


def test_a_fault_is_found_in_the_copy_and_the_checkout_is_untouched(workplace: Workplace) -> None:
    path, tests = "memfsd/core/twice.py", "tests/core/test_twice.py"
    source = "def loose(a):\n    return a + 1\n\n\ndef exact(a):\n    return a * 2\n"
    workplace.write(path, source)
    workplace.write(
        tests,
        "from memfsd.core.twice import exact, loose\n\n\n"
        "def test_loose():\n    assert loose(1) is not None\n\n\ndef test_exact():\n    assert exact(3) == 6\n",
    )
    recorded = coverage.record(workplace, tests)
    assert list(recorded.tests) == [f"{tests}::test_loose", f"{tests}::test_exact"]
    assert recorded.functions[f"{path}:exact"] == [f"{tests}::test_exact"]
    known = coverage.Coverage({tests: recorded})
    verdicts = {
        each.function: try_one(workplace, known, each, source)
        for each in mutations_of(path, source)
        if each.kind == "arithmetic"
    }
    assert (verdicts["exact"].outcome, verdicts["exact"].why) == (DIED, f"{tests}::test_exact")
    assert verdicts["loose"].outcome == SURVIVED
    assert (workplace.root / path).read_text() == source
    assert not (ROOT / path).exists() and not (ROOT / tests).exists()
    for name in (path, tests):
        (workplace.root / name).unlink()


def test_processes_in_the_copy_import_the_copy(workplace: Workplace) -> None:
    shown = subprocess.run(
        [workplace.root / ".venv/bin/memfsd", "--help"], cwd="/", env={}, capture_output=True, text=True, check=True
    )
    assert "usage" in shown.stdout
    workplace.write("memfsd/commands/memfsd.py", "def main():\n    print('the copy')\n")
    shown = subprocess.run(
        [workplace.root / ".venv/bin/memfsd"], cwd="/", env={}, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "the copy\n"
    workplace.write("memfsd/commands/memfsd.py", (ROOT / "memfsd/commands/memfsd.py").read_text())


def test_a_run_that_hangs_ends_with_all_its_processes(workplace: Workplace) -> None:
    name = "tests/core/test_hangs.py"
    workplace.write(name, "import os, time\n\ndef test_it():\n    os.fork()\n    time.sleep(1000)\n")
    run = workplace.pytest(["--timeout=100", name], 3.0)
    (workplace.root / name).unlink()
    assert run.status is None
    running = [path for path in Path("/proc").glob("[0-9]*/cwd") if _is(path, workplace.root)]
    assert not running


def _is(link: Path, target: Path) -> bool:
    try:
        return link.readlink() == target
    except OSError:
        return False


# the command


def test_the_sample_is_listed_without_a_test(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["tools/mutate", "--list", "--count", "3", "memfsd/core"])
    assert command.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(line.startswith("memfsd/core/") and "  ->  " in line for line in lines)


@pytest.mark.parametrize(
    "words", [["--count", "0"], ["--count", "x"], ["--target", "101"], ["--workers", "3"], ["--seed", "x"], ["nowhere"]]
)
def test_usage_errors_are_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["tools/mutate", *words])
    try:
        status: object = command.main()
    except SystemExit as left:
        status = left.code
    assert status == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("target", "status"), [("50", 0), ("51", 1)])
def test_the_exit_status_is_whether_the_target_is_reached(
    target: str, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = command._parser().parse_args(["--target", target, "--json"])
    verdicts = [Verdict(DIED), Verdict(SURVIVED), Verdict("equivalent", "the reason")]
    results = [command.Result(fault(), verdict, "a = 1", "a = 2") for verdict in verdicts]
    assert command._show(asked, 900, results, 1.0) == status
    shown = json.loads(capsys.readouterr().out)
    assert (shown["percent"], shown["reached"], shown["counts"]["equivalent"]) == (50.0, not status, 1)
    assert shown["mutations"][1]["outcome"] == SURVIVED
