"""A peer's process, and the proof of its death."""

import os
import select
import socket

from memfsd.common import sync
from memfsd.common.sockets import peer_of

_SO_PEERPIDFD = 77  # linux/asm-generic/socket.h; Linux 6.5 and later


class PeerProcess:
    """Who connected, held by pidfd so that the number cannot come to mean another process."""

    def __init__(self, connection: socket.socket) -> None:
        """OSError (ESRCH) when the process is gone already."""
        self.pid, self.uid, self.gid = peer_of(connection)
        try:
            self._pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        except OSError:
            self._pidfd = os.pidfd_open(self.pid)

    def wait_dead(self, timeout_s: float | None, stop_fd: int | None = None) -> bool:
        """True once the process has ended; False at the timeout or when stop_fd becomes readable."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if stop_fd is not None:
            poll.register(stop_fd, select.POLLIN)
        ready = sync.poll(poll, None if timeout_s is None else timeout_s * 1000, "PeerProcess.wait_dead")
        return any(fd == self._pidfd for fd, _ in ready)

    def close(self) -> None:
        os.close(self._pidfd)
