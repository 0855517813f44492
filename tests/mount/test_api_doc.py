"""docs/api.md, executed: every example of it, in order, says what the document says."""

import subprocess
import sys
from pathlib import Path

from tests.support.real_mount import DEADLINE_S

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "api.md"


def doctest(document: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "doctest", document],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def test_the_document_is_true() -> None:
    assert DOCUMENT.read_text().count(">>> ") > 30
    done = doctest(DOCUMENT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_not_true_is_seen(tmp_path: Path) -> None:
    false = tmp_path / "false.md"
    false.write_text("```pycon\n>>> 1 + 1\n3\n\n```\n")
    assert doctest(false).returncode == 1
