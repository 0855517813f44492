"""A memfsd mount of our own, for the time of a comparison."""

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from memfsd.uapi.errors import Refused
from memfsd.uapi.names import FSTYPE

_DEADLINE_S = 30.0
_PR_SET_PDEATHSIG = 1
_SERVE = """
directory=$1; shift
"$@" & memfsd=$!
trap 'kill $memfsd 2>/dev/null' TERM
while kill -0 $memfsd 2>/dev/null; do wait $memfsd; done
rm -f "$directory.swap"
rmdir "$directory"
"""
"""memfsd, and the end of its mount point also when this process is killed: the shell outlives it."""


@contextlib.contextmanager
def mounted(options: str, *, swap_bytes: int = 0) -> Iterator[Path]:
    """An empty directory on a mount that ends with the block, or with this process, and its swap file with it. Refused
    says why there is none."""
    beside = Path(sys.argv[0]).with_name("memfsd")
    program = str(beside) if beside.is_file() else shutil.which("memfsd")
    if program is None:
        raise Refused(errno.ENOENT, "memfsd is not in PATH: name a directory on a memfsd mount instead")
    directory = Path(tempfile.mkdtemp(prefix="kvmsim-compare.")).resolve()
    if swap_bytes:
        options += f",swap={directory}.swap,swap_size={swap_bytes}"
    try:
        daemon = subprocess.Popen(
            ["/bin/sh", "-c", _SERVE, "sh", directory, program, "-f", "-o", options, directory],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        try:
            _wait_live(daemon, directory)
            yield directory
        finally:
            daemon.terminate()
            daemon.communicate(timeout=_DEADLINE_S)
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(directory)  # unless the shell has done it


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _wait_live(daemon: subprocess.Popen[str], directory: Path) -> None:
    until = time.monotonic() + _DEADLINE_S
    wanted = f" {directory} ".encode()
    while time.monotonic() < until:
        with open("/proc/self/mountinfo", "rb") as lines:
            if any(wanted in line and f"fuse.{FSTYPE}".encode() in line for line in lines):
                return
        if daemon.poll() is not None:
            _, said = daemon.communicate()
            raise Refused(errno.EIO, f"memfsd could not mount: {said.strip()}")
        time.sleep(0.01)
    raise Refused(
        errno.ETIMEDOUT,
        f"memfsd did not mount within {_DEADLINE_S:.0f} s: try again, or name a directory on a memfsd mount",
    )
