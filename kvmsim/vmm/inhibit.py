"""User space's moments without vCPUs. While it changes memslots in several steps, no vCPU may see the state in between.

Between the deletion of one slot and the creation of the next an address is nobody's, and a guest's access to it would
come back as MMIO. VMMs hold their vCPUs out of KVM_RUN for that long (QEMU: accel_ioctl_inhibit_begin()), and so do we.
`stop` holds them until `cont`: a monitor's.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from memfsd.common import sync

_KICK_AGAIN_S = 0.01
"""A vCPU on its way into KVM_RUN when it was kicked has not heard it."""
_LOOK_UP_S = 0.05
"""Of a vCPU that is held: has user space asked it to leave? That comes from a signal handler, which can wake nobody."""


class Inhibitor:
    """Many threads in KVM_RUN, or one that changes slots."""

    def __init__(self) -> None:
        self._changed = sync.condition("Inhibitor.changed", sync.lock("Inhibitor.lock"))
        self._running = 0
        self._wanting = 0
        self._alone = False
        self.is_stopped = False

    @contextmanager
    def in_kvm_run(self, leaves: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Around KVM_RUN; waits while user space is, or wants to be, without vCPUs. While they are stopped, one that
        `leaves` at once, with EINTR, comes in all the same."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_stopped or self._is_free)
            while not (self._is_free and (not self.is_stopped or leaves())):
                self._changed.wait(_LOOK_UP_S)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @property
    def _is_free(self) -> bool:
        return not self._wanting and not self._alone

    def stop(self, kick: Callable[[], None], deadline_s: float) -> bool:
        """Nobody enters KVM_RUN until `cont`. True when all were out by the deadline."""
        until = time.monotonic() + deadline_s
        with self._changed:
            self.is_stopped = True
            self._changed.notify_all()
            while (self._running or self._alone) and time.monotonic() < until:
                kick()
                self._changed.wait(_KICK_AGAIN_S)
            return not self._running and not self._alone

    def cont(self) -> None:
        with self._changed:
            self.is_stopped = False
            self._changed.notify_all()

    @contextmanager
    def quiesced(self, kick: Callable[[], None]) -> Iterator[None]:
        """Outside of KVM_RUN; kick asks every vCPU to leave. The wait ends with what their faults wait for: each such
        wait has a deadline."""
        with self._changed:
            self._wanting += 1
            while self._running or self._alone:
                kick()
                self._changed.wait(_KICK_AGAIN_S)
            self._wanting -= 1
            self._alone = True
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
