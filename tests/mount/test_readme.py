"""The README's session, executed as a reader would: command by command, compared with what it says."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60


def steps(text: str) -> list[tuple[str, str]]:
    """(command with its here-document, expected output) of all console blocks, in order."""
    found: list[tuple[list[str], list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(([line[2:]], []))
            elif line.startswith("> ") and not found[-1][1]:
                found[-1][0].append(line[2:])
            else:
                found[-1][1].append(line)
    return [("\n".join(command), "\n".join(output).rstrip("\n")) for command, output in found]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    if f" {tmp_path}/mnt " in Path("/proc/self/mountinfo").read_text():
        subprocess.run(["umount", "-l", tmp_path / "mnt"], timeout=DEADLINE_S, check=False)


def test_the_session_of_the_readme_is_true(place: Path) -> None:
    session = steps((ROOT / "README.md").read_text())
    assert len(session) > 12
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for command, expected in session:
        done = subprocess.run(
            ["/bin/bash", "-c", command],
            cwd=place,
            env={**os.environ, "PATH": path, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        pattern = ".*".join(re.escape(part) for part in expected.split("[...]"))
        said = done.stdout.rstrip("\n")
        assert re.fullmatch(pattern, said), f"$ {command}\nREADME says:\n{expected}\nit printed:\n{said}"
