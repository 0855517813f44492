"""The tools say what they do when they are asked, refuse what they do not know, and act on neither."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WRITTEN = (ROOT / "docs/wire.md", ROOT / "docs/semantics-guest-seal.md")
TOOLS = {
    **{
        name: [f"tools/{name}"]
        for name in ("check", "demo", "render-pictures", "render-seal", "render-wire", "setup", "test")
    },
    "record-kvm": [sys.executable, "tools/record-kvm"],
    "oracle": [sys.executable, "tools/oracle"],
    "bench": [sys.executable, "-m", "benchlib"],
    "soak": [sys.executable, "-m", "soaklib"],
}


def ask(words: list[str], argument: str) -> subprocess.CompletedProcess[str]:
    """Run; nothing may be written."""
    before = [os.stat(path).st_mtime_ns for path in WRITTEN]
    done = subprocess.run(
        [*words, argument],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert [os.stat(path).st_mtime_ns for path in WRITTEN] == before
    return done


def test_every_tool_is_here() -> None:
    programs = {path.name for path in (ROOT / "tools").iterdir() if path.is_file() and os.access(path, os.X_OK)}
    assert programs - {"mutate"} <= TOOLS.keys()


@pytest.mark.parametrize("argument", ["--help", "-h"])
@pytest.mark.parametrize("words", TOOLS.values(), ids=TOOLS)
def test_help(words: list[str], argument: str) -> None:
    done = ask(words, argument)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


@pytest.mark.parametrize("argument", ["--nonsense", "nonsense"])
@pytest.mark.parametrize("name", sorted(TOOLS.keys() - {"test"}))
def test_what_a_tool_does_not_know_is_a_usage_error_of_one_line(name: str, argument: str) -> None:
    done = ask(TOOLS[name], argument)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "nonsense" in line or name == "record-kvm", "it asks first for what it is to do"
    assert line.endswith(" --help")
