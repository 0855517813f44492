"""Guest memory itself: the windows that memfsd makes and kvmsim maps, and who reaches them through /proc and ptrace.

Nobody but root does. docs/decisions/0007-what-root-can-reach.md says what root does reach and why; its last table is
held to the truth here.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.attack.conftest import MountFactory
from tests.attack.guests import RunningGuest
from tests.attack.syscalls import PIDFD_GETFD, call, iovec, syscall
from tests.attack.target import FILE_BYTES, OTHER, OWNER, PAGE, SECRET, Target, attempt
from tests.support.real_mount import Mount, seal

PTRACE_SEIZE = 0x4206
AS_OWNER = (
    "import ctypes, gettext, locale, os, shutil, kvmsim.shell.prompt, kvmsim.shell.script_command;"
    "from kvmsim.cli import main;"
    f"os.setgroups([]); os.setresgid({OWNER}, {OWNER}, {OWNER}); os.setresuid({OWNER}, {OWNER}, {OWNER});"
    "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0); main()"
)
"""kvmsim as the owner runs it. A change of uid hides a process, which is undone, so that kvmsim must hide itself;
late imports come early, since the owner may not read this Python."""


class Exposed:
    """A memfsd of root's, and a kvmsim of the file owner's with SECRET in its window."""

    def __init__(self, mount: Mount, place: Path, outside: Path) -> None:
        self.outside = outside
        self.memfsd = mount.process.pid
        self.path = place / "vm.mem"
        self.path.touch()
        os.chown(self.path, OWNER, OWNER)
        seal(self.path)
        os.truncate(self.path, FILE_BYTES)
        self.guest = RunningGuest(self.path, [sys.executable, "-c", AS_OWNER])
        try:
            self.guest.keep_secret(outside)
        except BaseException:
            self.guest.end()
            raise

    def pid(self, process: str) -> int:
        return self.memfsd if process == "memfsd" else self.guest.pid

    def window(self, process: str) -> int:
        """The number of the window's fd in a process, as root sees it."""
        return windows(self.pid(process))[-1]

    def mapping(self) -> tuple[int, list[str]]:
        """Where kvmsim maps the window, and that mapping's flags."""
        smaps = Path(f"/proc/{self.guest.pid}/smaps").read_text()
        (found,) = re.findall(
            r"^([0-9a-f]+)-.*memfd:memfsd-window.*\n(?:\w+:.*\n)*?VmFlags: (.*)$", smaps, re.MULTILINE
        )
        return int(found[0], 16), found[1].split()


def windows(pid: int) -> list[int]:
    directory = Path(f"/proc/{pid}/fd")
    return sorted(int(p.name) for p in directory.iterdir() if os.readlink(p).startswith("/memfd:memfsd-window"))


@pytest.fixture(scope="module")
def exposed(mount: MountFactory, anyones_directory: Path) -> Iterator[Exposed]:
    mounted = mount("open=strict")
    place = mounted.path / "exposed"
    place.mkdir()
    exposed = Exposed(mounted, place, anyones_directory)
    yield exposed
    exposed.guest.end()


def open_window(e: Exposed, process: str, t: Target) -> None:
    number = t.fd  # found by root beforehand
    call("pread", os.open(f"/proc/{e.pid(process)}/fd/{number}", os.O_RDWR), t.address(), PAGE, 0)


def list_fds(e: Exposed, process: str, t: Target) -> None:
    t.take(" ".join(os.listdir(f"/proc/{e.pid(process)}/fd")).encode())


def read_mem(e: Exposed, process: str, t: Target) -> None:
    os.close(os.open(f"/proc/{e.pid(process)}/mem", os.O_RDONLY))


def list_map_files(e: Exposed, process: str, t: Target) -> None:
    os.listdir(f"/proc/{e.pid(process)}/map_files")


def read_maps(e: Exposed, process: str, t: Target) -> None:
    t.take(Path(f"/proc/{e.pid(process)}/maps").read_bytes()[:PAGE])


def take_fd(e: Exposed, process: str, t: Target) -> None:
    fd = syscall(PIDFD_GETFD, os.pidfd_open(e.pid(process)), t.fd, 0)
    call("pread", fd, t.address(), PAGE, 0)


def read_across(e: Exposed, process: str, t: Target) -> None:
    call("process_vm_readv", e.pid(process), iovec(t.address(), PAGE), 1, iovec(PAGE, PAGE), 1, 0)


def write_across(e: Exposed, process: str, t: Target) -> None:
    call("process_vm_writev", e.pid(process), iovec(t.payload(), PAGE), 1, iovec(PAGE, PAGE), 1, 0)


def trace(e: Exposed, process: str, t: Target) -> None:
    call("ptrace", PTRACE_SEIZE, e.pid(process), 0, 0)


