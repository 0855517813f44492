"""Invalidations: BEGIN, acknowledged, scrub, END, under the file's invalidate_lock.

All of it blocks, each step with a deadline, and so runs on its own thread (a FUSE handler's worker, or the
session whose grant found the pool full), never on the FUSE loop.
"""

import contextlib
import errno
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

from memfsd.common import trace
from memfsd.core.files.inodes import Regular
from memfsd.core.gmem import guest_of
from memfsd.core.private.gmem_file import GmemFile, Invalidation
from memfsd.core.private.strategies import Strategy
from memfsd.core.service import Service
from memfsd.host.effect_runner import PAUSE_S, EffectRunner
from memfsd.host.windows import Windows
from memfsd.uapi.errors import PeerLost, Refused
from memfsd.uapi.messages import Body, Empty, InvalidateEnd, Kind
from memfsd.uapi.units import Ino, Pgoff, Seq

from .deadlines import Deadlines
from .peer import Peer, PeerRefused, PeerSilent

log = logging.getLogger("memfsd.peers")


@dataclass(frozen=True, slots=True)
class InvalidateRange:
    """Pages [start, end) that leave a sealed file, and what changes in the same step as the invalidation ends."""

    ino: Ino
    start: Pgoff
    end: Pgoff
    strategy: Strategy
    size: int | None = None
    """The file's new size, in bytes."""
    now_ns: int | None = None
    """The file's new mtime and ctime."""


