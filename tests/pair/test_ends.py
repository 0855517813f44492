"""How it ends: BYE, a store that goes away, a process that is killed."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.exits import MemoryErrorExit
from memfsd.core.private.gmem_file import PairState
from memfsd.peers.upchannel import set_deadline
from memfsd.uapi import messages as m
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.messages import Kind
from tests.support.both_sides import LocalStore, LocalVm, errno_of, page
from tests.support.threads import DEADLINE_S, Beside, Gate, until
from tests.support.wire import Wire, settled

ROOT = Path(__file__).parents[2]


@pytest.fixture
def running(store: LocalStore) -> LocalVm:
    """8 touched private pages at GPA 0, 8 shared ones at page 64."""
    store.create("file", 8)
    local = store.vm()
    local.private_slot(0, 0, page(8), "file")
    local.shared_slot(0, page(64), page(8))
    assert local.touch(0, page(8)) is None
    assert local.write(page(64), b"shared", shared=True) is None
    return local


# -- BYE


def test_bye_frees_the_frames_and_the_file_stays_sealed(store: LocalStore, running: LocalVm) -> None:
    assert store.free_count == 1016
    running.close()
    settled(store)
    guest = store.guest("file")
    assert (store.free_count, guest.pairing and guest.pairing.state) == (1024, PairState.ENDED)
    assert errno_of(store.vm("second").private_slot, 0, 0, page(1), "file") == "EPERM"
    assert store.findings() == []


def test_frames_of_a_vm_that_is_gone_are_zero_for_the_next(store: LocalStore, running: LocalVm) -> None:
    for number in range(8):
        running.write(page(number), b"secret" * 100)
    running.close()
    settled(store)
    store.create("next", 1024)
    following = store.vm("next")
    following.private_slot(0, 0, page(1024), "next")
    assert following.read(0, page(1024)) == bytes(page(1024)), "R8, every frame of the pool"


def test_data_of_an_unlinked_file_lives_until_its_vm_ends(store: LocalStore, running: LocalVm) -> None:
    ino = store.file("file").ino
    running.write(0, b"alive")
    store.unlink("file")
    assert running.read(0, 5) == b"alive"
    assert store.free_count == 1016
    running.close()
    settled(store)
    assert store.free_count == 1024
    store.service.forget(ino, 1)
    assert store.service.inodes.find(ino) is None, "and nothing remembers it"


def test_bye_acknowledges_the_punch_that_waits(store: LocalStore) -> None:
    store.create("file", 8)
    with Wire(store) as wire:
        wire.paired("file", 8)
        wire.touch(wire.get_pfn(0).pfn)
        punch = Beside(lambda: store.punch("file", 0, 8))
        wire.called()
        assert wire.ask(Kind.BYE) == m.Empty()
        assert punch.result() is None, "who lets go of everything has acknowledged"
        until(lambda: store.free_count == 1024, "BYE gives all frames back")


def settled_or_cut(store: LocalStore) -> None:
    until(lambda: store.guest("file").active is None, "the VM is gone for the store")


# -- the store goes away


def lost_exit(local: LocalVm) -> MemoryErrorExit:
    exit_ = local.read(page(3), 4)
    assert isinstance(exit_, MemoryErrorExit), exit_
    return exit_


def test_when_the_store_is_lost_private_accesses_exit_with_eio_and_say_why(store: LocalStore, running: LocalVm) -> None:
    store.hang_up("file")
    until(lambda: running.vm.mmu.epts[PRIVATE].leaf_count == 0, "everything that came from it is zapped")
    exit_ = lost_exit(running)
    assert (exit_.gpa, exit_.private, exit_.errno) == (page(3), True, errno.EIO)
    assert "store" in exit_.why
    assert "\n" not in exit_.why
    assert running.read(page(64), 6, shared=True) == b"shared", "shared memory is not the store's"


def test_an_unmount_revokes_and_says_so(store: LocalStore, running: LocalVm) -> None:
    store.unmount()
    assert running.vm.mmu.epts[PRIVATE].leaf_count == 0, "REVOKE is answered when all is zapped"
    assert "revoked the pairing: the store is unmounted" in lost_exit(running).why
    store.is_broken = True


def test_slots_of_a_vm_that_was_cut_off_can_be_deleted_and_it_does_not_come_back(
    store: LocalStore, running: LocalVm
) -> None:
    store.hang_up("file")
    until(lambda: bool(running.link().lost), "the VM knows")
    running.vmm.memory.punch_slot(0, page(7), page(1))
    assert errno_of(running.vmm.memory.fill_slot, 0, 7, 8) == "EHOSTDOWN"
    running.delete(0, private=True)
    assert running.kvm.pairings.links == {}
    assert errno_of(running.private_slot, 0, 0, page(8), "file") == "EPERM"
    assert running.read(0, 1) == MemoryErrorExit(0, page(1), private=True)


def test_a_fault_that_waits_for_end_goes_on_when_the_store_is_lost(
    store: LocalStore, running: LocalVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, real = Gate(), store.windows.punch

    def held(*arguments: object) -> None:
        gate.wait()
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store.windows, "punch", held)
    punch = Beside(lambda: store.punch("file", 0, 8))
    gate.reached()
    reader = Beside(lambda: lost_exit(running))
    until(lambda: bool(running.vm.mmu.invalidation_ended._waiters), "the fault waits for END")  # type: ignore[attr-defined]
    peer = store.invalidator.peers[store.file("file").ino]
    peer.hang_up()
    peer.up.shut()
    assert reader.result().errno == errno.EIO
    assert running.vm.mmu.in_progress == 0
    gate.open()
    punch.result()
    settled_or_cut(store)


def test_a_store_that_does_not_answer_is_an_eio_at_the_deadline(store: LocalStore, running: LocalVm) -> None:
    store.punch("file", 3, 1)
    set_deadline(running.link()._down, 0.05)
    with store.service.lock:
        exit_ = lost_exit(running)
    assert exit_.errno == errno.EIO
    assert "does not answer GET_PFN" in exit_.why
    settled_or_cut(store)


def test_a_machine_closes_at_once_when_its_store_is_gone(store: LocalStore, running: LocalVm) -> None:
    store.hang_up("file")
    Beside(running.close).result()


def test_a_window_that_could_shrink_is_refused(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that lies could kill the VM with SIGBUS."""
    loose = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(loose, page(1024))
    store.create("file", 8)
    monkeypatch.setattr(store.windows, "make_window", lambda ino: os.dup(loose))
    local = store.vm()
    assert errno_of(local.private_slot, 0, 0, page(8), "file") == "EHOSTDOWN"
    assert local.kvm.pairings.links == {}
    os.close(loose)
    settled_or_cut(store)


