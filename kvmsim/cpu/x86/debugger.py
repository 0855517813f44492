"""What a debugger wants of a VM's vCPUs: that they stop, step, go on. They ask before each stretch of guest mode.

A vCPU that is stopped waits inside its KVM_RUN; who asks it to leave (immediate_exit) gets it out all the same.
"""

from collections import deque

from kvmsim.kvm.vcpu import Vcpu
from memfsd.common import sync

_LOOK_UP_S = 0.05
"""Of a vCPU that waits: is it asked to leave? That may come from a signal handler, which can wake nobody."""

SIGINT, SIGTRAP = 2, 5


class Debugger:
    """One for a VM, while a debugger is there."""

    def __init__(self) -> None:
        self._changed = sync.condition("Debugger.changed", sync.lock("Debugger.lock"))
        self._is_stopped = True
        self._stepping: int | None = None
        self._parked: set[int] = set()
        self._events: deque[tuple[int, int]] = deque()
        self._stopped_at: dict[int, int] = {}
        self.breakpoints: frozenset[int] = frozenset()

    # -- the vCPU's side

    def before(self, vcpu: Vcpu, rip: int) -> int:
        """Waits while it has to stand still. How many instructions it may run: 1, or 0 for any number."""
        with self._changed:
            while self._is_stopped and self._stepping != vcpu.id and not vcpu.run.immediate_exit:
                self._parked.add(vcpu.id)
                self._changed.notify_all()
                self._changed.wait(_LOOK_UP_S)
            self._parked.discard(vcpu.id)
            if self._stepping == vcpu.id:
                return 1
            return 1 if self._stopped_at.pop(vcpu.id, None) == rip and rip in self.breakpoints else 0

    def reached(self, vcpu: Vcpu, rip: int) -> None:
        """A breakpoint; or the end of a step, if that was asked for."""
        with self._changed:
            if self._stepping == vcpu.id:
                self._stepping = None
            self._is_stopped = True
            self._stopped_at[vcpu.id] = rip
            self._events.append((vcpu.id, SIGTRAP))

    def is_stepping(self, vcpu: Vcpu) -> bool:
        return self._stepping == vcpu.id

    # -- the debugger's side

    def stop(self, vcpus: list[Vcpu], deadline_s: float) -> None:
        """No machine code runs on them when this returns, but where one still waits for the store at the deadline."""
        with self._changed:
            self._is_stopped, self._stepping = True, None
        for vcpu in vcpus:
            vcpu.kick()
        with self._changed:
            self._changed.wait_for(
                lambda: all(vcpu.id in self._parked or not vcpu.is_running for vcpu in vcpus), deadline_s
            )

    def go_on(self, rips: dict[int, int]) -> None:
        """rips: where each vCPU is; a breakpoint there is passed."""
        with self._changed:
            self._events.clear()
            self._stopped_at.update(rips)
            self._is_stopped, self._stepping = False, None
            self._changed.notify_all()

    def step(self, vcpu: Vcpu) -> bool:
        """One instruction of a vCPU that waits here; an event follows. False: it does not."""
        with self._changed:
            if vcpu.id not in self._parked:
                return False
            self._events.clear()
            self._stepping = vcpu.id
            self._changed.notify_all()
            return True

    def event(self) -> tuple[int, int] | None:
        """(vCPU, signal) of a stop that nobody has heard of."""
        return self._events.popleft() if self._events else None
