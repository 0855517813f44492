"""Where plaintext of a guest could show: its window, the store's memory, a dump. Root looks, who may look anywhere."""

import os
import re
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attack.conftest import MountFactory
from tests.attack.guests import RunningGuest
from tests.attack.target import FILE_BYTES, SECRET
from tests.support.real_mount import BIN, Mount, seal

ENCRYPTED = ("--memory-encryption", "on")
_CORES = (
    "import ctypes, os, resource, sys;"
    "resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2);"
    "os.chdir(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"
)
"""A command that may dump core into a directory."""


def window(pid: int) -> bytes:
    """All that the window of the last sealed file holds, read from its descriptor in a process."""
    directory = Path(f"/proc/{pid}/fd")
    last = max(int(p.name) for p in directory.iterdir() if os.readlink(p).startswith("/memfd:memfsd-window"))
    found = bytearray()
    with open(directory / str(last), "rb", buffering=0) as file:
        end = 0
        while True:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                return bytes(found)
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found += os.pread(file.fileno(), end - start, start)


def memory_holds(pid: int, data: bytes, *, names: str) -> bool:
    """Any readable mapping whose name matches."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) r\S+ \S+ \S+ \d+ *(.*)$", line)
            if match is None or not re.fullmatch(names, match[3]):
                continue
            start, end = int(match[1], 16), int(match[2], 16)
            for at in range(start, end, 1 << 24):
                try:
                    part = os.pread(memory.fileno(), min(end - at, (1 << 24) + len(data)), at)
                except OSError:  # past the end of a file that is mapped, or [vvar]
                    continue
                if data in part:
                    return True
    return False


@pytest.fixture
def mounted(mount: MountFactory) -> Mount:
    return mount("open=strict")


def guest(mounted: Mount, outside: Path, options: tuple[str, ...], command: list[str] | None = None) -> RunningGuest:
    path = mounted.path / f"encryption-{len(os.listdir(mounted.path))}.mem"
    path.touch()
    seal(path)
    os.truncate(path, FILE_BYTES)
    running = RunningGuest(path, command, options)
    running.keep_secret(outside)
    return running


@pytest.fixture(params=[(), ENCRYPTED], ids=["plain", "encrypted"])
def options(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return tuple(request.param)


@pytest.fixture
def running(mounted: Mount, anyones_directory: Path, options: tuple[str, ...]) -> Iterator[RunningGuest]:
    running = guest(mounted, anyones_directory, options)
    yield running
    running.end()


def test_the_window_shows_plaintext_unless_it_is_encrypted(
    mounted: Mount, running: RunningGuest, options: tuple[str, ...]
) -> None:
    digest = running.digest()
    for pid in (mounted.process.pid, running.pid):
        held = window(pid)
        assert len(held) == FILE_BYTES
        assert (SECRET in held) is (options != ENCRYPTED)
    mapped = memory_holds(running.pid, SECRET * 2, names=r"/memfd:memfsd-window.*")
    assert mapped is (options != ENCRYPTED), "so does its mapping"
    assert running.digest() == digest


def test_the_store_s_memory_never_shows_it(mounted: Mount, running: RunningGuest) -> None:
    assert not memory_holds(mounted.process.pid, SECRET, names=".*")
    assert memory_holds(mounted.process.pid, b"encryption-", names=".*"), (
        "what it knows, the name of the file, is found"
    )


def test_a_dump_holds_no_memory(mounted: Mount, anyones_directory: Path, tmp_path: Path) -> None:
    """No core when it crashes; and who may attach to it dumps what coredump_filter says: nothing."""
    command = [sys.executable, "-c", _CORES, str(tmp_path), str(BIN / "kvmsim")]
    running = guest(mounted, anyones_directory, ENCRYPTED, command)
    assert resource.prlimit(running.pid, resource.RLIMIT_CORE) == (resource.RLIM_INFINITY,) * 2
    assert int(Path(f"/proc/{running.pid}/coredump_filter").read_text(), 16) == 0
    os.kill(running.pid, signal.SIGABRT)
    assert running.wait() == -signal.SIGABRT
    assert os.listdir(tmp_path) == []


def test_ciphertext_that_root_puts_back_is_a_machine_check(mounted: Mount, anyones_directory: Path) -> None:
    """Real tampering, past kvmsim: through the store's descriptor."""
    running = guest(mounted, anyones_directory, ENCRYPTED)
    directory = Path(f"/proc/{mounted.process.pid}/fd")
    last = max(int(p.name) for p in directory.iterdir() if os.readlink(p).startswith("/memfd:memfsd-window"))
    with open(directory / str(last), "r+b", buffering=0) as file:
        at = os.lseek(file.fileno(), 0, os.SEEK_DATA)
        old = os.pread(file.fileno(), 4096, at)
        running.do('write 0 "newer"')
        assert os.pread(file.fileno(), 4096, at) != old
        os.pwrite(file.fileno(), old, at)
    answer = running.ask("read 0 5")
    assert (answer["exit"], answer["data"]) == ("KVM_EXIT_MACHINE_CHECK", None)
    assert answer["exit_fields"] == {"gpa": 0, "addr": at, "status": 0xBD80000000000134}
    assert running.do("read 4K 8") == SECRET.hex(), "the other pages go on"
    running.end()
