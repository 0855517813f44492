"""Invalidations: BEGIN, acknowledged, scrub, END, under the file's invalidate_lock.

All of it blocks, each step with a deadline, and so runs on a thread of its own (a FUSE handler's worker, or the
session whose grant found the pool full), never on the FUSE loop.
"""

import contextlib
import errno
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from memfsd.common.journal import NO_JOURNAL, Journal
from memfsd.core.files.inodes import Regular
from memfsd.core.gmem import guest_of
from memfsd.core.private.gmem_file import Guest, Invalidation
from memfsd.core.service import Service
from memfsd.host.effect_runner import PAUSE_S, EffectRunner
from memfsd.host.windows import Windows
from memfsd.uapi.errors import PeerLost, Refused
from memfsd.uapi.limits import BRACKET_DEADLINE_S, CHECK_BRACKETS_DEADLINE_S, PROOF_DEADLINE_S
from memfsd.uapi.messages import Empty, InvalidateBegin, InvalidateBeginReply, InvalidateEnd, Kind, Reason
from memfsd.uapi.units import Ino, Pgoff, Seq

from .process import PeerProcess
from .upchannel import PeerSilent, UpChannel

log = logging.getLogger("memfsd.peers")

Ranges = list[tuple[Pgoff, Pgoff]]
Finish = Callable[[Regular], None]


def _nothing(file: Regular) -> None:
    pass


@dataclass(slots=True, eq=False)
class Peer:
    """The live VM of one file: how to call it, and how to know that it is dead."""

    ino: Ino
    vm: str
    up: UpChannel
    process: PeerProcess
    hang_up: Callable[[], None]
    """Shut both channels, so that the session's thread sees the end."""
    said_bye: bool = False
    """The VM let go of everything: that acknowledges whatever is asked of it."""


