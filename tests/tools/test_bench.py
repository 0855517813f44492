"""tools/bench says what it measured, in a table or as one JSON object; how fast anything is, no test asks."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchlib import __main__ as bench
from benchlib import fault, real_kvm
from benchlib.figure import Figure, Progress, table

from memfsd.uapi.errors import PeerLost, Refused

ROOT = Path(__file__).parents[2]
DEADLINE_S = 300


def run(*arguments: str, temporary: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The program behind tools/bench, with sizes so small that it takes a second or two."""
    place = {} if temporary is None else {"TMPDIR": str(temporary)}
    return subprocess.run(
        [sys.executable, "-m", "benchlib", "--quick", *arguments],
        cwd=ROOT,
        env={**os.environ, **place, "PYTHONPATH": str(ROOT / "tools")},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def everything(temporary: Path) -> subprocess.CompletedProcess[str]:
    return run("--json", temporary=temporary)


@pytest.fixture(scope="module")
def figures(everything: subprocess.CompletedProcess[str]) -> dict[str, dict[str, object]]:
    assert everything.returncode == 0, everything.stderr
    shown: dict[str, dict[str, object]] = json.loads(everything.stdout)
    return shown


# what it measures


def test_json_is_one_object_with_each_figure_and_the_machine(figures: dict[str, dict[str, object]]) -> None:
    names = [
        "P1",
        "P1b",
        "P2",
        "P3",
        "P4",
        "P5",
        "P5b",
        "P6",
        "P7",
        "P8",
        "P9",
        "P10",
        "P11",
        "C1",
        "C2",
        "C3",
        "C4",
        "C5",
        "E1",
        "M1",
        "W1",
        "T1",
        "S1",
        "S2",
        "S3",
        "S4",
        "P12",
    ]
    assert list(figures) == [*names, "machine"]
    for name in names:
        assert {"value", "target", "holds", "unit", "parts"} <= figures[name].keys()


def test_a_figure_holds_when_its_value_reaches_its_target(figures: dict[str, dict[str, object]]) -> None:
    assert figures["P1"]["holds"] is (figures["P1"]["value"] <= 2.0)  # type: ignore[operator]
    assert figures["P5"]["holds"] is (figures["P5"]["value"] >= 0.9)  # type: ignore[operator]


def test_a_fault_is_told_apart_from_the_whole_access(figures: dict[str, dict[str, object]]) -> None:
    parts = figures["P1"]["parts"]
    assert isinstance(parts, dict)
    assert parts.keys() >= {"fault_us", "raw_round_trip_us", "access_us", "access_ratio", "request_bytes"}


def test_the_worst_of_the_page_tables_figures_is_the_value(figures: dict[str, dict[str, object]]) -> None:
    parts, value = figures["P3"]["parts"], figures["P3"]["value"]
    assert isinstance(parts, dict)
    worst = max(parts[f"{what}_ratio"] / parts[f"{what}_target"] for what in ("map", "translate", "lookup"))
    assert value == pytest.approx(worst, rel=0.01)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("C4", {"us a fault", "us a fault, Python", "faults a second"}),
        ("C5", {"us a conversion", "us a conversion, Python", "conversions a second"}),
        ("M1", {"move_us", "bulk_us_per_page", "bulk_ratio_per_page", "memcpy_us", "raw_round_trip_us"}),
        ("W1", {"out_us_per_page", "in_us_per_page", "file_us_per_page", "cipher_us_per_page", "size_mib"}),
    ],
)
def test_a_figure_without_a_target_is_measured_beside_its_peer_and_not_judged(
    figures: dict[str, dict[str, object]], name: str, parts: set[str]
) -> None:
    figure = figures[name]
    assert (figure["target"], figure["holds"]) == (None, None)
    assert figure["value"] > 0  # type: ignore[operator]
    assert figure["parts"].keys() >= parts  # type: ignore[attr-defined]


def test_the_machine_is_named_with_its_kvm_and_the_date(figures: dict[str, dict[str, object]]) -> None:
    assert figures["machine"].keys() >= {"date", "kernel", "cpu", "python", "dev_kvm", "kvm_module"}


