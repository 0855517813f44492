"""The programs of docs/examples, run as a reader would, and the fixtures that pytest users get."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.real_mount import DEADLINE_S

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"

SAID = {
    "vmm_loop.py": """\
uart[0] <- b'K'
b'hello, host' 1 1
""",
    "misbehaving_guest.py": """\
after 16 conversions the VMM converts no more: MEMORY_ERROR
the watchdog: INTR
data around the page: b'data around', lost pages: 0
rules broken: []
""",
    "revoking_store.py": """\
INVALIDATE {'offset': 12288, 'size': 4096, 'reason': 'punch'}
after the punch: b'\\x00\\x00\\x00\\x00' b'kept'
PAIRING_LOST {'why': 'the store revoked the pairing: the store is unmounted'}
after the revocation: errno 5, EIO: the store revoked the pairing: the store is unmounted
b'shared memory works on'
""",
    "new_design.py": """\
punch  held twice:  0 pages, private frames: 208, rules broken: []
parked held twice: 16 pages, private frames: 224, rules broken: []
""",
    "vmm_model.py": "",
}
"""Standard output of each program. A model of a VMM says nothing: `kvmsim vmms --model` runs it."""


def python(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3 * DEADLINE_S,
    )


def pytest_with_plugin(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """As where the project is installed, but only with our plugin."""
    own = ("-q", "-p", "kvmsim.pytest_plugin", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "/")
    return python("-m", "pytest", *own, *arguments, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", **more)


@pytest.mark.parametrize("name", SAID)
def test_an_example_does_what_it_says(name: str) -> None:
    done = python("-W", "error", EXAMPLES / name)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout == SAID[name]


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*SAID, "test_with_fixtures.py"}


def test_the_vmm_has_thirty_lines() -> None:
    assert len((EXAMPLES / "vmm_loop.py").read_text().splitlines()) <= 30


def test_the_fixtures_give_a_mount_and_a_vm() -> None:
    done = pytest_with_plugin(EXAMPLES / "test_with_fixtures.py")
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_without_fuse_a_test_fails_with_one_reason(tmp_path: Path) -> None:
    """fusermount3 is not in PATH, /dev/fuse is not seen: said by check_fuse(), here in its place."""
    (tmp_path / "conftest.py").write_text(
        "import errno, memfsd.fuse.mount\nfrom memfsd.uapi.errors import Refused\n"
        "def check_fuse():\n    raise Refused(errno.ENODEV, '/dev/fuse is missing: load the fuse module')\n"
        "memfsd.fuse.mount.check_fuse = check_fuse\n"
    )
    (tmp_path / "test_it.py").write_text("def test_it(kvmsim_vm): pass\n")
    done = pytest_with_plugin(tmp_path / "test_it.py")
    assert done.returncode == 1, done.stdout
    assert "memfsd_mount: ENODEV: /dev/fuse is missing: load the fuse module" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_the_plugin_loads_next_to_nothing_and_is_an_entry_point() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import kvmsim.pytest_plugin; print(*set(sys.modules) - before)"
    )
    loaded = set(python("-c", code).stdout.split())
    assert "kvmsim.pytest_plugin" in loaded
    assert not {name for name in loaded if name.partition(".")[0] not in ("kvmsim", "importlib")}, loaded
    assert len(loaded) < 5
    assert '[project.entry-points.pytest11]\nkvmsim = "kvmsim.pytest_plugin"' in (ROOT / "pyproject.toml").read_text()
