"""Executing, compiling and importing from the mount."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs.conftest import Run
from tests.support.real_mount import refused

ROOT = Path(__file__).parents[2]


def test_a_program_copied_there_runs_and_can_not_be_written_meanwhile(place: Path, run: Run) -> None:
    shutil.copy("/bin/sleep", place / "wait")
    with subprocess.Popen([place / "wait", "1000"]) as running:
        try:
            with refused(errno.ETXTBSY):
                os.open(place / "wait", os.O_WRONLY)
            os.unlink(place / "wait")
            assert running.poll() is None
        finally:
            running.kill()
    script = place / "script"
    script.write_text("#!/bin/sh\necho from $0\n")
    with pytest.raises(PermissionError):
        subprocess.run([script], check=False)
    script.chmod(0o755)
    assert run(place, script) == f"from {script}\n"


def test_a_c_library_and_program_are_built_by_make_and_run(place: Path, run: Run) -> None:
    (place / "answer.c").write_text("int answer(void) { return 42; }\n")
    (place / "main.c").write_text(
        '#include <stdio.h>\nint answer(void);\nint main(void) { printf("%d\\n", answer()); return 0; }\n'
    )
    run(place, "gcc", "-g", "-fPIC", "-shared", "-o", "libanswer.so", "answer.c")
    run(place, "gcc", "-g", "-c", "main.c")
    run(place, "gcc", "-o", "main", "main.o", "-L.", "-lanswer", "-Wl,-rpath,$ORIGIN")
    run(place, "ar", "rcs", "libmain.a", "main.o")
    assert run(place, place / "main") == "42\n"


def test_a_python_tree_is_compiled_imported_and_zipped(place: Path, run: Run) -> None:
    shutil.copytree(ROOT / "memfsd", place / "lib/memfsd", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    run(place, sys.executable, "-m", "compileall", "-q", "lib")
    sources = list((place / "lib").rglob("*.py"))
    assert len(list((place / "lib").rglob("*.pyc"))) == len(sources) > 30
    here = run(
        place, sys.executable, "-c", "import memfsd.uapi.units as units; print(units.__file__)", PYTHONPATH="lib"
    )
    assert here.strip() == str(place / "lib/memfsd/uapi/units.py")
    run(place, sys.executable, "-m", "zipapp", "lib", "-m", "memfsd.uapi.units:format_size", "-o", "app.pyz")
    assert run(place, sys.executable, "-m", "zipfile", "-t", "app.pyz") == "Done testing\n"


def test_a_virtual_environment_lives_there(place: Path, run: Run) -> None:
    run(place, sys.executable, "-m", "venv", "--without-pip", "env")
    assert run(place, "env/bin/python", "-c", "import sys; print(sys.prefix)") == f"{place}/env\n"
