"""Imports point one way; core and uapi run to completion and know no clock."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PURE = sorted(
    path
    for package in ("memfsd/core", "memfsd/uapi", "kvmsim/kvm/mmu", "kvmsim/kvm/slots")
    for path in ROOT.glob(f"{package}/**/*.py")
)
KVMSIM = sorted(
    path
    for path in ROOT.glob("kvmsim/**/*.py")
    if not {"race", "vmms"}.intersection(path.parts) and path.name != "pytest_plugin.py"
)
"""All but race and vmms of the instruments, which run both sides in one process, and the fixtures, which mount one."""
CLOCKS_AND_WAITS = {"time", "datetime", "asyncio", "sched", "select", "selectors", "signal", "socket", "subprocess"}
BORDER = {"exits", "hypercalls", "kvm", "kvm_run", "memory_use", "pairings", "region", "vcpu", "vmcall"}
"""Modules of kvmsim.kvm that user space and guests may know: the object that they ask, and the values they exchange."""
IN_FRONT = sorted([*ROOT.glob("kvmsim/vmm/**/*.py"), *ROOT.glob("kvmsim/cpu/**/*.py")])
SUSPENDING = (ast.Await, ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(tree: ast.AST) -> set[str]:
    """Modules that are named in absolute imports, also within functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), name_of(path))


def test_the_contracts_of_pyproject_hold() -> None:
    """memfsd's layers, what the pure packages must not import, and what kvmsim may know."""
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken." in done.stdout
    assert "Contracts: 0 kept" not in done.stdout


def test_there_are_pure_modules_to_look_at() -> None:
    assert len(PURE) > 30
    assert len(KVMSIM) > 10


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_a_pure_module_never_suspends(path: Path) -> None:
    assert [node.lineno for node in ast.walk(parse(path)) if isinstance(node, SUSPENDING)] == []


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_a_pure_module_reads_no_clock_and_waits_for_nothing(path: Path) -> None:
    """They take the time as a value, so that a test owns it."""
    roots = {module.partition(".")[0] for module in imported(parse(path))}
    assert not roots & (CLOCKS_AND_WAITS | {"trio", "pyfuse3"})


@pytest.mark.parametrize("path", KVMSIM, ids=name_of)
def test_kvmsim_knows_nothing_of_memfsd_but_uapi(path: Path) -> None:
    """Also not what the contracts have not heard of yet."""
    ours = {module for module in imported(parse(path)) if module.partition(".")[0] == "memfsd"}
    allowed = ("memfsd.uapi.", "memfsd.common.")
    assert {module for module in ours if not f"{module}.".startswith(allowed)} <= {"memfsd"}
    assert "memfsd" not in ours or ours & {"memfsd.uapi", "memfsd.common"}


@pytest.mark.parametrize("path", IN_FRONT, ids=name_of)
def test_user_space_and_guests_stay_in_front_of_the_border(path: Path) -> None:
    """Also of a module of kvmsim.kvm that the contract has not heard of yet."""
    of_kvm = {module.split(".")[2] for module in imported(parse(path)) if module.startswith("kvmsim.kvm.")}
    assert of_kvm <= BORDER


def test_the_border_is_of_modules_that_are_there() -> None:
    assert {path.stem for path in ROOT.glob("kvmsim/kvm/*.py")} > BORDER
    assert len(IN_FRONT) > 15


def test_what_is_forbidden_is_seen() -> None:
    """The walkers of this file, on a module that breaks each rule."""
    bad = ast.parse("import time\nfrom memfsd.core import gmem\nasync def f():\n    await g()\n")
    assert imported(bad) == {"time", "memfsd.core", "memfsd.core.gmem"}
    assert len([node for node in ast.walk(bad) if isinstance(node, SUSPENDING)]) == 2
