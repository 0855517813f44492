"""Without the extra `cpu`, kvmsim says in one line how to get it, and everything else works."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
SCRIPT = """\
slot set 0 shared gpa=0 size=1M
write 0 f4 shared
boot {program} at=0x8000000001000
expect errno ENOSYS
cpu run
expect errno ENOSYS
cpu regs
expect errno ENOSYS
cpu irq 3
expect errno ENOSYS
cpu nmi
expect errno ENOSYS
read 0 1 shared
expect data f4
"""


@pytest.mark.parametrize("missing", ["unicorn", "iced_x86"])
def test_a_kvmsim_without_the_extra_says_how_to_get_it(tmp_path: Path, missing: str) -> None:
    """The library is hidden from the process."""
    program = tmp_path / "program"
    program.write_bytes(b"\xf4")
    hide = f"""
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {missing!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
from kvmsim.__main__ import main
sys.argv = ["kvmsim", "run", "-"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", hide],
        input=SCRIPT.format(program=program),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.strip() for line in done.stdout.splitlines() if "ENOSYS:" in line]
    assert len(lines) == 5
    assert all("pip install 'memfsd[cpu]'" in line for line in lines)


def test_what_does_not_run_machine_code_does_not_load_it() -> None:
    ask = "import sys, kvmsim.shell.script_command; sys.exit('unicorn' in sys.modules or 'iced_x86' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", ask], cwd=ROOT, timeout=120).returncode == 0
