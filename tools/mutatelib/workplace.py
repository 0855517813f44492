"""A copy of the checkout with its own .venv, in which modules are mutated and tests run. The checkout is only read.

The .venv is links to the checkout's, except for what points back at it: the editable installation and the first lines
of scripts. So processes that the tests start, in whatever environment, import the copy, too.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    status: int | None  # None: it did not end in time
    output: str


class Workplace:
    def __init__(self, checkout: Path) -> None:
        self._base = Path(tempfile.mkdtemp(prefix="mutate.")).resolve()
        self.root = self._base / "tree"
        self._running: subprocess.Popen[bytes] | None = None
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=checkout,
            capture_output=True,
            check=True,
        ).stdout
        names = [os.fsdecode(name) for name in listed.split(b"\0") if name]
        names += [str(path.relative_to(checkout)) for path in checkout.glob("memfsd/fuse/_hook.*.so")]
        for name in names:
            if (checkout / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(checkout / name, self.root / name)
        _link_venv(checkout / ".venv", self.root)
        subprocess.run(["git", "init", "-q", self.root], check=True)
        self._check()

    def remove(self) -> None:
        """Also ends a run that another thread waits for."""
        if self._running is not None:
            _kill(self._running)
        shutil.rmtree(self._base, ignore_errors=True)

    def _check(self) -> None:
        """What the tests import must be the copy, whoever imports it from wherever."""
        shown = subprocess.run(
            [self.root / ".venv/bin/python", "-c", "import kvmsim, memfsd; print(kvmsim.__file__, memfsd.__file__)"],
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        if not all(Path(path).is_relative_to(self.root) for path in shown):
            raise RuntimeError(f"the copy's .venv imports {' '.join(shown)}: a mutation would not be seen")

    def write(self, path: str, text: str) -> None:
        """Replaces a module. Its compiled form goes, because it is trusted when time and size are the same."""
        (self.root / path).write_text(text)
        for compiled in (self.root / path).parent.glob(f"__pycache__/{Path(path).stem}.*.pyc"):
            compiled.unlink()

    def pytest(self, arguments: Sequence[str], limit_s: float, **environment: str) -> Run:
        """Runs pytest in its own namespaces for mounts and processes, so that nothing outlives the run."""
        place = Path(tempfile.mkdtemp(dir=self._base))
        names = place / "tests"
        names.write_text("\n".join(arguments))
        command: list[str | Path] = [
            *("setpriv", "--pdeathsig", "KILL"),
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"),
            *("choom", "--adjust", "1000", "--"),  # a fault may take all memory: the kernel ends the run first
            *(self.root / ".venv/bin/python", "-m", "pytest", "-p", "mutatelib.pytest_part", "-p", "no:cacheprovider"),
            *("-q", "--no-header", "--tb=line", f"@{names}"),
        ]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
        with open(place / "output", "w+") as output:
            process = self._running = subprocess.Popen(
                command,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**inherited, "TMPDIR": str(place), "MUTATE_ROOT": str(self.root), **environment},
                start_new_session=True,
            )
            try:
                status: int | None = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _kill(process)
            output.seek(0)
            shown = output.read()
        shutil.rmtree(place, ignore_errors=True)
        return Run(status, shown)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The first process of the namespace takes the others with it, and unshare ends once all of them have."""
    if process.poll() is not None:
        return
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except OSError:
        children = []
    for pid in [int(child) for child in children] or [process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.wait()


def _link_venv(venv: Path, root: Path) -> None:
    copy = root / ".venv"
    (copy / "bin").mkdir(parents=True)
    shutil.copy2(venv / "pyvenv.cfg", copy)
    for program in (venv / "bin").iterdir():
        if program.is_symlink():
            (copy / "bin" / program.name).symlink_to(os.readlink(program))
        elif program.is_file():
            text = program.read_bytes()
            if text.startswith(b"#!"):
                text = text.replace(os.fsencode(venv), os.fsencode(copy))
            (copy / "bin" / program.name).write_bytes(text)
            (copy / "bin" / program.name).chmod(0o755)
    (packages,) = venv.glob("lib/python3*/site-packages")
    place = copy / packages.relative_to(venv)
    place.mkdir(parents=True)
    for entry in packages.iterdir():
        if not entry.name.startswith("__editable__"):
            (place / entry.name).symlink_to(entry)
    (place / "mutate.pth").write_text(
        f"{root}\n{root / 'tools'}\nimport os; 'MUTATE_RECORD' in os.environ and __import__('mutatelib.recorder')\n"
    )
