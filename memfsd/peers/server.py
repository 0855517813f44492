"""The listening socket and all sessions."""

import contextlib
import errno
import logging
import os
import socket
import stat
import threading
import time

from memfsd.common import sync
from memfsd.common.quote import quoted
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

from . import rundir
from .session import Session, refuse

log = logging.getLogger("memfsd.peers")

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


def _listen(path: str) -> socket.socket:
    """A socket file that a dead daemon left is replaced; a live one is not."""
    directory = os.path.dirname(path) or "."
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        if path == rundir.default_socket_path():
            rundir.make_default()
        else:
            os.makedirs(directory, mode=0o755, exist_ok=True)
            rundir.check_chosen(directory)
        _sweep(directory)
        if os.path.lexists(path):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise Refused(
                    errno.EEXIST,
                    f"socket={quoted(path)}: another kind of file is there: remove it, or choose another socket=PATH",
                )
            if _is_live(path):
                raise Refused(
                    errno.EADDRINUSE, f"socket={quoted(path)}: another memfsd listens there: choose another socket=PATH"
                )
            os.unlink(path)
        sock.bind(path)
        os.chmod(path, 0o666)
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise Refused(error.errno or errno.EIO, f"socket={quoted(path)}: {error.strerror or error}") from None
    except Refused:
        sock.close()
        raise
    return sock


def _sweep(directory: str) -> None:
    """Remove the sockets, PID.sock, that daemons left which did not end by themselves."""
    for name in os.listdir(directory):
        pid, _, suffix = name.partition(".")
        path = os.path.join(directory, name)
        if suffix == "sock" and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            with contextlib.suppress(OSError):
                if not _is_live(path):  # another PID namespace may share the directory
                    os.unlink(path)


def _is_live(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        return True
