"""A mount for programs that no one here wrote. With MEMFSD_LONG=1 they run longer and on more."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import dev_fuse as dev_fuse
from tests.mount.conftest import mount as mount
from tests.support.real_mount import ENVIRONMENT, Mount, free_frames
from tests.support.threads import until

LONG = bool(os.environ.get("MEMFSD_LONG"))
DEADLINE_S = 600 if LONG else 60
"""What a program may take before it counts as hanging."""

Run = Callable[..., str]


@pytest.fixture(scope="session")
def program_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    mounted = Mount(tmp_path_factory.mktemp("programs"), "size=1G,allow_other,suid,dev")
    yield mounted
    mounted.remove()


@pytest.fixture
def place(program_mount: Mount, tmp_path: Path) -> Iterator[Path]:
    """A new directory. The daemon comes through the test unharmed, and afterwards every frame is free again."""
    free = free_frames(program_mount.path)
    logged = len(program_mount.log)
    directory = program_mount.path / tmp_path.name
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)
    assert program_mount.process.poll() is None, f"the daemon ended: {program_mount.log}"
    assert "Traceback" not in program_mount.log[logged:], program_mount.log[logged:]
    until(lambda: free_frames(program_mount.path) == free, "all frames of removed files are free")


@pytest.fixture
def run() -> Run:
    """run(directory, program, arguments...): what it printed, stderr included. It must succeed."""

    def run(cwd: Path, *command: str | Path, **environment: str) -> str:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env={**ENVIRONMENT, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=DEADLINE_S,
            check=False,
        )
        output = done.stdout.decode(errors="replace")
        assert done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}:\n{output}"
        return output

    return run