@pytest.mark.skipif(real_kvm.available() is not None, reason="no usable /dev/kvm")
def test_first_touch_is_compared_with_a_real_guest(figures: dict[str, dict[str, object]]) -> None:
    assert figures["P2"]["value"] is not None
    assert "reason" not in figures["P2"]


def test_first_touch_without_kvm_has_no_value_but_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_kvm, "available", lambda: "no /dev/kvm here")

    shown = bench.measure("P2", Progress(), quick=True).as_json()

    assert (shown["value"], shown["holds"], shown["reason"]) == (None, None, "no /dev/kvm here")
    assert "ours_s" in shown["parts"]  # type: ignore[operator]


def test_nothing_is_left_behind(temporary: Path, everything: subprocess.CompletedProcess[str]) -> None:
    assert everything.returncode == 0, everything.stderr
    assert str(temporary) not in Path("/proc/self/mountinfo").read_text()
    assert os.listdir(temporary) == []


# how it is asked


def test_only_measures_what_is_asked_in_the_order_of_the_table() -> None:
    done = run("--only", "P3,P1", "--json")

    assert list(json.loads(done.stdout)) == ["P1", "P3", "machine"]
    assert done.stderr.splitlines() == ["bench: measuring P1", "bench: measuring P3"]


def test_without_json_it_prints_a_table() -> None:
    done = run("--only", "P3")

    assert done.returncode == 0
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("P3")
    assert "<= 1" in first
    assert last.startswith("machine: date ")


@pytest.mark.parametrize("ids", ["P99", "P1,P99", "", "p1", "P1,"])
def test_an_unknown_figure_is_one_line_and_usage(ids: str) -> None:
    done = run("--only", ids)

    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert f"is not a figure: choose from {', '.join(bench.FIGURES)}" in line


@pytest.mark.parametrize(
    ("failure", "shown"),
    [
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (Refused(errno.EBUSY, "the file is in use"), "EBUSY: the file is in use"),
        (PeerLost("memfsd is gone"), "memfsd is gone"),
    ],
    ids=["OSError", "Refused", "PeerLost"],
)
def test_a_failure_to_measure_names_the_figure_and_the_others_are_still_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: Exception, shown: str
) -> None:
    def broken(_: Progress, **_small: object) -> Figure:
        raise failure

    monkeypatch.setattr(fault, "measure", broken)
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--json", "--only", "P1,P3"])

    assert bench.main() == 1

    captured = capsys.readouterr()
    assert f"P1 could not be measured: {shown}" in captured.err
    assert list(json.loads(captured.out)) == ["P3", "machine"]


# how it is shown


def test_ctrl_c_prints_what_was_measured_until_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(name: str, progress: Progress, *, quick: bool) -> Figure:
        if name == "P2":
            raise KeyboardInterrupt
        return Figure(f"that is {name}", "ratio", 2.0, True, 1.0)

    monkeypatch.setattr(bench, "measure", measured)
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "P1,P2,P3"])
    assert bench.main() == 130
    shown = capsys.readouterr().out
    assert "that is P1" in shown and "P3" not in shown


def test_the_table_says_what_does_not_hold_and_what_was_not_measured() -> None:
    text = table(
        {
            "A": Figure("slow", "x", target=2.0, at_most=True, value=2.5, parts={"part": 1234567.8}),
            "B": Figure("fast", "x", target=0.9, at_most=False, value=0.9),
            "C": Figure("unknown", "x", target=0.8, at_most=True, value=None, reason="no peer"),
            "D": Figure("moving", "x", target=None, at_most=True, value=3.0),
        },
        {"cores": 2},
    )

    lines = text.splitlines()
    assert [line.split("  ")[0] for line in lines if line[0].isupper()] == ["A", "B", "C", "D"]
    assert "DOES NOT HOLD" in lines[0]
    assert lines[1].split() == ["part", "1234568"]
    assert " holds " in lines[2]
    assert "not measured" in lines[3]
    assert lines[4].strip() == "no peer"
    assert lines[5].split()[:5] == ["D", "3.00", "-", "no", "target"]
    assert lines[-1] == "machine: cores 2"
