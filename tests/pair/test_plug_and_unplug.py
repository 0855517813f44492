"""A pairing ends with its last slot, and the file stays the VM's: plugging and unplugging costs nothing that stays."""

import contextlib
import errno
import gc
import os
import resource
import socket
import threading
from collections.abc import Iterator

import pytest

import memfsd.peers.server
from kvmsim.kvm.exits import MemoryErrorExit
from kvmsim.store.link import StoreLink
from memfsd.uapi import messages as m
from memfsd.uapi.errors import Refused
from memfsd.uapi.messages import Kind
from tests.support.both_sides import LocalStore, LocalVm, errno_of, page
from tests.support.threads import Beside, until
from tests.support.wire import Wire

CYCLES = 10_000 if os.environ.get("MEMFSD_LONG") else 1_000
FILES = 1_100


def held(store: LocalStore, vm: LocalVm) -> dict[str, int]:
    until(
        lambda: store.server.session_count() == len(vm.kvm.pairings.links), "sessions of pairings that ended are over"
    )
    gc.collect()
    return {
        "fds": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "windows": store.windows.window_count(),
        "peers": len(store.invalidator.peers),
        "links": len(vm.kvm.pairings.links),
        "ranges": len(vm.vm.physmap._ranges),
        "frames": store.service.pool.frame_count - store.free_count,
    }


def resident_pages() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1])


def plug(vm: LocalVm, name: str, data: bytes) -> None:
    vm.private_slot(0, 0, page(4), name)
    assert vm.read(page(1), len(data)) == bytes(len(data)), "nothing is left of the time before"
    assert vm.write(page(1), data) is None
    assert vm.read(page(1), len(data)) == data
    vm.delete(0, private=True)


