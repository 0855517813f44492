"""A VMM whose vCPUs run machine code: the guest programs of kvmsim, one after the other, each judged by what it prints.

Whatever the host takes from a program may end it in any way, or leave it looping; untouched it must do its work.
"""

import contextlib
import errno
import os
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass

from kvmsim.cpu.x86 import library
from kvmsim.shell.image import read_program
from memfsd.common.linux import fallocate
from memfsd.uapi.errors import Refused
from memfsd.uapi.names import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from soaklib.kvm import STORE_GONE, Trouble, Vm
from soaklib.ledger import Ledger, Over
from soaklib.model import Lost, Wrong
from soaklib.pattern import PAGE
from soaklib.plan import Plan

VCPUS = 2
FILE_BYTES = 16 << 20
_DEADLINE_S = 60.0
"""Without one more fault."""
_SWAPPING_S = 300.0
"""In all. Where pool and swap file are full each fault asks all VMs, which takes half a minute on an idle machine."""
_TAKEN_S = 0.5
"""A program that lost memory is ended after so long."""
_CODE = (256, 32)
_PUNCHED = 512


@dataclass(frozen=True, slots=True)
class GuestProgram:
    """pages: (first, count) of what it uses besides its code. runs: KVM_RUNs to a HLT each, of one vCPU."""

    name: str
    prints: str
    pages: tuple[tuple[int, int], ...] = ()
    vcpus: int = 1
    runs: int = 1


PROGRAMS = (
    GuestProgram("touch", "touch: ok\n" * 3, ((1024, 1024),), runs=3),
    GuestProgram("convert", "convert: ok\n", ((2048, 16),)),
    GuestProgram("spinlock", "spinlock: ok\n", vcpus=2),
    GuestProgram("ring", "ring: ok\n", ((3072, 8),), vcpus=2),
    GuestProgram("punched", "punched: running\npunched: gone\n", ((_PUNCHED, 2), (768, 1))),
)


def are_there() -> bool:
    """Machine code can be run here: the extra is installed, and the programs are built."""
    if library.missing():
        return False
    try:
        read_program("guest:touch", None, None)
    except Refused:
        return False
    return True


class Programs:
    """In the place of a VMM's vCPUs: runs one program after the other."""

    def __init__(self, plan: Plan, vm: Vm, ledger: Ledger) -> None:
        self._plan = plan
        self._vm = vm
        self._ledger = ledger
        self._random = random.Random(f"{plan.seed} programs")
        self.counts: Counter[str] = Counter()

    def run(self, others_go_on: threading.Event) -> None:
        while not self._ledger.must_stop and others_go_on.is_set():
            self._one(self._random.choice(PROGRAMS))

    def outlive_the_store(self) -> None:
        """Once it is gone no code of it runs."""
        until = time.monotonic() + _DEADLINE_S
        while not isinstance(self._vm.boot(0, "touch") or self._vm.execute(0), Trouble):
            if time.monotonic() > until:
                raise Wrong(f"code runs though the store is gone: {self._vm.lost}")

    def _one(self, program: GuestProgram) -> None:
        takings = [Over(self._ledger.moments, *pages) for pages in (_CODE, *program.pages)]
        vm, troubles = self._vm, list[Trouble]()
        for vcpu in range(program.vcpus):
            vm.console(vcpu)
            if (trouble := vm.boot(vcpu, program.name)) is not None:
                self._judge(program, takings, [trouble], "")
                return
        ended = threading.Event()
        threads = [
            threading.Thread(target=self._execute, args=(vcpu, program.runs, troubles, ended))
            for vcpu in range(program.vcpus)
        ]
        for thread in threads:
            thread.start()
        is_whole = program.name != "punched" or self._punch_under_it(ended)
        is_hung = self._await(threads, takings, troubles)
        if not is_whole and not vm.lost:
            return
        printed = "".join(vm.console(vcpu) for vcpu in range(program.vcpus))
        if is_hung:
            raise Wrong(f"guest:{program.name} does not end, and nothing was taken from it; it printed {printed!r}")
        self._judge(program, takings, troubles, printed)

    def _execute(self, vcpu: int, runs: int, troubles: list[Trouble], ended: threading.Event) -> None:
        for number in range(runs):
            trouble = self._vm.execute(vcpu, again=number > 0)
            if trouble is not None:
                troubles.append(trouble)
                break
        ended.set()

    def _punch_under_it(self, ended: threading.Event) -> bool:
        """As the host would, but when it surely runs. False: it could not, and the program runs until it is stopped."""
        while not self._vm.has_printed(0) and not ended.wait(0.002):
            if self._ledger.must_stop:
                break
        with contextlib.suppress(OSError):  # its name may be gone, or its store
            fd = os.open(self._plan.path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, _PUNCHED * PAGE, PAGE)
            finally:
                os.close(fd)
            return True
        self._vm.want_back()
        return False

    def _await(self, threads: list[threading.Thread], takings: list[Over], troubles: list[Trouble]) -> bool:
        """Until all have ended, by themselves or because they must; whether one had to be got out for no reason."""
        begin = met = faulted = time.monotonic()
        faults = self._vm.fault_count
        excused = False
        while any(thread.is_alive() for thread in threads):
            now = time.monotonic()
            if not excused:
                excused = bool(troubles or self._vm.lost or any(taking.met_any() for taking in takings))
                met = now
            if faults != self._vm.fault_count:
                faults, faulted = self._vm.fault_count, now
            is_late = now > faulted + _DEADLINE_S or now > begin + _SWAPPING_S
            if self._ledger.must_stop or (excused and now > met + _TAKEN_S) or is_late:
                excused = excused or self._ledger.must_stop
                self._vm.want_back()
                for thread in threads:
                    thread.join()
                self._vm.let_go_on()
                return not excused
            threads[0].join(0.005)
            threads[-1].join(0.005)
        self._vm.let_go_on()
        return False

    def _judge(self, program: GuestProgram, takings: list[Over], troubles: list[Trouble], printed: str) -> None:
        if any(trouble.errno in STORE_GONE for trouble in troubles):
            self._vm.await_loss()
        if self._vm.lost:
            raise Lost(self._vm.lost)
        self.counts["programs"] += 1
        if any(taking.met_any() for taking in takings):
            self.counts["programs_taken_from"] += 1
        elif any(trouble.errno == errno.ENOSPC for trouble in troubles):
            self.counts["pool_full"] += 1
        elif self._ledger.must_stop and any(trouble.errno == errno.EINTR for trouble in troubles):
            return
        elif troubles or printed != program.prints:
            raise Wrong(f"guest:{program.name}, from which nothing was taken, printed {printed!r}: {troubles}")
        else:
            self.counts["programs_ok"] += 1
            self.counts["verified_pages"] += sum(count for _, count in program.pages)