class Invalidator:
    """Takes memory back from VMs. `peers` is guarded by Service.lock."""

    def __init__(self, service: Service, windows: Windows, runner: EffectRunner, journal: Journal = NO_JOURNAL) -> None:
        self._service = service
        self._windows = windows
        self._runner = runner
        self.journal = journal
        self.peers: dict[Ino, Peer] = {}

    @contextlib.contextmanager
    def hold(self, guest: Guest) -> Iterator[None]:
        """The file's invalidate_lock. EBUSY when another invalidation does not end in time."""
        if not guest.invalidate_lock.acquire(timeout=BRACKET_DEADLINE_S):
            raise Refused(errno.EBUSY, "another invalidation of this file does not end")
        try:
            yield
        finally:
            guest.invalidate_lock.release()

    @contextlib.contextmanager
    def hold_all(self, files: list[Regular]) -> Iterator[list[Regular]]:
        """The invalidate_locks of many files, in the order of inode numbers; yields the files whose lock came in time.

        Nobody else waits for one while holding one, so no ring of waiters can close.
        """
        until = time.monotonic() + CHECK_BRACKETS_DEADLINE_S
        held: list[Regular] = []
        try:
            for file in sorted(files, key=lambda file: file.ino):
                if guest_of(file).invalidate_lock.acquire(timeout=max(until - time.monotonic(), 0)):
                    held.append(file)
            yield held
        finally:
            for file in held:
                guest_of(file).invalidate_lock.release()

    def invalidate(self, ino: Ino, start: Pgoff, end: Pgoff, reason: Reason, finish: Finish = _nothing) -> None:
        """Take pages [start, end) out of the file and of its VM; free them; only then return.

        finish runs with Service.lock held, in the same step as the end of the invalidation. ETIMEDOUT when the VM
        lives but did not acknowledge: it is cut off and its frames are quarantined.
        """
        with self._service.lock:
            file = self._service.inodes.regular(ino)
        with self.hold(guest_of(file)):
            self._invalidate(file, start, end, reason, finish)

    def invalidate_unpaired(
        self, ino: Ino, start: Pgoff, end: Pgoff, reason: Reason, finish: Finish = _nothing
    ) -> bool:
        """`invalidate` of a file without a live VM, which waits for nobody. False, and nothing done, if it might."""
        with self._service.lock:
            file = self._service.inodes.regular(ino)
        lock = guest_of(file).invalidate_lock
        if not lock.acquire(blocking=False):
            return False
        try:
            if guest_of(file).active is not None:  # BIND, too, needs the lock: none can come from here on
                return False
            self._invalidate(file, start, end, reason, finish)
            return True
        finally:
            lock.release()

    def _invalidate(self, file: Regular, start: Pgoff, end: Pgoff, reason: Reason, finish: Finish) -> None:
        with self._service.lock:
            closing = self._service.gmem.invalidate_begin(file, start, end, reason)
            peer = self.peers.get(file.ino) if closing.upcall else None
        kept: Ranges = []
        silent: PeerLost | None = None
        try:
            if peer is not None:
                kept, silent = self._begin(peer, file, closing)
            # What the guest has touched is memory in its window, also where its VM shows it nowhere just now: under
            # an overlay, or in the middle of a conversion that may yet be taken back.
            touched = self._windows.populated(file.ino) if reason is Reason.RECLAIM else []
            with self._service.lock:
                scrub = self._service.gmem.unmap(file, kept, touched)
            while scrub is not None:
                self._runner.perform([scrub])
                if closing.taken_to == closing.end:
                    break
                time.sleep(PAUSE_S)
                with self._service.lock:
                    scrub = self._service.gmem.unmap(file, kept, touched)
        finally:
            with self._service.lock:
                finish(file)
                seq = self._service.gmem.invalidate_end(file)
            if peer is not None and silent is None:
                self._end(peer, closing, seq)
        if silent is not None:
            raise Refused(errno.ETIMEDOUT, f"VM {peer and peer.vm} did not acknowledge: {silent}")

    def disconnect(self, peer: Peer, why: str) -> None:
        """Cut off a VM that lives but broke its word. Call with the file's invalidate_lock held."""
        self.journal.note("cut", vm=peer.vm, ino=peer.ino, why=why)
        log.warning("VM %s (process %d) is cut off: %s", peer.vm, peer.process.pid, why)
        with self._service.lock:
            file = self._service.inodes.regular(peer.ino)
            effects = self._service.gmem.disconnect(file) if guest_of(file).active is not None else []
        peer.hang_up()
        self._runner.perform(effects)

    def exited(self, peer: Peer) -> None:
        """It said BYE, or its death is proven: for the journal, before anything is done because of it."""
        self.journal.note("gone", vm=peer.vm, ino=peer.ino, pid=peer.process.pid, said_bye=peer.said_bye)

    def _begin(self, peer: Peer, file: Regular, closing: Invalidation) -> tuple[Ranges, PeerLost | None]:
        """What the VM keeps, and its silence if it lives and does not answer. A proven death acknowledges."""
        body = InvalidateBegin(closing.start, closing.end, closing.seq, closing.reason)
        try:
            kept = peer.up.call(Kind.INVALIDATE_BEGIN, body, InvalidateBeginReply).kept
            return [(Pgoff(low), Pgoff(high)) for low, high in kept], None
        except PeerLost as lost:
            patience = 0 if isinstance(lost, PeerSilent) else PROOF_DEADLINE_S
            if peer.said_bye or peer.process.wait_dead(patience):
                self.exited(peer)
                return [], None
            self.disconnect(peer, str(lost))
            return [], lost

    def _end(self, peer: Peer, closing: Invalidation, seq: Seq) -> None:
        try:
            peer.up.call(Kind.INVALIDATE_END, InvalidateEnd(closing.start, closing.end, seq), Empty)
        except PeerSilent as silent:
            self.disconnect(peer, str(silent))
        except PeerLost:
            if not peer.said_bye:  # else it waits for the answer to that
                peer.hang_up()