@pytest.mark.timeout(600)
def test_cycles_run_flat(store: LocalStore, encrypted: bool) -> None:
    names = [f"file{number}" for number in range(3)]
    for name in names:
        store.create(name, 4)
    vm = store.vm()
    for cycle in range(50):
        plug(vm, names[cycle % 3], b"warm")
    before, resident = held(store, vm), resident_pages()
    assert (before["links"], before["windows"], before["ranges"], before["frames"]) == (0, 0, 0, 0)
    for cycle in range(CYCLES // 5 if encrypted else CYCLES):
        plug(vm, names[cycle % 3], b"secret")
    after = held(store, vm)
    assert {name: (before[name], count) for name, count in after.items() if count > before[name]} == {}
    assert resident_pages() - resident < 2048, "8 MiB"


@pytest.mark.timeout(300)
def test_more_files_than_connections_one_after_the_other(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 1,025th was refused when each pairing lasted as long as the VM."""
    monkeypatch.setattr(memfsd.peers.server, "MAX_CONNECTIONS", 8)
    vm = store.vm()
    for number in range(FILES // 10):
        store.create(f"file{number}", 4)
        plug(vm, f"file{number}", b"data")
    assert held(store, vm)["links"] == 0
    assert store.guest("file0").pairing is not None, "it stays the VM's"


def test_the_pairing_lasts_as_long_as_a_slot(store: LocalStore) -> None:
    store.create("file", 8)
    vm = store.vm()
    vm.private_slot(0, 0, page(4), "file")
    vm.private_slot(1, page(4), page(4), "file", page(4))
    link = vm.link()
    vm.write(page(4), b"kept")
    vm.delete(0, private=True)
    assert vm.link() is link
    assert vm.read(page(4), 4) == b"kept"
    vm.vmm.memory.punch_slot(1, page(4), page(4))
    assert vm.link() is link, "a slot that is all hole can be filled"
    vm.delete(1, private=True)
    assert vm.kvm.pairings.links == {}
    assert link.lost == "closed"


def test_another_vm_is_eperm_also_between_two_pairings(store: LocalStore) -> None:
    store.create("file", 8)
    first, second = store.vm("same name"), store.vm("same name")
    plug(first, "file", b"first")
    assert errno_of(second.private_slot, 0, 0, page(4), "file") == "EPERM", "the same process, but another VM"
    assert second.kvm.pairings.links == {}
    plug(first, "file", b"again")


def test_another_process_is_eperm_whatever_it_knows(store: LocalStore) -> None:
    store.create("file", 4)
    with Wire(store) as wire:
        wire.paired("file", 4)
        secret = wire.secret
        wire.ask(Kind.BYE)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException), Wire(store) as forked:
            forked.secret = secret
            forked.hello(store.token("file"))
            os._exit(7 if forked.pair() == "EPERM" else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with Wire(store) as again:
        again.secret = secret
        again.hello(store.token("file"))
        assert isinstance(again.pair(), m.PairReply)
        again.ask(Kind.BYE)


def test_gfns_stay_fixed_over_the_end_of_a_pairing(store: LocalStore) -> None:
    """R4; and a slot that is refused leaves no connection."""
    store.create("file", 8)
    vm = store.vm()
    plug(vm, "file", b"data")
    assert errno_of(vm.private_slot, 0, page(64), page(4), "file") == "EINVAL"
    assert vm.kvm.pairings.links == {}
    plug(vm, "file", b"more")


def test_who_never_bound_a_page_leaves_the_file_to_others(store: LocalStore) -> None:
    store.create("file", 4)
    for _ in range(2):
        with Wire(store) as wire:
            wire.hello(store.token("file"))
            assert isinstance(wire.pair(), m.PairReply)
            assert wire.ask(Kind.BYE) == m.Empty()
            assert store.guest("file").pairing is None
    plug(store.vm(), "file", b"data")
    with Wire(store) as wire:
        wire.hello(store.token("file"))
        assert wire.pair() == "EPERM"


def test_bye_is_answered_when_the_file_can_be_paired_again(store: LocalStore) -> None:
    store.create("file", 4)
    secret = b""
    for _ in range(50):
        with Wire(store) as wire:
            wire.secret = secret = secret or wire.secret
            wire.paired("file", 4)
            wire.touch(wire.get_pfn(1).pfn)
            wire.ask(Kind.BYE)
            assert store.free_count == 1024


def test_punches_beside_a_file_that_comes_and_goes(store: LocalStore) -> None:
    store.create("file", 4)
    vm = store.vm()
    stop = threading.Event()

    def punch() -> None:
        while not stop.is_set():
            store.punch("file", 2, 2)

    puncher = Beside(punch)
    try:
        for _ in range(100):
            plug(vm, "file", b"data")
    finally:
        stop.set()
        puncher.result()
    assert held(store, vm)["links"] == 0


def test_a_guest_that_faults_while_its_slot_goes_sees_the_slot_go(store: LocalStore) -> None:
    """The end of the connection is not the end of the store: no EIO."""
    store.create("file", 4)
    vm = store.vm()
    stop = threading.Event()
    failures: list[object] = []

    def touch() -> None:
        while not stop.is_set():
            exit_ = vm.write(page(1), b"x")
            if isinstance(exit_, MemoryErrorExit) and exit_.errno:
                failures.append(exit_)

    guest = Beside(touch)
    try:
        for _ in range(100):
            vm.private_slot(0, 0, page(4), "file")
            vm.delete(0, private=True)
    finally:
        stop.set()
        guest.result()
    assert failures == []


# -- what this process has no more of


@contextlib.contextmanager
def no_more_fds_than(spare: int) -> Iterator[None]:
    """RLIMIT_NOFILE, and all of the numbers below it but so many are in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    filler: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                filler.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(min(spare, len(filler))):
            os.close(filler.pop())
        yield
    finally:
        for fd in filler:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("spare", range(9))
def test_without_descriptors_it_is_emfile_and_the_file_is_not_spent(store: LocalStore, spare: int) -> None:
    """Store and VM share the descriptors of this process, so that either runs out of them."""
    store.create("file", 4)
    vm = store.vm()
    with no_more_fds_than(spare), pytest.raises(Refused) as refused:
        vm.private_slot(0, 0, page(4), "file")
    assert refused.value.errno == errno.EMFILE, refused.value
    assert vm.kvm.pairings.links == {}
    plug(store.vm("another"), "file", b"data")


@pytest.mark.parametrize("lost", [1, 2])
def test_fds_that_the_kernel_dropped_are_emfile(store: LocalStore, monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    """As it does when the receiver of SCM_RIGHTS has no room: fewer fds, and MSG_CTRUNC."""
    store.create("file", 4)
    vm = store.vm()
    real = socket.CMSG_LEN
    with monkeypatch.context() as patch:
        patch.setattr(socket, "CMSG_LEN", lambda length: real(length) - 4 * lost)
        with pytest.raises(Refused, match="ulimit -n") as refused:
            vm.private_slot(0, 0, page(4), "file")
    assert refused.value.errno == errno.EMFILE
    assert vm.kvm.pairings.links == {}
    plug(vm, "file", b"data")


def test_without_threads_it_is_eagain_and_the_file_is_not_spent(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create("file", 4)
    vm = store.vm()

    def no_thread(link: StoreLink) -> None:
        link._thread.start = refuse  # type: ignore[method-assign]
        start(link)

    def refuse() -> None:
        raise RuntimeError("can't start new thread")

    start = StoreLink.start
    with monkeypatch.context() as patch:
        patch.setattr(StoreLink, "start", no_thread)
        assert errno_of(vm.private_slot, 0, 0, page(4), "file") == "EAGAIN"
    assert vm.kvm.pairings.links == {}
    plug(vm, "file", b"data")


def test_a_window_that_does_not_fit_is_enomem_and_the_file_is_not_spent(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create("file", 4)
    vm = store.vm()

    def no_room(fd: int, size: int) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr("kvmsim.memory.memory.mmap.mmap", no_room)
        assert errno_of(vm.private_slot, 0, 0, page(4), "file") == "ENOMEM"
    plug(vm, "file", b"data")
