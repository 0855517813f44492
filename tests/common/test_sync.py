"""The seam costs nothing: without a scheduler it makes the plain objects, and no other module makes any."""

import ast
import contextlib
import select
import socket
import threading
from pathlib import Path

import pytest

from kvmsim.kvm.mmu.mmu import Mmu
from kvmsim.kvm.vcpu import Vcpu
from memfsd.common import sync
from memfsd.core.private.gmem_file import GmemFile
from memfsd.peers.upchannel import UpChannel

ROOT = Path(__file__).parents[2]
ALONE = (ROOT / "memfsd/fuse/mount.py", ROOT / "memfsd/common/logqueue.py")
"""The first looks at a mount point before there is a daemon: nobody is there to meet. The log meets nobody either: who
logs puts a line down and goes on."""
MADE_ONLY_BY_SYNC = {"Lock", "RLock", "Condition", "Event", "Thread", "Semaphore", "BoundedSemaphore", "Barrier"}


def test_locks_and_the_rest_are_those_of_threading() -> None:
    lock = sync.lock("a lock")
    assert type(lock) is type(threading.Lock())
    assert type(sync.condition("a condition", lock)) is threading.Condition
    assert type(sync.event("an event")) is threading.Event
    thread = sync.thread(lambda: None, "a thread")
    assert type(thread) is threading.Thread
    assert thread.daemon and not thread.is_alive()


def test_a_channel_is_the_socket_itself_and_a_poll_is_the_poll() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert sync.channel(ours, "vm.down") is ours
        poll = select.poll()
        poll.register(ours, select.POLLIN)
        assert sync.poll(poll, 0, "a wait") == []
        theirs.send(b"x")
        assert sync.poll(poll, 0, "a wait") == [(ours.fileno(), select.POLLIN)]


def test_what_both_sides_use_is_plain() -> None:
    plain = type(threading.Lock())
    vcpu: Vcpu = Vcpu(0)
    assert type(vcpu.guest_lock) is plain
    assert type(Mmu().lock) is plain
    assert type(GmemFile().invalidate_lock) is plain
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        channel = UpChannel(ours)
        assert vars(channel)["_sock"] is ours
        channel.close()


def test_other_makers_are_used_until_the_end_and_only_one_at_a_time() -> None:
    class Counting(sync.Makers):
        names: list[str] = []  # noqa: RUF012

        def lock(self, name: str) -> threading.Lock:
            self.names.append(name)
            return super().lock(name)

    counting = Counting()
    with sync.use(counting):
        sync.lock("first")
        with pytest.raises(AssertionError), sync.use(counting):
            pass
    with contextlib.suppress(ZeroDivisionError), sync.use(counting):
        raise ZeroDivisionError
    sync.lock("after")
    assert counting.names == ["first"]


@pytest.mark.parametrize("package", ["memfsd", "kvmsim"])
def test_nothing_else_makes_locks_or_threads(package: str) -> None:
    """What is not made there has no name, and no schedule would see it. The scheduler has its own."""
    found = []
    for path in sorted((ROOT / package).glob("**/*.py")):
        if path in ALONE or path.name == "sync.py" or "race" in path.parts[len(ROOT.parts) :]:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "threading"
                and node.func.attr in MADE_ONLY_BY_SYNC
            ):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
            if isinstance(node, ast.ImportFrom) and node.module == "threading":
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []
