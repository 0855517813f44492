"""What memory costs, as memfs and the kernel say it: private, shared, held twice, punched, by file and by VM."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memfsd.commands import usage
from memfsd.common.rundir import MONITORS
from tests.mount.test_memfs import facts
from tests.support.real_mount import BIN, DEADLINE_S, ENVIRONMENT, PAGE, Mount, MountFactory, sh

LIAR = """
import contextlib, socket
server = socket.socket(socket.AF_UNIX, fileno=0)
for _ in range(2):  # the first client only looks whether somebody listens
    client, _ = server.accept()
    with contextlib.suppress(OSError):
        client.sendall({!r})
        client.shutdown(1)
        client.recv(100)
"""


class Vm:
    """kvmsim at its prompt, with a private file and a file that its host reaches at the same GPAs."""

    def __init__(self, place: Path) -> None:
        sh("memfs create vm.mem --size 1M --guest && memfs create shared --size 1M", place)
        self.process = subprocess.Popen(
            [BIN / "kvmsim", "attach", place / "vm.mem", "--gpa", "0", "--json"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        self.do(f"slot set 1 shared gpa=0 size=1M file={place}/shared")

    def do(self, line: str) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert json.loads(self.process.stdout.readline())["ok"], line


@pytest.fixture
def mounted(mount: MountFactory) -> Mount:
    return mount("size=16M")


@pytest.fixture
def vm(mounted: Mount) -> Iterator[Vm]:
    vm = Vm(mounted.path)
    yield vm
    vm.process.communicate(timeout=DEADLINE_S)


def window_pages(pid: int) -> int:
    """What the kernel says: st_blocks of the memfds that are windows in the VM's process."""
    fds = [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
    found = {os.stat(fd).st_ino: os.stat(fd).st_blocks for fd in fds if "memfsd-window" in os.readlink(fd)}
    assert len(found) == 1
    return sum(found.values()) * 512 // PAGE


def of_file(mounted: Mount) -> dict[str, Any]:
    return facts(f"stat {mounted.path}/vm.mem", mounted.path.parent)


def test_every_view_says_the_same_as_the_kernel(mounted: Mount, vm: Vm) -> None:
    vm.do("touch 0 64K")
    vm.do("touch 32K 64K shared")
    stat = of_file(mounted)
    assert (stat["vm_shared"], stat["held_twice"], stat["punched"], stat["leaked"]) == (16, 8, 0, 0)
    assert stat["private"] == stat["populated"] == 16
    (row,) = facts(f"vms {mounted.path}", mounted.path.parent)["vms"]
    assert (row["populated"], row["vm_shared"], row["held_twice"]) == (16, 16, 8)
    sh(f"memfs fallocate -p -o 32K -l 16K {mounted.path}/vm.mem", mounted.path.parent)
    stat = of_file(mounted)
    assert (stat["private"], stat["populated"], stat["punched"], stat["held_twice"]) == (12, 12, 4, 4)
    whole = facts(f"stat {mounted.path}", mounted.path.parent)
    assert (whole["populated"], whole["punched"], whole["vm_shared"], whole["held_twice"]) == (12, 4, 16, 4)
    text = sh(f"memfs vms {mounted.path}", mounted.path.parent).splitlines()
    assert (
        dict(zip(text[0].split(), text[1].split(), strict=True)).items()
        >= {
            "PUNCHED": "16K",
            "SHARED": "64K",
            "TWICE": "16K",
        }.items()
    )


def test_the_windows_of_the_daemon_hold_what_is_said(mounted: Mount, vm: Vm) -> None:
    """A frame that was granted ahead of the guest is no memory, and one that was punched is none any more."""
    for page in range(0, 24, 2):
        vm.do(f"touch {page * PAGE} 4K")
    sh(f"memfs fallocate -p -o 16K -l 16K {mounted.path}/vm.mem", mounted.path.parent)
    stat = of_file(mounted)
    assert stat["populated"] == window_pages(vm.process.pid) == 10
    assert stat["private"] + stat["pending"] >= 10


def test_a_vm_without_a_monitor_or_that_has_ended_is_not_asked(mounted: Mount, vm: Vm) -> None:
    vm.do("touch 0 4K")
    path = usage.monitor_of(vm.process.pid, os.getuid())
    assert path is not None
    os.unlink(path)
    stat = of_file(mounted)
    assert (stat["vm_shared"], stat["held_twice"], stat["populated"]) == (None, None, 1)
    assert "  -" in sh(f"memfs stat {mounted.path}/vm.mem", mounted.path.parent)
    vm.process.communicate(timeout=DEADLINE_S)
    assert of_file(mounted)["held_twice"] is None
    assert usage.use_of(None) is None


@pytest.mark.parametrize("answer", ["", "nonsense\n", '{"QMP": {}}\n{"return": {}}\n{"return": {"shared": -4}}\n'])
def test_a_monitor_that_lies_or_ends_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """What it says is another process's word: it must neither end memfs nor stop it."""
    monkeypatch.setattr(type(MONITORS), "places_of", lambda *_: [str(tmp_path / "qmp")])
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "qmp"))
        server.listen()
        client = subprocess.Popen(["python3", "-c", LIAR.format(answer.encode())], stdin=server.fileno())
        owner = {"vm": "vm0", "pid": 1, "uid": os.getuid(), "state": "paired"}
        assert usage.use_of(owner, DEADLINE_S) is None
        assert client.wait(DEADLINE_S) == 0
