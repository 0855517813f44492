"""What frontrun explores: threads in the use cases of the store and in KVM's half, and what must hold afterwards.

Run under frontrun's launcher, which sees every bytecode and makes the locks (test_bytecodes.py):

    frontrun python -m tests.bytecodes.scenarios [NAME]... [--executions N]

It prints a JSON object for each scenario and order of its threads.
"""

import argparse
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import frontrun

from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.mmu.mmu import Mmu, PageFault
from kvmsim.kvm.region import SlotFlag
from kvmsim.kvm.slots.memslots import Memslot
from kvmsim.kvm.vcpu import Vcpu
from memfsd.core.gmem import guest_of
from memfsd.core.private.gmem_file import Pairing
from memfsd.store.deadlines import Deadlines
from memfsd.store.peer import Peer, PeerSilent
from memfsd.uapi.errors import Refused, errno_name
from memfsd.uapi.messages import KVM_OPERATIONS, Empty, InvalidateBeginReply, Kind
from memfsd.uapi.names import XATTR_TOKEN
from memfsd.uapi.proof import split_token
from memfsd.uapi.units import PAGE_SIZE, Gfn, HostPfn, Pgoff
from tests.support.core_store import CoreStore, ScriptedVm
from tests.support.slots import NO_BACKING, TRANSLATION

INO = 2
"""The first file that is made."""


@dataclass
class State:
    """What the threads share, and what came of each."""

    came_to: dict[str, object] = field(default_factory=dict)

    def doing(self, name: str, call: Callable[[], object]) -> None:
        try:
            self.came_to[name] = call()
        except Refused as refused:
            self.came_to[name] = errno_name(refused.errno)


# -- the store


@dataclass
class Stored(State):
    """A store with one sealed file of four pages."""

    store: CoreStore = field(default_factory=lambda: CoreStore(pages=8))

    @property
    def is_sound(self) -> bool:
        return self.store.audit() == [] and guest_of(self.store.service.inodes.regular(INO)).open_invalidation is None


def bound() -> Stored:
    state = Stored()
    state.store.bound_file("file", 4)
    return state


def unbound() -> Stored:
    state = Stored()
    state.store.pair(state.store.guest_file("file", 4))
    return state


def unpaired() -> Stored:
    state = Stored()
    state.store.guest_file("file", 4)
    return state


def paired(state: Stored) -> Any:
    return state.store.seen_by_vm(state.store.service.inodes.regular(INO))


def fault(state: Stored) -> None:
    state.doing("fault", lambda: paired(state).get_pfn(0, 1).pfn)


def punch(state: Stored) -> None:
    state.doing("punch", lambda: state.store.store.files.punch(INO, 0, PAGE_SIZE).run())


def bind(state: Stored) -> None:
    state.doing("bind", lambda: paired(state).bind(1, 0x100, 0, 4))


def pair(name: str) -> Callable[[Stored], None]:
    def run(state: Stored) -> None:
        token = split_token(state.store.store.files.getxattr(INO, XATTR_TOKEN))
        vm = ScriptedVm()
        pairing = Pairing(name, vm.pid, vm.uid, KVM_OPERATIONS)
        connect = lambda ino: Peer(ino, name, vm, vm, vm.shut)  # noqa: E731
        state.doing(name, lambda: state.store.store.pairings.pair(token.id, pairing, connect).peer.vm)

    return run


def session_ends(state: Stored) -> None:
    state.doing("end", lambda: paired(state).connection_lost("its process has ended", -1))


def dying() -> Stored:
    """Its VM holds a page, and answers no more."""
    state = bound()
    state.store.fault(state.store.service.inodes.regular(INO), 0)
    state.store.vm_of(state.store.service.inodes.regular(INO)).is_silent = True
    return state


def all_free(state: Stored) -> bool:
    return state.is_sound and state.store.pool.free_count == state.store.pool.frame_count


# -- a deadline that passes while the peer is about to answer


@dataclass
class Answering(Stored):
    answered: threading.Event = field(default_factory=threading.Event)


class SlowVm(ScriptedVm):
    """It answers when another thread says so, and the store waits for a second."""

    def __init__(self, answered: threading.Event) -> None:
        super().__init__()
        self.is_dead = False
        self._answered = answered

    def call(self, kind: Kind, body: Any, reply: type[Any]) -> Any:
        if kind is Kind.INVALIDATE_BEGIN and not self._answered.wait(1.0):
            raise PeerSilent("no answer")
        return InvalidateBeginReply([]) if kind is Kind.INVALIDATE_BEGIN else Empty()


def answering() -> Answering:
    state = Answering()
    file, _ = state.store.bound_file("file", 4)
    state.store.fault(file, 0)
    peer = paired(state).peer
    peer.up = peer.process = SlowVm(state.answered)
    return state


def answer(state: Answering) -> None:
    time.sleep(1.0)
    state.answered.set()


def acknowledged_or_quarantined(state: Answering) -> bool:
    guest = guest_of(state.store.service.inodes.regular(INO))
    expected = {None: (True, 0), "ETIMEDOUT": (False, 1)}
    lives, quarantined = guest.active is not None, guest.quarantine.page_count
    return state.is_sound and (lives, min(quarantined, 1)) == expected.get(state.came_to["punch"])  # type: ignore[call-overload]


def impatient() -> Stored:
    """An invalidate_lock is waited for as long as another thread holds it."""
    state = bound()
    state.store.store.invalidator._deadlines = Deadlines(invalidate_lock_s=1.0)
    return state


