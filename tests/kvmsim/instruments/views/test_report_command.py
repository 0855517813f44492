"""`kvmsim report` and `kvmsim run --report`, and the page as Chromium shows it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kvmsim.instruments.views.test_history import both
from tests.support.chromium import check_readable
from tests.support.journaled import record_run
from tests.support.prompt import ROOT
from tests.support.terminal import DEADLINE_S

KVMSIM = [sys.executable, "-m", "kvmsim"]


def kvmsim(*arguments: object, lines: str = "") -> "subprocess.CompletedProcess[str]":
    command = [*KVMSIM, *map(str, arguments)]
    return subprocess.run(command, input=lines, capture_output=True, text=True, timeout=DEADLINE_S, cwd=ROOT)


def test_a_report_of_both_sides_is_one_page_that_a_browser_shows_on_any_screen(tmp_path: Path) -> None:
    page = tmp_path / "report <b>.html"
    done = kvmsim("report", *record_run(tmp_path, both), "-o", page)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"'{page}'\n"
    text = page.read_text()
    for wanted in ("Slots", "Page states", "Invalidations", "Data destroyed", ">zap<", ">flush<", ">kick<", "punch"):
        assert wanted in text, wanted
    assert text.count("<svg") == 3
    for width in (1280, 400):
        check_readable(page, width=width)


def test_what_is_on_top_of_the_page_as_json(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = kvmsim("report", *record_run(tmp_path, both), "-o", page, "--json")
    facts = json.loads(done.stdout)
    text = page.read_text()
    assert facts["file"] == str(page)
    assert {process["side"] for process in facts["processes"]} == {"memfsd", "kvmsim"}
    assert facts["vms"] == ["one", "two"]
    for name, shown in (("records", "records"), ("invalidations", "invalidations"), ("exits", "exits to user space")):
        assert re.search(rf"<b>{facts[name]}</b>\s*{shown}", text), name
    assert facts["destroyed_bytes"] > 0
    assert facts["memory_errors"] == facts["doubled_bytes_peak"] == 0


def test_a_run_writes_its_page_and_has_its_own_exit_status(tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    script = "slot set 0 shared gpa=0 size=64K\ntouch 0 8K shared\nread 4G 4 shared\nread 0 1\n"
    done = kvmsim("run", "-", "--report", page, lines=script)
    assert done.returncode == 1, done.stdout
    text = page.read_text()
    assert "kvmsim: standard input" in text and "MMIO" in text
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (["run", "-", "--report", "/none/x.html"], 2, "directory /none does not exist: create it first"),
        (["run", "-", "--report", "/"], 2, "/ is a directory: name a file"),
        (["report", "/none"], 2, "/none: No such file or directory"),
        (["report", "/dev/null"], 2, "no record: this is no journal"),
        (["compare", "--html", "/none/x.html"], 1, "directory /none does not exist"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: list[str], status: int, why: str, tmp_path: Path) -> None:
    if arguments[0] == "report":
        arguments = [*arguments, "-o", str(tmp_path / "x.html")]
    done = kvmsim(*arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (status, 1), done.stderr
    assert why in done.stderr
    assert list(tmp_path.iterdir()) == []
