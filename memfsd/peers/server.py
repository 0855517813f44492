"""The listening socket and all sessions."""

import contextlib
import errno
import logging
import os
import socket
import threading
import time

from memfsd.common import sync
from memfsd.common.quote import quoted
from memfsd.common.rundir import RuntimeDirectory
from memfsd.common.sockets import peer_of
from memfsd.store.peer import Peer
from memfsd.store.store import Store
from memfsd.uapi.errors import NO_RESOURCES, PeerLost, Refused
from memfsd.uapi.limits import (
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_UID,
    MAX_UNPAIRED_PER_UID,
    RESERVED_CONNECTIONS,
    REVOKE_DEADLINE_S,
)
from memfsd.uapi.messages import Empty, Kind, Revoke
from memfsd.uapi.names import FSTYPE

from .session import Session, refuse

log = logging.getLogger("memfsd.peers")

SOCKETS = RuntimeDirectory(FSTYPE, "socket=", "sock", socket.SOCK_SEQPACKET, root_mode=0o755)

_STACK_BYTES = 512 * 1024
_STOP_DEADLINE_S = 3.0


class GuestServer:
    """Accepts on its own thread; `_lock` guards `_sessions`."""

    def __init__(self, path: str, store: Store) -> None:
        """Refused names why the socket cannot be made there."""
        self._path = path
        self._store = store
        self._sessions: dict[threading.Thread, Session] = {}
        self._lock = sync.lock("GuestServer.lock")
        self._refusing: set[int] = set()
        """Users whose last connection was refused; the acceptor's own."""
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)
        self._listener = _listen(path)
        self._spare = _spare_fd()
        self._stopped = False
        self._acceptor = sync.thread(self._accept, "accept")

    def start(self) -> None:
        threading.stack_size(_STACK_BYTES)
        self._acceptor.start()

    def stop(self) -> None:
        """Revoke every pairing, end every session, remove the socket. Bounded by deadlines. Once."""
        if self._stopped:
            return
        self._stopped = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        if self._acceptor.is_alive():
            _join([self._acceptor], _STOP_DEADLINE_S)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self._revoke_all()
        os.close(self._stop_write)
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        with self._lock:
            sessions = dict(self._sessions)
        for session in sessions.values():
            session.stop()
        _join(list(sessions), _STOP_DEADLINE_S)
        if not any(thread.is_alive() for thread in (self._acceptor, *sessions)):
            os.close(self._stop_read)  # nobody polls it any more

    def _revoke_all(self) -> None:
        """Every VM hears it at the same time, so that silent ones take no time from others."""
        threads = [sync.thread(self._revoke, "revoke", (peer,)) for peer in self._store.pairings.peers()]
        for thread in threads:
            try:
                thread.start()
            except RuntimeError:
                break  # no more threads: the others see the end of their connections
        _join([thread for thread in threads if thread.is_alive()], REVOKE_DEADLINE_S)

    def _revoke(self, peer: Peer) -> None:
        if self._store.pairings.is_callable(peer.ino, Kind.REVOKE):  # it, and the file with it, may be gone by now
            with contextlib.suppress(PeerLost):
                peer.up.call(Kind.REVOKE, Revoke("the store is unmounted"), Empty)

    def session_count(self) -> int:
        with self._lock:
            return len(self._sessions)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if error.errno in NO_RESOURCES:
                    spared = self._accept_without_fds(error)
                    if spared is None:
                        continue
                    sock = spared
                elif error.errno in (errno.ECONNABORTED, errno.EPERM):
                    continue
                else:
                    return
            uid = peer_of(sock).uid
            why = self._too_many(uid)
            if why:
                # One line until the next that is let in: who floods does not fill the log, too.
                if uid not in self._refusing:
                    log.warning("a connection of uid %d was refused: %s", uid, why)
                    self._refusing.add(uid)
                refuse(sock, errno.EUSERS, why)
                continue
            self._refusing.discard(uid)
            self._begin(sock, uid)

    def _too_many(self, uid: int) -> str:
        """Why this user gets no connection now; "" for one more."""
        with self._lock:
            sessions = list(self._sessions.values())
        theirs = [session for session in sessions if session.uid == uid]
        if sum(not session.is_paired for session in theirs) >= MAX_UNPAIRED_PER_UID:
            return f"{MAX_UNPAIRED_PER_UID} have not paired yet"
        places = MAX_CONNECTIONS
        if uid not in (0, os.getuid()):
            if len(theirs) >= MAX_CONNECTIONS_PER_UID:
                return f"{MAX_CONNECTIONS_PER_UID} of a user are open"
            places -= RESERVED_CONNECTIONS
        return f"{places} are open" if len(sessions) >= places else ""

    def _accept_without_fds(self, error: OSError) -> socket.socket | None:
        """Over the descriptor that is kept for it, to say why it is not let in; None when that was done."""
        log.warning("a connection was refused: %s", error.strerror)
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        try:
            sock, _ = self._listener.accept()
        except OSError:
            time.sleep(0.1)
            return None
        try:
            self._spare = _spare_fd()
        except OSError:
            refuse(sock, error.errno or errno.ENFILE, f"it has no resources left ({error.strerror})")
            with contextlib.suppress(OSError):
                self._spare = _spare_fd()
            return None
        return sock  # there was one again by the time somebody connected

    def _begin(self, sock: socket.socket, uid: int) -> None:
        session = Session(sock, uid, self._store, self._stop_read)
        thread = sync.thread(self._serve, "session", (session,))
        with self._lock:
            self._sessions[thread] = session
        try:
            thread.start()
        except RuntimeError:
            log.warning("a connection was refused: no more threads")
            with self._lock:
                del self._sessions[thread]
            sock.close()

    def _serve(self, session: Session) -> None:
        try:
            session.run()
        finally:
            with self._lock:
                del self._sessions[threading.current_thread()]


def _spare_fd() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


def _join(threads: list[threading.Thread], deadline_s: float) -> None:
    until = time.monotonic() + deadline_s
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0))


def default_socket_path() -> str:
    return SOCKETS.socket_path(os.getpid())


def _listen(path: str) -> socket.socket:
    """All users pair with files of a mount, so they must reach its socket."""
    directory = os.path.dirname(path) or "."
    try:
        if path == default_socket_path():
            SOCKETS.make()
        else:
            os.makedirs(directory, mode=0o755, exist_ok=True)
            SOCKETS.check_chosen(directory)
        SOCKETS.sweep(directory)
    except OSError as error:
        raise Refused(error.errno or errno.EIO, f"socket={quoted(path)}: {error.strerror or error}") from None
    return SOCKETS.listen(path, 0o666)