Reach = Callable[[Exposed, str, Target], None]
REACHES: dict[str, tuple[Reach, str]] = {
    "open /proc/PID/fd/N": (open_window, "EACCES"),
    "list /proc/PID/fd": (list_fds, "EACCES"),
    "open /proc/PID/mem": (read_mem, "EACCES"),
    "list /proc/PID/map_files": (list_map_files, "EACCES"),
    "read /proc/PID/maps": (read_maps, "EACCES"),
    "pidfd_getfd": (take_fd, "EPERM"),
    "process_vm_readv": (read_across, "EPERM"),
    "process_vm_writev": (write_across, "EPERM"),
    "ptrace": (trace, "EPERM"),
}


def reach(exposed: Exposed, name: str, process: str, uid: int) -> tuple[str, bytes]:
    """The outcome, and what came out."""
    action, _ = REACHES[name]
    with Target.with_own_loot(str(exposed.path), str(exposed.outside), fd=exposed.window(process)) as target:
        outcome = attempt(lambda t: action(exposed, process, t), target, uid)
        return outcome, target.loot[:]


@pytest.mark.parametrize("process", ["memfsd", "kvmsim"])
@pytest.mark.parametrize("name", REACHES)
def test_another_user_does_not_reach_a_window(exposed: Exposed, name: str, process: str) -> None:
    outcome, loot = reach(exposed, name, process, OTHER)
    assert outcome == REACHES[name][1]
    assert SECRET not in loot


@pytest.mark.parametrize("name", REACHES)
def test_another_process_of_the_vms_own_user_does_not_reach_its_window(exposed: Exposed, name: str) -> None:
    """An ordinary process is open to its user's others; kvmsim stands in for a kernel and is not."""
    outcome, loot = reach(exposed, name, "kvmsim", OWNER)
    assert outcome == REACHES[name][1]
    assert SECRET not in loot


@pytest.mark.parametrize("process", ["memfsd", "kvmsim"])
@pytest.mark.parametrize("name", ["open /proc/PID/fd/N", "pidfd_getfd"])
def test_root_reaches_a_window_as_the_decision_says(exposed: Exposed, name: str, process: str) -> None:
    outcome, loot = reach(exposed, name, process, 0)
    assert outcome == "works"
    assert SECRET in loot


def test_a_core_dump_or_a_fork_of_the_vmm_has_no_guest_memory(exposed: Exposed) -> None:
    _, flags = exposed.mapping()
    assert "dd" in flags, "MADV_DONTDUMP is not set on the window"
    assert "dc" in flags, "MADV_DONTFORK is not set on the window"


def test_memfsd_maps_no_memory_of_files(exposed: Exposed) -> None:
    """But page maps, which say where pages are."""
    maps = Path(f"/proc/{exposed.memfsd}/maps").read_text().splitlines()
    assert all("/memfd:memfsd-page-map-" in line for line in maps if "memfd:" in line)
    assert windows(exposed.memfsd), "but it holds the window"


def test_programs_that_the_vmm_starts_inherit_no_window(exposed: Exposed) -> None:
    assert "memfd:" not in exposed.guest.do("sh ls -l /proc/self/fd")


def test_a_vm_has_the_window_of_its_own_file_and_no_other(exposed: Exposed) -> None:
    """Two VMs are kept apart by the operating system: neither has an fd of the other's memory."""
    second_path = exposed.path.with_name("second.mem")
    second_path.touch()
    seal(second_path)
    os.truncate(second_path, FILE_BYTES)
    second = RunningGuest(second_path)
    try:
        second.do('write 0 "of the second"')
        first_inodes, second_inodes = (
            {os.stat(f"/proc/{pid}/fd/{fd}").st_ino for fd in windows(pid)} for pid in (exposed.guest.pid, second.pid)
        )
        assert len(first_inodes) == len(second_inodes) == 1
        assert first_inodes != second_inodes
        held = Path(f"/proc/{second.pid}/fd/{windows(second.pid)[0]}")
        assert SECRET not in held.read_bytes()
    finally:
        second.end()


def test_another_user_does_not_pair_with_a_file_although_it_can_read_its_token(exposed: Exposed) -> None:
    """The mode lets it; the socket asks for the owner's uid."""
    path = exposed.path.with_name("readable.mem")
    path.touch()
    path.chmod(0o666)
    os.chown(path, OWNER, OWNER)
    seal(path)
    os.truncate(path, FILE_BYTES)
    guest = RunningGuest(path, [sys.executable, "-c", AS_OWNER.replace(str(OWNER), str(OTHER))])
    assert guest.wait() == 1, "it attached"
    assert os.getxattr(path, "user.memfsd.owner") == b"none"