# -- a process is killed

CHILD = """
import os, sys
from kvmsim.store import link
from memfsd.uapi.proof import split_token
from kvmsim.kvm.vm import Vm
from kvmsim.cpu.accesses import Guest
from kvmsim.kvm.kvm import Kvm
from kvmsim.kvm.region import MemoryRegion

path, socket_path, token = sys.argv[1:]

def pair(fd, vm, callbacks):
    return link.StoreLink(fd, link._connect(socket_path), split_token(bytes.fromhex(token)), vm, callbacks)

kvm = Kvm(Vm("child"), pair)
kvm.slots.set_private_slot(MemoryRegion.private(0, 0, 64 << 12), path)
assert Guest(kvm).write(kvm.vm.vcpu(0), 0, b"secret" * 10000) is None
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def child(store: LocalStore) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process with the file paired and 15 pages written; killed at the latest at the end."""
    store.create("file", 64)
    command = [sys.executable, "-c", CHILD, store.path("file"), store.socket_path, b"".join(store.token("file")).hex()]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield process
    process.kill()
    process.communicate(timeout=DEADLINE_S)


def test_a_killed_vm_gives_its_frames_back_and_the_file_stays_its_own(
    store: LocalStore, child: "subprocess.Popen[bytes]"
) -> None:
    guest, ino = store.guest("file"), store.file("file").ino
    assert store.free_count < 1024 - 14
    assert guest.pairing is not None and guest.pairing.pid == child.pid
    assert store.findings() == []
    child.send_signal(signal.SIGKILL)
    assert store.findings() == [], "dying breaks no rule"
    until(lambda: store.free_count == 1024, "the frames come back")
    assert guest.pairing.state is PairState.ENDED
    assert store.count(FrameState.QUARANTINED) == 0
    assert store.windows.populated_count(ino) == 0
    assert errno_of(store.vm("next").private_slot, 0, 0, page(1), "file") == "EPERM"
    store.create("next", 1024)
    local = store.vm("heir")
    local.private_slot(0, 0, page(1024), "next")
    assert local.read(0, page(1024)) == bytes(page(1024)), "no byte of it is left"


def test_the_death_of_a_vm_acknowledges_a_punch(store: LocalStore, child: "subprocess.Popen[bytes]") -> None:
    """Stopped, it cannot answer; killed, it need not."""
    child.send_signal(signal.SIGSTOP)
    punch = Beside(lambda: store.punch("file", 0, 8))
    until(lambda: store.guest("file").open_invalidation is not None, "the bracket opens")
    assert punch.running
    child.send_signal(signal.SIGKILL)
    punch.result()
    until(lambda: store.free_count == 1024, "all frames come back")
