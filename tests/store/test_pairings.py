"""The use cases of a VM: pair, bind, get_pfn, and its end."""

import os

import pytest

from memfsd.core.gmem import guest_of
from memfsd.core.private.gmem_file import Pairing, PairState
from memfsd.store.pairings import PairedFile
from memfsd.store.peer import Peer
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.messages import KVM_OPERATIONS, Kind
from memfsd.uapi.names import XATTR_TOKEN
from memfsd.uapi.proof import split_token
from memfsd.uapi.units import Ino
from tests.support.core_store import ME, CoreStore, ScriptedVm, refused


def test_a_vm_pairs_binds_faults_and_ends(store: CoreStore) -> None:
    file = store.guest_file("file", 8)
    paired = store.paired(file)
    assert store.store.pairings.peers() == [paired.peer]
    assert store.windows.adopted == {file.ino}
    paired.bind(1, 0x100, 0, 8)
    assert paired.get_pfn(3, 1).page_count == 1
    assert (paired.stat().size_bytes, paired.stat().frames) == (file.size, 1)
    paired.unbind(0, 8)
    with refused("EFAULT"):
        paired.get_pfn(3, 1)
    paired.bye()
    assert paired.is_released
    assert store.store.pairings.peers() == []
    assert store.pool.free_count == store.pool.frame_count
    assert store.windows.adopted == set()


def test_a_token_is_for_its_files_owner(store: CoreStore) -> None:
    file = store.guest_file("file", 8)
    token = split_token(store.store.files.getxattr(file.ino, XATTR_TOKEN))
    assert store.store.pairings.token(token.id, ME.uid) == token
    with refused("EACCES", match="does not own"):
        store.store.pairings.token(token.id, ME.uid + 1)


def test_a_pairing_that_fails_leaves_no_window_and_no_peer(store: CoreStore) -> None:
    file = store.guest_file("file", 8)
    token = split_token(store.store.files.getxattr(file.ino, XATTR_TOKEN))
    fds = len(os.listdir("/proc/self/fd"))

    def no_more_descriptors(ino: Ino) -> Peer:
        raise OSError(24, "Too many open files")

    with refused("EMFILE", match=f"inode {file.ino}"):
        store.store.pairings.pair(token.id, Pairing("vm", 1, ME.uid, frozenset(KVM_OPERATIONS)), no_more_descriptors)
    assert len(os.listdir("/proc/self/fd")) <= fds
    assert guest_of(file).pairing is None
    assert store.store.pairings.peers() == []


def test_a_vm_comes_back_when_its_bye_is_complete_and_not_before(
    store: CoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.store.pairings.deadlines, "invalidate_lock_s", 0.01)
    file = store.guest_file("file", 8)

    def pair() -> PairedFile:
        vm = ScriptedVm()
        token = split_token(store.store.files.getxattr(file.ino, XATTR_TOKEN))
        pairing = Pairing("vm", vm.pid, vm.uid, KVM_OPERATIONS - {Kind.PAGE_MAP}, b"secret")
        return store.store.pairings.pair(token.id, pairing, lambda ino: Peer(ino, "vm", vm, vm, vm.shut))

    drop_window, tries = store.windows.drop_window, 0

    def while_it_ends(ino: Ino) -> None:
        nonlocal tries
        tries += 1
        with refused("EBUSY"):
            pair()
        drop_window(ino)

    first = pair()
    first.bind(1, 0x100, 0, 8)
    monkeypatch.setattr(store.windows, "drop_window", while_it_ends)
    first.bye()
    assert tries == 1
    assert (guest_of(file).active, store.store.pairings.peers(), store.windows.adopted) == (None, [], set())
    second = pair()
    assert (store.store.pairings.peers(), store.windows.adopted) == ([second.peer], {file.ino})
    assert store.audit() == []


@pytest.mark.parametrize("grant_s", [0.0, 1000.0])
def test_a_grant_that_others_take_first_gives_up_before_its_vm_does(
    grant_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CoreStore(pages=16)
    greedy, _ = store.bound_file("greedy", 64)
    pgoff = 0
    while store.pool.free_count:
        pgoff += store.fault(greedy, pgoff, 64).page_count
    paired = store.paired(store.guest_file("file", 8), "vm1")
    paired.bind(1, 0x100, 0, 8)
    pairings, tries = store.store.pairings, 0

    def taken_by_others(*_: object, **_named: object) -> bool:
        nonlocal tries
        tries += 1
        return True

    monkeypatch.setattr(pairings.reclaimer, "reclaim", taken_by_others)
    monkeypatch.setattr(pairings.deadlines, "grant_s", grant_s)
    with refused("ENOSPC"):
        paired.get_pfn(0, 1)
    assert tries == (1 if grant_s == 0.0 else 16)


def test_get_pfn_of_a_full_pool_takes_back_what_nobody_touched() -> None:
    store = CoreStore(pages=16)
    greedy, _ = store.bound_file("greedy", 64)
    pgoff = 0
    while store.pool.free_count:
        pgoff += store.fault(greedy, pgoff, 64).page_count
    pending = store.pool.count(FrameState.PENDING)
    assert pending
    file = store.guest_file("file", 8)
    paired = store.paired(file, "vm1")
    paired.bind(1, 0x100, 0, 8)
    assert paired.get_pfn(0, 1).page_count == 1
    assert Kind.INVALIDATE_BEGIN in store.vm_of(greedy).calls
    assert store.pool.count(FrameState.PENDING) < pending


def test_a_vm_that_lives_on_without_its_connection_is_disconnected_and_its_frames_are_quarantined(
    store: CoreStore,
) -> None:
    file = store.guest_file("file", 8)
    paired = store.paired(file)
    paired.bind(1, 0x100, 0, 8)
    pfn = paired.get_pfn(3, 1).pfn
    vm = store.vm_of(file)
    vm.is_dead = False
    paired.connection_lost("it closed the connection", -1)
    pairing = guest_of(file).pairing
    assert pairing is not None
    assert pairing.state is PairState.DISCONNECTED
    assert store.pool.state(pfn) is FrameState.QUARANTINED
    assert not paired.is_released
    with refused("ENOTCONN"):
        paired.bind(1, 0x100, 0, 8)
    vm.is_dead = True
    paired.connection_lost("its process has ended", -1)
    assert store.pool.state(pfn) is FrameState.FREE


def test_only_a_live_vm_that_implements_a_call_is_called(store: CoreStore) -> None:
    file = store.guest_file("file", 8)
    pairings = store.store.pairings
    assert not pairings.is_callable(file.ino, Kind.REVOKE)
    store.paired(file)
    assert pairings.is_callable(file.ino, Kind.REVOKE)
    assert not pairings.is_callable(file.ino, Kind.HELLO)
    assert not pairings.is_callable(Ino(99), Kind.REVOKE)


def test_a_scripted_vm_is_a_peer() -> None:
    vm = ScriptedVm()
    assert Peer(Ino(1), "vm", vm, vm, vm.shut).said_bye is False
