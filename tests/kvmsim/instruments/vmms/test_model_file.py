"""`kvmsim vmms --model`: a model of one's own is judged as the shipped ones are, and a file that has none says why."""

import json
from pathlib import Path

import pytest

from kvmsim.cli import run_command
from kvmsim.instruments.vmms.model_file import ModelError, load

EXAMPLE = Path(__file__).parents[4] / "docs" / "examples" / "vmm_model.py"

MODEL = """
from kvmsim.vmm.models import Reference
class Mine(Reference):
    "Ours."
    name = "mine"
"""


def written(tmp_path: Path, text: str, name: str = "mine.py") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def refusal(path: str) -> str:
    with pytest.raises(ModelError) as refused:
        load(path)
    return str(refused.value)


def test_the_example_fails_where_it_has_no_way_back(capsys: pytest.CaptureFixture[str]) -> None:
    scenarios = "to-shared,two-regions-to-private,punch-fails,second-attribute-fails"
    status = run_command(["vmms", "--json", "--model", str(EXAMPLE), "--abi", "gmem-6.18", "--scenarios", scenarios])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert status == 1
    assert {row["model"] for row in rows} == {"example"}, "alone"
    assert [row["verdict"] for row in rows] == ["ok", "ok", "fails", "fails"]


def test_a_change_of_a_shipped_model_runs_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", written(tmp_path, MODEL), "--models", "alioth", "--scenarios", "to-shared", "--abi", "thread"]
    assert run_command(["vmms", *words]) == 0, "alioth fails, and is not judged"
    out = capsys.readouterr().out
    assert "  alioth            fails" in out
    assert "  mine              ok" in out
    assert run_command(["vmms", *words, "--list"]) == 0
    assert "mine                     this project: " in capsys.readouterr().out


def test_a_model_without_facts_gets_some(tmp_path: Path) -> None:
    text = """
from kvmsim.vmm.models import Model
class Mine(Model):
    "One call, and no check.\\n\\nMore."
    name = "mine"
    def hypercall(self, gpa, page_count, attributes): return 0
    def memory_fault(self, gpa, size, *, private): pass
class _Hidden(Mine): pass
"""
    path = written(tmp_path, text)
    (kind,) = load(path)
    assert (kind.facts.version, kind.facts.order) == (path, "One call, and no check.")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x = 1", "{path} defines no subclass of kvmsim.vmm.models.Model: docs/examples/vmm_model.py is one"),
        ("from kvmsim.vmm.models import Model", "{path} defines no subclass"),
        ("x = (", "{path}:1: '(' was never closed"),
        ("\nraise KeyError(3)", "{path}:2: KeyError: 3"),
        ("import sys\nsys.exit(7)", "{path}:2: SystemExit: 7"),
        ("\0", "{path}"),
        (MODEL.replace('name = "mine"', ""), "{path}: class Mine needs a name that no model here has"),
        (MODEL.replace('"mine"', '"qemu"'), "{path}: class Mine needs a name that no model here has"),
        (
            'from kvmsim.vmm.models import Model\nclass Mine(Model):\n    name = "mine"\n',
            "{path}: class Mine has no hypercall() and no memory_fault()",
        ),
    ],
)
def test_a_file_that_has_none_says_why_in_one_line(tmp_path: Path, text: str, why: str) -> None:
    path = written(tmp_path, text)
    said = refusal(path)
    assert said.startswith(why.format(path=path))
    assert "\n" not in said


def test_what_is_no_file_of_python_says_so() -> None:
    assert refusal("/nonexistent/mine.py") == "/nonexistent/mine.py: No such file or directory"
    assert refusal("/") == "/: Is a directory"
    assert refusal("/dev/zero") == "/dev/zero is larger than 1M: that is no model"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("return [][3]", "mine.py:6: IndexError: list index out of range (in to-shared, thread)"),
        (
            "return None",
            "mine.py: TypeError: Mine.hypercall() returned None: it must be 0 or -errno (in to-shared, thread)",
        ),
        (
            "return 22",
            "mine.py: TypeError: Mine.hypercall() returned 22: it must be 0 or -errno (in to-shared, thread)",
        ),
    ],
)
def test_an_error_in_a_model_ends_the_run_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], body: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, MODEL + f"    def hypercall(self, gpa, page_count, attributes): {body}\n")
    words = ["--model", "mine.py", "--scenarios", "to-shared", "--abi", "thread"]
    assert run_command(["vmms", *words]) == 1
    assert capsys.readouterr().err == f"kvmsim: {why}\n"


def test_a_refusal_that_nobody_handles_ends_the_vm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = "        self.calls.set_attributes(gpa + 1, 4096, private=False)\n"
    path = written(tmp_path, f"{MODEL}    def hypercall(self, gpa, page_count, attributes):\n{body}")
    assert run_command(["vmms", "--model", path, "--scenarios", "to-shared", "--abi", "thread"]) == 1
    assert "ended: nobody handled EINVAL: " in capsys.readouterr().out


def test_two_models_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, MODEL)
    assert run_command(["vmms", "--model", path, "--model", path, "--list"]) == 2
    assert capsys.readouterr().err == "kvmsim: two models of --model have one name: name them apart\n"
