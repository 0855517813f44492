"""A VM that is stopped: what waits for it waits alone."""

import contextlib
import functools
import os
import signal
import subprocess
from pathlib import Path

from tests.support.real_mount import (
    BIN,
    DEADLINE_S,
    ENVIRONMENT,
    KEEP_SIZE,
    PAGE,
    PUNCH_HOLE,
    Mount,
    MountFactory,
    block_count,
    fallocate,
    opened,
    seal,
)
from tests.support.threads import Beside, until

FILES = 120
"""More than the tasks (99) that pyfuse3 has by itself, and than the threads that wait for VMs."""


def stopped_vm(mounted: Mount) -> tuple[subprocess.Popen[bytes], list[Path]]:
    """It is paired with all these files, of two pages each, has touched them, and does not answer any more."""
    paths = [mounted.path / f"vm{number}.mem" for number in range(FILES)]
    script = ""
    for number, path in enumerate(paths):
        path.touch()
        seal(path)
        os.truncate(path, 2 * PAGE)
        script += f"slot set {number} private gpa={number}M size=8K file={path}\ntouch {number}M 8K\n"
    ready = mounted.path.parent / "ready"
    vm = subprocess.Popen(
        [BIN / "kvmsim", "run", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=ENVIRONMENT
    )
    assert vm.stdin is not None
    vm.stdin.write(f"{script}sh touch {ready}; sleep 1000\n".encode())
    vm.stdin.close()
    until(ready.exists, "the VM has touched all its memory")
    vm.send_signal(signal.SIGSTOP)
    return vm, paths


def in_the_kernel() -> int:
    """Threads of ours that are in a system call on a FUSE mount, waiting for its server."""
    count = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            count += b"request_wait_answer" in (task / "wchan").read_bytes()
    return count


def test_many_requests_that_wait_for_a_silent_vm_hold_up_no_other(mount: MountFactory) -> None:
    mounted = mount("size=64M,resize=any")
    large = mounted.path / "large"
    large.write_bytes(bytes(16 << 20))
    without_vm = mounted.path / "without_vm"
    without_vm.touch()
    seal(without_vm)
    os.truncate(without_vm, 2 * PAGE)
    with opened(without_vm, os.O_WRONLY) as fd:
        fallocate(fd, 0, 0, 2 * PAGE)
    vm, paths = stopped_vm(mounted)
    try:
        truncating = [Beside(functools.partial(os.truncate, path, PAGE)) for path in paths]
        until(lambda: in_the_kernel() == FILES, "all wait for the VM, or for their turn")
        assert os.stat(paths[0]).st_blocks == 2 * PAGE // 512
        assert not (mounted.path / "nothing").exists()
        assert os.getxattr(paths[0], "user.memfsd.owner").startswith(b"vm=vm0")
        large.unlink()
        (mounted.path / "new").write_text("written")
        os.statvfs(mounted.path)
        with opened(without_vm, os.O_WRONLY) as fd:
            fallocate(fd, KEEP_SIZE | PUNCH_HOLE, 0, PAGE)
        os.truncate(without_vm, PAGE)
        assert block_count(without_vm) == 0
        assert all(each.running for each in truncating), "they wait still"
    finally:
        vm.kill()
        vm.wait()
    for each in truncating:
        each.result()
    assert os.stat(paths[0]).st_size == PAGE


def test_the_mount_answers_while_silent_vms_are_told_of_its_end(mount: MountFactory) -> None:
    """More VMs than deadlines fit into the patience of whoever sent SIGTERM."""
    mounted = mount("size=64M")
    vm, paths = stopped_vm(mounted)
    try:
        mounted.process.send_signal(signal.SIGTERM)
        until(lambda: not mounted.socket.exists(), "it has begun to end")
        assert os.stat(paths[0]).st_blocks == 2 * PAGE // 512
        assert mounted.process.poll() is None
        assert mounted.process.wait(DEADLINE_S) == 0, "all of them together take one deadline"
    finally:
        vm.kill()
        vm.wait()
