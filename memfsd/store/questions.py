"""VMs asked to give memory back in parallel, each on a separate thread.

A caller waits as long as it chooses and continues with what has been freed. Requests in progress continue, and end by
their own deadlines.
"""

import logging
from collections.abc import Callable

from memfsd.common import sync
from memfsd.core.files.shares import Shares
from memfsd.uapi.limits import MAX_RECLAIMS, MAX_RECLAIMS_PER_UID, RESERVED_RECLAIMS
from memfsd.uapi.units import Ino

from .peer import Peer

log = logging.getLogger("memfsd.peers")


class Questions:
    """Requests of one kind, at most one per file. The caller holds `lock`, which is taken before Service.lock."""

    def __init__(self, name: str, owner_uid: int) -> None:
        """name: of the threads. owner_uid: who mounted."""
        self.lock = sync.lock("Questions.lock")
        self._name = name
        self._answered = sync.condition("Questions.answered", self.lock)
        self._shares = Shares(MAX_RECLAIMS, MAX_RECLAIMS_PER_UID, RESERVED_RECLAIMS, owner_uid)
        """Of threads, by the user whose VM is asked."""
        self.asked: set[Ino] = set()
        """Files whose VM has not answered yet."""

    def begin(self, peer: Peer, ask: Callable[[], None]) -> bool:
        """False while there are too many under way, of this VM's user or of all."""
        if not self._shares.take(peer.process.uid):
            return False
        self.asked.add(peer.ino)
        try:
            sync.thread(self._run, self._name, (peer, ask)).start()
        except RuntimeError:
            self._settle(peer)
            return False
        return True

    def wait(self, timeout_s: float, ino: Ino | None = None) -> None:
        """Until the VM of this file has answered, or any."""
        if ino is None:
            self._answered.wait(timeout_s)
        else:
            self._answered.wait_for(lambda: ino not in self.asked, timeout_s)

    def _run(self, peer: Peer, ask: Callable[[], None]) -> None:
        try:
            ask()
        except Exception:
            log.exception("%s: inode %d failed", self._name, peer.ino)
        finally:
            with self.lock:
                self._settle(peer)
                self._answered.notify_all()

    def _settle(self, peer: Peer) -> None:
        self.asked.remove(peer.ino)
        self._shares.give(peer.process.uid)