def holds(state: Stored) -> None:
    with guest_of(state.store.service.inodes.regular(INO)).invalidate_lock:
        time.sleep(1.0)


def done_or_busy(state: Stored) -> bool:
    lock = guest_of(state.store.service.inodes.regular(INO)).invalidate_lock
    return state.is_sound and not lock.locked() and state.came_to["punch"] in (None, "EBUSY")


# -- KVM's half

SLOT = Memslot(0, PRIVATE, Gfn(0), 16, SlotFlag(0), NO_BACKING, Pgoff(0))


@dataclass
class Guest(State):
    """A vCPU with a translation, and the frame that it names."""

    vcpu: Vcpu = field(default_factory=lambda: Vcpu(0))
    mmu: Mmu = field(default_factory=Mmu)
    frame_is_free: bool = False
    used_after_free: bool = False


def translated() -> Guest:
    guest = Guest()
    guest.mmu.tlbs.append(guest.vcpu.tlb)
    guest.vcpu.tlb.insert(~5, TRANSLATION)
    return guest


def access(guest: Guest) -> None:
    guest.vcpu.enter()
    found = guest.vcpu.tlb.lookup(~5)
    if found is not None and guest.frame_is_free:
        guest.used_after_free = True
    guest.vcpu.leave()


def take_back(guest: Guest) -> None:
    mmu = guest.mmu
    with mmu.lock:
        mmu.invalidate_begin(Gfn(5), Gfn(6))
        mmu.zap(Gfn(5), Gfn(6), private=True)
        guest.vcpu.tlb.flush()
    guest.vcpu.kick()
    guest.frame_is_free = True
    with mmu.lock:
        mmu.invalidate_end()


def fault_in(guest: Guest) -> None:
    """As Faults.fault: a snapshot, the store's answer, the test for staleness."""
    mmu = guest.mmu
    with mmu.lock:
        page_fault = PageFault(Gfn(5), True, SLOT, Pgoff(5), 1, True, mmu.invalidate_seq, 0)
    was_free = guest.frame_is_free
    with mmu.lock:
        if not was_free and mmu.install(page_fault, HostPfn(7), 1):
            guest.came_to["installed"] = True


def not_used(guest: Guest) -> bool:
    return not guest.used_after_free


def not_mapped(guest: Guest) -> bool:
    return list(guest.mmu.epts[PRIVATE].runs(Gfn(0), Gfn(16))) == []


# -- faults that must be found


class NoLock:
    def acquire(self, *_: object, **__: object) -> bool:
        return True

    def release(self) -> None: ...


def unlocked() -> Stored:
    state = bound()
    paired(state)._lock = NoLock()
    return state


def without_a_kick(guest: Guest) -> None:
    guest.vcpu.tlb.flush()
    guest.frame_is_free = True


@dataclass(frozen=True)
class Race:
    setup: Callable[[], Any]
    threads: tuple[Callable[[Any], None], ...]
    holds: Callable[[Any], bool]
    clock: str = "real"
    needs: int = 0
    """Executions, to be found out."""


def sound(state: Stored) -> bool:
    return state.is_sound


def one_owner(state: Stored) -> bool:
    return state.is_sound and sorted(map(str, state.came_to.values())) in (["EPERM", "vm0"], ["EPERM", "vm1"])


RACES = {
    "fault x punch": Race(bound, (fault, punch), sound),
    "bind x punch": Race(unbound, (bind, punch), sound),
    "fault x bind": Race(unbound, (fault, bind), sound),
    "pair x pair": Race(unpaired, (pair("vm0"), pair("vm1")), one_owner),
    "session end x cut": Race(dying, (session_ends, punch), all_free),
    "answer x its deadline": Race(answering, (punch, answer), acknowledged_or_quarantined, clock="explored"),
    "invalidate_lock x its deadline": Race(impatient, (punch, holds), done_or_busy, clock="explored"),
    "kick x enter": Race(translated, (access, take_back), not_used),
    "install x invalidation": Race(translated, (fault_in, take_back), not_mapped),
    "two grants without the lock": Race(unlocked, (fault, fault), sound, needs=100),
    "flush without a kick": Race(translated, (access, without_a_kick), not_used, needs=2),
}


def explore(name: str, executions: int, conflicts: bool) -> None:
    """In either order of the threads: frontrun does not find the same from both."""
    race = RACES[name]
    for threads in dict.fromkeys((race.threads, race.threads[::-1])):
        came_to: set[str] = set()

        def holds(state: State, came_to: set[str] = came_to, race: Race = race) -> bool:
            came_to.add(json.dumps(state.came_to, sort_keys=True, default=str))
            return race.holds(state)

        began = time.monotonic()
        result = frontrun.explore(
            setup=race.setup,
            workers=list(threads),
            invariant=holds,
            clock=race.clock,
            detect_io=False,
            preemption_bound=None,
            max_executions=max(executions, race.needs),
            timeout_per_run=60.0,
            reproduce_on_failure=0,
            error_on_any_race=conflicts,
        )
        report = {
            "race": name,
            "threads": [thread.__name__ for thread in threads],
            "holds": result.property_holds,
            "executions": result.num_explored,
            "seconds": round(time.monotonic() - began, 2),
            "came_to": sorted(came_to),
            "why": result.explanation,
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME", default=[name for name in RACES if RACES[name].needs < 100])
    parser.add_argument("--executions", type=int, default=25)
    parser.add_argument("--conflicts", action="store_true", help="two accesses that nothing orders are a failure")
    asked = parser.parse_args()
    for name in asked.names:
        explore(name, asked.executions, asked.conflicts)