class Invalidator:
    """Takes memory back from VMs. `peers` is guarded by Service.lock."""

    def __init__(
        self,
        service: Service,
        windows: Windows,
        runner: EffectRunner,
        deadlines: Deadlines | None = None,
    ) -> None:
        self._service = service
        self._windows = windows
        self._runner = runner
        self._deadlines = deadlines or Deadlines()
        self.peers: dict[Ino, Peer] = {}

    @contextlib.contextmanager
    def hold(self, guest: GmemFile, until: float | None = None) -> Iterator[None]:
        """The file's invalidate_lock. EBUSY when another invalidation does not end in time, or before `until`."""
        patience = self._deadlines.invalidate_lock_s
        if until is not None:
            patience = min(patience, max(until - time.monotonic(), 0))
        if not guest.invalidate_lock.acquire(timeout=patience):
            raise Refused(errno.EBUSY, "another invalidation of this file does not end: try again")
        try:
            yield
        finally:
            guest.invalidate_lock.release()

    @contextlib.contextmanager
    def hold_all(self, files: list[Regular]) -> Iterator[list[Regular]]:
        """The invalidate_locks of many files, in the order of inode numbers; yields the files whose lock came in time.

        Nobody else waits for one while holding one, so no ring of waiters can close.
        """
        until = time.monotonic() + self._deadlines.check_locks_s
        held: list[Regular] = []
        try:
            for file in sorted(files, key=lambda file: file.ino):
                if guest_of(file).invalidate_lock.acquire(timeout=max(until - time.monotonic(), 0)):
                    held.append(file)
            yield held
        finally:
            for file in held:
                guest_of(file).invalidate_lock.release()

    # -- invalidations

    def has_vm(self, ino: Ino) -> bool:
        """A VM is paired with the sealed file, and lives."""
        with self._service.lock:
            return guest_of(self._service.inodes.regular(ino)).active is not None

    def invalidate(self, range_: InvalidateRange) -> None:
        """Take the pages out of the file and of its VM; free them; only then return.

        ETIMEDOUT when the VM lives but did not acknowledge: it is disconnected and its frames are quarantined.
        ECANCELED when it refused a call that it may refuse: `Strategy.take` had no answer.
        """
        with self._service.lock:
            file = self._service.inodes.regular(range_.ino)
        with self.hold(guest_of(file)):
            self.invalidate_held(file, range_)

    def invalidate_unpaired(self, range_: InvalidateRange) -> bool:
        """`invalidate` of a file without a live VM, which waits for nobody. False, and nothing done, if it might."""
        with self._service.lock:
            file = self._service.inodes.regular(range_.ino)
        guest = guest_of(file)
        if not guest.invalidate_lock.acquire(blocking=False):
            return False
        try:
            if guest.active is not None:  # BIND, too, needs the lock: none can come from here on
                return False
            self.invalidate_held(file, range_)
            return True
        finally:
            guest.invalidate_lock.release()

    def invalidate_held(self, file: Regular, range_: InvalidateRange) -> None:
        """`invalidate`, with the file's invalidate_lock held. EPERM: a device keeps its size."""
        with self._service.lock:
            if range_.size is not None and guest_of(file).device is not None:
                raise Refused(errno.EPERM, f"inode {file.ino} became a device meanwhile, which keeps its size")
            closing = self._service.gmem.invalidate_begin(file, range_.start, range_.end, range_.strategy)
            peer = self.peers.get(file.ino) if closing.upcall else None
        answer: Body | None = None
        failure: PeerLost | None = None
        try:
            if peer is not None:
                answer, failure = self._begin(peer, closing)
            if not closing.is_refused:
                self._take(file, closing, answer)
        finally:
            seq = self._finish(file, range_, changed=not closing.is_refused)
            if peer is not None and failure is None:
                self._end(peer, closing, seq)
        if closing.is_refused:
            raise Refused(errno.ENOMEM, f"VM {peer and peer.vm} cannot split its mapping: {failure}")
        if failure is not None and not closing.upcall:
            raise Refused(errno.ECANCELED, f"VM {peer and peer.vm} does not do it: {failure}")
        if failure is not None:
            raise Refused(errno.ETIMEDOUT, f"VM {peer and peer.vm} did not acknowledge: {failure}")

    def _begin(self, peer: Peer, closing: Invalidation) -> tuple[Body | None, PeerLost | None]:
        """The VM's acknowledgement, or why there is none though it lives. A proven death acknowledges."""
        call = closing.strategy.call(closing)
        try:
            return peer.up.call(*call), None
        except PeerLost as lost:
            is_begin = call.kind is Kind.INVALIDATE_BEGIN
            if isinstance(lost, PeerRefused) and is_begin and closing.cuts and lost.errno == errno.ENOMEM:
                closing.is_refused, closing.upcall = True, False
                return None, lost
            if isinstance(lost, PeerRefused) and not is_begin:
                closing.upcall = False
                return None, lost
            return None, None if self.end_or_disconnect(peer, lost) else lost

    def _take(self, file: Regular, closing: Invalidation, answer: Body | None) -> None:
        """The pages leave the file in parts, each scrubbed before the next."""
        # What the guest has touched is memory in its window, also where its VM shows it nowhere just now: under
        # an overlay, or in the middle of a conversion that may yet be taken back.
        touched = self._windows.populated(file.ino) if closing.strategy.needs_touched else []
        with self._service.lock:
            effects = self._service.gmem.take(file, answer, touched)
        while effects is not None:
            self._runner.perform(effects)
            if closing.taken_to == closing.end:
                break
            time.sleep(PAUSE_S)
            with self._service.lock:
                effects = self._service.gmem.take(file, answer, touched)

    def _finish(self, file: Regular, range_: InvalidateRange, *, changed: bool) -> Seq:
        """The range opens again, and the file changes with it; its new sequence number."""
        with self._service.lock:
            if changed and range_.size is not None:
                self._service.gmem.set_size(file, range_.size)
            if changed and range_.now_ns is not None:
                file.mtime_ns = file.ctime_ns = range_.now_ns
            return self._service.gmem.invalidate_end(file)

    def _end(self, peer: Peer, closing: Invalidation, seq: Seq) -> None:
        try:
            peer.up.call(Kind.INVALIDATE_END, InvalidateEnd(closing.start, closing.end, seq), Empty)
        except PeerSilent as silent:
            self.disconnect(peer, str(silent))
        except PeerLost:
            if not peer.said_bye:  # else it waits for the answer to that
                peer.hang_up()

    # -- the end of a VM

    def end_or_disconnect(self, peer: Peer, lost: PeerLost) -> bool:
        """After a call that failed. True: the VM has ended, by BYE or a proven death, which acknowledges. False: it
        lives, and is cut off. Call with the file's invalidate_lock held."""
        patience = 0 if isinstance(lost, PeerSilent) else self._deadlines.proof_s
        if peer.said_bye or peer.process.wait_dead(patience):
            self.exited(peer)
            return True
        self.disconnect(peer, str(lost))
        return False

    def disconnect(self, peer: Peer, why: str) -> None:
        """Cut off a VM that lives but broke its word. Call with the file's invalidate_lock held."""
        if trace.store is not None:
            trace.store.vm_disconnected(peer.ino, peer.vm, why)
        log.warning("VM %s (process %d) is cut off: %s", peer.vm, peer.process.pid, why)
        with self._service.lock:
            file = self._service.inodes.regular(peer.ino)
            effects = self._service.gmem.disconnect(file) if guest_of(file).active is not None else []
        peer.hang_up()
        self._runner.perform(effects)

    def exited(self, peer: Peer) -> None:
        """It said BYE, or its death is proven: before anything is done because of it."""
        if trace.store is not None:
            trace.store.vm_exited(peer.ino, peer.vm, peer.process.pid, peer.said_bye)


class VmWork:
    """An invalidation: it waits until the file's VM has acknowledged, ETIMEDOUT if that does not come."""

    __slots__ = ("_invalidator", "_range")

    def __init__(self, invalidator: Invalidator, range_: InvalidateRange) -> None:
        self._invalidator = invalidator
        self._range = range_

    @property
    def is_quick(self) -> bool:
        return False

    def run(self) -> None:
        self._invalidator.invalidate(self._range)

    def has_vm(self) -> bool:
        """Whether it may wait."""
        return self._invalidator.has_vm(self._range.ino)

    def run_unpaired(self) -> bool:
        """All of it if that waits for no VM; False, and nothing done, if it might."""
        return self._invalidator.invalidate_unpaired(self._range)
