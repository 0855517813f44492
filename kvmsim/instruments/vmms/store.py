"""A memfsd in this process, without FUSE: each connection is a session on its own thread.

A file of the store is stood for by a memfd: VMs open that, and `pair` knows by its inode which file is meant.
"""

import contextlib
import errno
import itertools
import os
import socket
import threading

from kvmsim.store.link import Callbacks, FileId, StoreLink
from memfsd.common import sync
from memfsd.core.files.inodes import ROOT_INO
from memfsd.core.files.namespace import Creds
from memfsd.core.options import StoreOptions
from memfsd.peers.session import Session
from memfsd.peers.upchannel import set_deadline
from memfsd.store.deadlines import Deadlines
from memfsd.store.store import build_store
from memfsd.uapi.abi import Abi
from memfsd.uapi.errors import Refused
from memfsd.uapi.gmem_ioctls import CreateGuestMemfd
from memfsd.uapi.limits import ANSWER_DEADLINE_S
from memfsd.uapi.names import XATTR_TOKEN
from memfsd.uapi.proof import split_token
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SIZE, Ino, Pgoff


class LocalStore:
    """Close its VMs first, then it."""

    def __init__(self, frame_count: int, abi: Abi) -> None:
        self._creds = Creds(os.geteuid(), os.getegid())
        self._store = build_store(
            StoreOptions(pool_bytes=frame_count * PAGE_SIZE, abi=abi),
            root_mode=0o755,
            creds=self._creds,
            socket_path="",
            # A VM in this process is never proven dead: no long wait for that.
            deadlines=Deadlines(proof_s=0.0),
            now_ns=itertools.count(1).__next__,
        )
        self._is_sized_at_creation = abi.is_sized_at_creation
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)
        self._sessions: list[threading.Thread] = []
        self._stand_ins: list[int] = []
        self._by_file: dict[FileId, Ino] = {}
        self._is_dead = False

    def create(self, name: str, page_count: int) -> tuple[Ino, str]:
        """A private file: its number in the store, and the path that a VM opens."""
        files = self._store.files
        opened, shown = files.create(ROOT_INO, name.encode(), 0o600, os.O_WRONLY, self._creds)
        if self._is_sized_at_creation:
            self._store.guest_memfds.create(shown.ino, opened.handle, CreateGuestMemfd(page_count * PAGE_SIZE, 0))
        files.release(opened.handle).run()
        if not self._is_sized_at_creation:
            files.add_seals(shown.ino, Seal.GUEST).run()
            files.truncate(shown.ino, page_count * PAGE_SIZE).run()
        stand_in = self._stand_in(name, shown.ino)
        os.truncate(stand_in, page_count * PAGE_SIZE)
        return shown.ino, f"/proc/self/fd/{stand_in}"

    def _stand_in(self, name: str, ino: Ino) -> int:
        """An empty memfd."""
        made = os.memfd_create(f"vmms-{name}", os.MFD_CLOEXEC)
        self._stand_ins.append(made)
        self._by_file[_id(made)] = ino
        return made

    def allocate(self, ino: Ino, page_count: int) -> None:
        """fallocate(2) of a file's first pages. ENOSPC when the pool is full."""
        self._store.files.allocate(ino, 0, page_count * PAGE_SIZE).run()

    def punch(self, ino: Ino, pgoff: Pgoff, page_count: int) -> None:
        """fallocate(PUNCH_HOLE) by somebody on the host."""
        self._store.files.punch(ino, pgoff * PAGE_SIZE, page_count * PAGE_SIZE).run()

    def held(self, ino: Ino, page_count: int) -> list[Pgoff]:
        """Which of a file's pages have a frame."""
        service = self._store.service
        with service.lock:
            pages = service.inodes.regular(ino).pages
            return [pgoff for pgoff in map(Pgoff, range(page_count)) if pages.lookup(pgoff) is not None]

    @property
    def free_count(self) -> int:
        """Frames of the pool that are nobody's."""
        with self._store.service.lock:
            return self._store.service.pool.free_count

    def pair(self, fd: int, vm: str, callbacks: Callbacks) -> StoreLink:
        """For Kvm, in the place of kvmsim.store.link.pair."""
        token = split_token(self._store.files.getxattr(self._by_file[_id(fd)], XATTR_TOKEN))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        set_deadline(theirs, ANSWER_DEADLINE_S)
        session = sync.thread(Session(ours, os.getuid(), self._store, self._stop_read).run, f"session-{fd}")
        self._sessions.append(session)
        session.start()
        return StoreLink(fd, theirs, token, vm, callbacks, self._punch_fd)

    def _punch_fd(self, fd: int, offset: int, length: int) -> None:
        """What fallocate(2) does on a mount. ENOTCONN when the store is dead, as FUSE answers."""
        if self._is_dead:
            raise Refused(errno.ENOTCONN, "the store is dead")
        self._store.files.punch(self._by_file[_id(fd)], offset, length).run()

    def die(self) -> None:
        """Every connection ends, as when memfsd is killed."""
        self._is_dead = True
        for peer in list(self._store.invalidator.peers.values()):
            peer.hang_up()
            peer.up.shut()

    @property
    def is_alone(self) -> bool:
        """It has settled the end of every connection: no file has a VM."""
        with self._store.service.lock:
            sealed = [file.guest for file in self._store.service.inodes.sealed_files()]
        return all(file is None or file.active is None for file in sealed)

    def close(self) -> None:
        os.close(self._stop_write)
        for session in self._sessions:
            session.join(ANSWER_DEADLINE_S)
        self._store.close()
        os.close(self._stop_read)
        for fd in self._stand_ins:
            with contextlib.suppress(OSError):
                os.close(fd)


def _id(fd: int) -> FileId:
    status = os.fstat(fd)
    return FileId(status.st_dev, status.st_ino)
