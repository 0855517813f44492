"""A memfsd of our own to measure, and machines attached to it."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from benchlib.minimal_fuse import daemon
from kvmsim.kvm.region import MemoryRegion
from kvmsim.machine import VirtualMachine
from kvmsim.memory.memory import OpenWindow, WindowMemory

MAX_SLOTS = 8


@contextmanager
def mounted(pool_bytes: int, *options: str) -> Iterator[Path]:
    """The mount point of a memfsd in its own process, on the cores of the caller; gone afterwards."""
    mountpoint = Path(tempfile.mkdtemp(prefix="memfsd_bench.")).resolve()
    said = ",".join([f"size={pool_bytes}", *options])
    command = [str(Path(sys.executable).with_name("memfsd")), "-f", "-o", said, str(mountpoint)]
    try:
        with daemon(mountpoint, command):
            yield mountpoint
    finally:
        mountpoint.rmdir()


def sealed_file(path: Path, size_bytes: int) -> Path:
    """A new file of guest private memory."""
    path.touch()
    os.setxattr(path, "user.memfsd.seals", b"guest")
    os.truncate(path, size_bytes)
    return path


@contextmanager
def write_only(path: Path) -> Iterator[int]:
    """A descriptor of a sealed file, for fallocate(2)."""
    fd = os.open(path, os.O_WRONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def attached(path: Path, size_bytes: int, open_window: OpenWindow = WindowMemory) -> Iterator[VirtualMachine]:
    """A new VM whose private memory from address 0 on is this file."""
    with closing(VirtualMachine("bench", MAX_SLOTS, open_window=open_window)) as machine:
        machine.kvm.slots.set_private_slot(MemoryRegion.private(0, 0, size_bytes), str(path))
        yield machine
