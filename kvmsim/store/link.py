"""One pairing with the store: the down channel to ask, and a thread that serves the up channel.

The up thread makes no down-call and no system call on the mount, so that the store can always take memory
back, whatever this process waits for.
"""

import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar, cast

from kvmsim.memory.memory import DeviceMemory, OpenWindow, WindowMemory, punch_file, set_file_attributes
from memfsd.common import packets, sync, trace
from memfsd.common.mounts import Mount, check_serves, mount_of
from memfsd.common.quote import quoted
from memfsd.common.sockets import peer_of, receive_with_fds
from memfsd.uapi import messages as m
from memfsd.uapi.abi import Abi, GmemFlag
from memfsd.uapi.errors import NO_RESOURCES, PeerLost, Refused, errno_name, one_line
from memfsd.uapi.framing import (
    NOT_LET_IN,
    BadBody,
    decode_failure,
    decode_header,
    decode_reply,
    decode_request,
    decode_success,
    encode_failure,
    encode_reply,
    encode_request,
)
from memfsd.uapi.gmem_ioctls import ATTRIBUTE_PRIVATE, MemoryAttributes2
from memfsd.uapi.limits import ANSWER_DEADLINE_S, MAX_PACKET_BYTES
from memfsd.uapi.messages import Kind
from memfsd.uapi.names import XATTR_SEALS, XATTR_SOCKET, XATTR_TOKEN
from memfsd.uapi.pairing import State, next_state
from memfsd.uapi.proof import KVM, NONCE_BYTES, STORE, Token, prove, proves, split_token
from memfsd.uapi.units import PAGE_SHIFT, Gfn, HostPfn, Pfn, Pgoff, PgoffRange

from .page_map import PageMap

_B = TypeVar("_B", bound=m.Body)
_GET_PFN = Kind.GET_PFN
log = logging.getLogger("kvmsim.store")


class FileId(NamedTuple):
    """What makes two fds the same file."""

    device: int
    inode: int


class Callbacks(Protocol):
    """What the store may call: the machine's half of the "function pointers". Runs on the up thread."""

    secret: bytes
    """Of the VM: who says it again may come back to a file after BYE."""
    open_window: OpenWindow
    """How the VM maps a window."""
    operations: frozenset[Kind]
    """What the store may call, as HELLO says."""
    abi: Abi
    """Of the VM: the mount's must be the same."""

    def on_begin(self, link: "StoreLink", begin: m.InvalidateBegin) -> list[PgoffRange]:
        """Zap, flush, get every vCPU out once; what the guest keeps (RECLAIM)."""

    def on_move(self, link: "StoreLink", move: m.Move) -> list[PgoffRange]:
        """Block, flush, get every vCPU out once, copy; what stays in its old frames. EINVAL (Refused): what it asks for
        cannot be, and nothing was done."""

    def on_end(self, link: "StoreLink", end: m.InvalidateEnd) -> None: ...

    def on_swap_out(self, link: "StoreLink", pages: list[tuple[Pgoff, Pfn]]) -> tuple[list[bytes], list[Pgoff]]:
        """Pages that the open invalidation covers leave: their blobs, and those that are holes. Refused: none does."""

    def on_swap_in(self, link: "StoreLink", pgoff: Pgoff, pfn: Pfn, blobs: list[bytes]) -> None:
        """They come back, into the frames from pfn on. Refused: none does."""

    def on_report(self, link: "StoreLink", cursor: Gfn) -> m.ReportReply: ...

    def on_lost(self, link: "StoreLink", why: str) -> None:
        """The store is gone: zap everything that came from it."""


class StoreLink:
    """A sealed file that belongs to this VM. `_lock` guards the down channel: one request at a time."""

    def __init__(
        self,
        fd: int,
        down: socket.socket,
        token: Token,
        vm: str,
        callbacks: Callbacks,
        punch: Callable[[int, int, int], None] = punch_file,
        convert: Callable[[int, MemoryAttributes2], None] = set_file_attributes,
    ) -> None:
        """HELLO and PAIR on a connected socket; takes the socket at once and the fd when all went well.

        punch: gives bytes of the file behind an fd back, as fallocate(2) on the mount does. convert: sets attributes
        of it, as KVM_SET_MEMORY_ATTRIBUTES2 does.

        Refused with the store's errno (EPERM: the file belongs to another VM), or with that of what this process has
        no more of: then the store got BYE. PeerLost when it breaks off.
        """
        self.fd = fd
        status = os.fstat(fd)
        self.file = FileId(status.st_dev, status.st_ino)
        self.lost = ""
        """Why the store is gone; "" while it is there."""
        self._vm = quoted(vm)
        self._vm_name = vm
        self._callbacks = callbacks
        self._punch = punch
        self._convert = convert
        self._ends = False
        """BYE is said: its answer comes after the end of the up channel."""
        self._lock = sync.lock("StoreLink.lock")
        self._next_id = 1
        self.request_count = 0
        self.callback_count = 0
        self.user_count = 0
        """What user space has asked of the file: punches and conversions."""
        self._buffer = bytearray(MAX_PACKET_BYTES)
        self._down = packets.down(sync.channel(down, "vm.down"), trace.vm)
        self.conn = packets.number_of(self._down)
        try:
            self.memory, up, self.page_map, reply = self._greet(vm, token)
            self._up = packets.up(self._down, up)
        except BaseException:
            self._down.close()
            raise
        self.size = reply.size_bytes
        self.ino = reply.ino
        """The file's number in the store; `file` is what it is on this host, `conn` what it is in the journal."""
        self.order = reply.order
        """The file's page size, and so the largest leaf that may show it."""
        self.gmem_flags = GmemFlag(reply.flags)
        """Of the creation of a guest_memfd."""
        self.punch_order = reply.punch_order
        """The smallest part of the file that the store takes back."""
        self.seq = reply.seq
        """The file's invalidation sequence number, as the last END said."""
        self.found_count = 0
        """Runs that the page map had: messages that were not needed."""
        self.frame_count = self.memory.frame_count
        self.base = HostPfn(0)
        """First frame number of the window in the VM's PhysMap; set by the machine."""
        self._thread = sync.thread(self._serve_up, f"up-{self.file.inode}")

    def start(self) -> None:
        """Serve the up channel from now on. EAGAIN when there are no more threads."""
        try:
            self._thread.start()
        except RuntimeError:
            raise Refused(
                errno.EAGAIN, "no thread is left to serve the store's calls: end some, or raise ulimit -u"
            ) from None
        log.info("VM %s is paired with inode %d, of %d bytes", self._vm, self.ino, self.size)

    @property
    def message_count(self) -> int:
        """Requests and callbacks that were answered, and what user space has asked of the file."""
        return self.request_count + self.callback_count + self.user_count

    # -- down: kvmsim asks

    def bind(self, slot: int, gfn: Gfn, pgoff: Pgoff, page_count: int) -> None:
        self._ask(Kind.BIND, m.Bind(slot, gfn, pgoff, page_count), m.Empty)

    def unbind(self, pgoff: Pgoff, page_count: int) -> None:
        self._ask(Kind.UNBIND, m.Unbind(pgoff, page_count), m.Empty)

    def get_pfn(self, pgoff: Pgoff, max_pages: int, order: int = 0) -> m.GetPfnReply:
        """A granted run, all of it in the window; for a leaf of this order, if there is one. Refused with the store's
        errno; PeerLost when it is gone."""
        granted = self._ask(_GET_PFN, m.GetPfn(pgoff, max_pages, order), m.GetPfnReply)
        if granted.pfn + granted.page_count > self.frame_count:
            raise self._broken(f"the store granted {granted.page_count} frames at {granted.pfn:#x}: not in the window")
        return granted

    @trace.hot(
        trace.Side.VM,
        after=(
            trace.Instrument.frames_found,
            lambda to, found, link, pgoff, max_pages, order=0: (
                found
                and to.frames_found(link._vm_name, link.ino, link.conn, pgoff, found.pfn, found.page_count, found.seq)
            ),
        ),
    )
    def find(self, pgoff: Pgoff, max_pages: int) -> m.GetPfnReply | None:
        """`get_pfn` of what the page map has, without a message. None: ask. To be called after the fault's sequence
        number was read, which says what the answer is worth."""
        page_map = self.page_map
        if page_map is None or self.lost:
            return None
        seq = self.seq
        found = page_map.lookup(pgoff, max_pages, seq)
        if found is None:
            return None
        pfn, page_count, order = found
        if pfn + page_count > self.frame_count:
            raise self._broken(f"the page map has {page_count} frames at {pfn:#x}: not in the window")
        self.found_count += 1
        return m.GetPfnReply(pfn, page_count, order, seq)

    def attributes(self, pgoff: Pgoff) -> tuple[bool, int]:
        """Whether a page of a guest_memfd is private, and how many from it on are alike."""
        reply = self._ask(Kind.ATTRIBUTES, m.Attributes(pgoff), m.AttributesReply)
        return bool(reply.private), reply.page_count

    def punch(self, pgoff: Pgoff, page_count: int) -> None:
        """fallocate(PUNCH_HOLE | KEEP_SIZE): user space gives pages of the file back. Refused with its errno."""
        self._punch(self.fd, pgoff << PAGE_SHIFT, page_count << PAGE_SHIFT)
        self.user_count += 1

    def convert(self, pgoff: Pgoff, page_count: int, *, private: bool) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES2: user space makes pages of the file private, or shared. Refused with its errno."""
        attributes = ATTRIBUTE_PRIVATE if private else 0
        self._convert(self.fd, MemoryAttributes2(pgoff << PAGE_SHIFT, page_count << PAGE_SHIFT, attributes))
        self.user_count += 1

    def stat(self) -> m.StatReply:
        return self._ask(Kind.STAT, m.Empty(), m.StatReply)

    def close(self) -> None:
        """BYE: the store has freed all frames when it returns. No vCPU may use the window any more."""
        self._ends = True
        was_lost = self.lost
        with contextlib.suppress(PeerLost, Refused):
            self._ask(Kind.BYE, m.Empty(), m.Empty)
        self.lost = "closed"
        for sock in (self._down, self._up):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join(ANSWER_DEADLINE_S)
        self._down.close()
        self._up.close()
        self.memory.close()
        self.page_map = None  # unmapped with its last reader
        os.close(self.fd)
        if not was_lost:
            log.info("VM %s is no longer paired with inode %d: BYE", self._vm, self.ino)

    def _ask(self, kind: Kind, body: m.Body, reply: type[_B]) -> _B:
        self._lock.acquire()  # not `with`, which takes twice as long: a fault asks
        try:
            if self.lost:
                raise PeerLost(self.lost)
            id_ = self._next_id
            self._next_id = id_ % 0xFFFFFFFF + 1
            try:
                self._down.send(encode_request(id_, kind, body))
                size = self._down.recv_into(self._buffer, 0, socket.MSG_TRUNC)
            except BlockingIOError:
                raise self._broken(f"the store does not answer {kind.name}") from None
            except OSError as error:
                raise self._last_words() or self._broken(f"the store is gone: {error.strerror}") from None
            if not 0 < size <= MAX_PACKET_BYTES:
                raise self._broken("the store is gone" if size == 0 else f"the store sent {size} bytes")
            try:
                answer = decode_success(self._buffer, size, id_, kind)
                if answer is None:
                    raise self._refusal(self._buffer[:size], id_, kind)
            except BadBody as error:
                raise self._broken(str(error)) from None
            self.request_count += 1
            assert isinstance(answer, reply)
            return answer
        finally:
            self._lock.release()

    def _refusal(self, packet: bytearray, id_: int, kind: Kind) -> Refused | PeerLost:
        """What a packet that is no success means; BadBody when it has no reason."""
        header = decode_header(packet)
        if header.id == NOT_LET_IN and kind is Kind.HELLO and header.is_reply and header.errno:
            return Refused(header.errno, one_line(decode_failure(packet).reason))
        if header.id != id_ or header.kind is not kind or not header.is_reply:
            return self._broken(f"the store answered {header.kind.name} {header.id} to {kind.name} {id_}")
        self.request_count += 1
        reason = one_line(decode_failure(packet).reason)
        log.debug(
            "VM %s: the store refuses %s %d with %s: %s", self._vm, kind.name, id_, errno_name(header.errno), reason
        )
        return Refused(header.errno, reason)

    def _last_words(self) -> Refused | None:
        """A store that has no place for us says so and hangs up, before or after our first request reaches it."""
        if self._next_id != 2:
            return None
        try:
            size = self._down.recv_into(self._buffer, 0, socket.MSG_TRUNC)
            said = self._refusal(self._buffer[:size], NOT_LET_IN, Kind.HELLO)
        except (BadBody, OSError, PeerLost):
            return None
        return said if isinstance(said, Refused) else None

    def _broken(self, why: str) -> PeerLost:
        """The connection cannot be used any more; the up thread sees its end and calls on_lost."""
        self.lost = why
        for sock in (self._down, getattr(self, "_up", None)):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        return PeerLost(why)

    def _greet(self, vm: str, token: Token) -> tuple[WindowMemory, socket.socket, PageMap | None, m.PairReply]:
        nonce = os.urandom(NONCE_BYTES)
        abi, operations = self._callbacks.abi.name, [int(kind) for kind in sorted(self._callbacks.operations)]
        hello = m.Hello(m.PROTOCOL_VERSION, m.Role.GUEST, vm, operations, token.id, nonce, abi)
        store = self._ask(Kind.HELLO, hello, m.HelloReply)
        if not proves(store.proof, STORE, token, nonce, store.nonce):
            raise Refused(
                errno.EPERM,
                "what listens there is not the store of this file, whose token it cannot prove: mount again",
            )
        pair = m.Pair(prove(KVM, token, nonce, store.nonce), self._callbacks.secret)
        try:
            self._down.send(encode_request(self._next_id, Kind.PAIR, pair))
            packet, fds, dropped = _receive_fds(self._down)
        except BlockingIOError:
            raise PeerLost("the store does not answer PAIR") from None
        except OSError as error:
            raise PeerLost(f"the store is gone: {error.strerror}") from None
        try:
            header = decode_header(packet)
            if header.errno:
                raise Refused(header.errno, one_line(decode_failure(packet).reason))
            reply = cast(m.PairReply, decode_reply(Kind.PAIR, packet))
            if (
                header.id != self._next_id
                or header.kind is not Kind.PAIR
                or (len(fds) != _fd_count(reply) and not dropped)
            ):
                raise PeerLost("the store's answer to PAIR is malformed")
        except (BadBody, PeerLost, Refused):
            for fd in fds:
                os.close(fd)
            raise
        self._next_id += 1
        try:
            return *self._open(fds, reply), reply
        except Refused:
            with contextlib.suppress(PeerLost, Refused):
                self._ask(Kind.BYE, m.Empty(), m.Empty)
            raise

    def _open(self, fds: list[int], reply: m.PairReply) -> tuple[WindowMemory, socket.socket, PageMap | None]:
        """The window, the up channel and the page map, from the fds that came with PAIR; takes them."""
        if len(fds) != _fd_count(reply):
            for fd in fds:
                os.close(fd)
            raise Refused(errno.EMFILE, "no file descriptors are left for its window: close some, or raise ulimit -n")
        try:
            page_map = self._open_page_map(fds[2], reply.map_pages) if reply.map_pages else None
        except PeerLost:
            os.close(fds[0])
            os.close(fds[1])
            raise
        try:
            up = sync.channel(_up_channel(fds[1]), "vm.up")
        except PeerLost:
            os.close(fds[0])
            raise
        try:
            is_device = reply.memory_type is m.MemoryType.UC
            opened = DeviceMemory if is_device else self._callbacks.open_window
            return opened(fds[0], reply.window_frames), up, page_map
        except BaseException:
            up.close()
            raise

    def _open_page_map(self, fd: int, page_count: int) -> PageMap | None:
        try:
            return PageMap(fd, page_count)
        except OSError as error:
            log.info("VM %s reads no page map, and asks for each page: %s", self._vm, error.strerror)
            return None

    # -- up: the store calls

    def _serve_up(self) -> None:
        buffer = bytearray(MAX_PACKET_BYTES)
        view = memoryview(buffer)
        state = State.UP_OPEN
        why = "the store is gone"
        asked = ""
        try:
            while state is not State.ENDED:
                size = self._up.recv_into(buffer, 0, socket.MSG_TRUNC)
                if not 0 < size <= MAX_PACKET_BYTES:
                    break
                header = decode_header(view[:size])
                following = next_state(state, header.kind)
                asked = header.kind.name
                if header.is_reply:
                    raise PeerLost(f"a reply to {header.kind.name} that answers no request")
                answer, ok = self._answer(header.id, header.kind, view[:size], legal=following is not None)
                self._up.send(answer)
                asked = ""
                self.callback_count += 1
                if ok and following is not None:
                    state = following
        except PeerLost as lost:
            why = str(lost)
        except OSError as error:
            late = f"{asked} was not answered in time" if asked else str(error.strerror)
            why = f"the store cut this VM off: {late}"
        finally:
            if not self.lost:
                self.lost = why
            if not self._ends:
                log.info("VM %s lost the store of inode %d: %s", self._vm, self.ino, self.lost)
                if trace.vm is not None:
                    trace.vm.pairing_lost(self._vm_name, self.ino, self.lost)
            self._callbacks.on_lost(self, self.lost)
            for sock in () if self._ends else (self._down, self._up):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _refuse(self, id_: int, kind: Kind, number: int, why: str) -> bytes:
        log.info(
            "VM %s refuses %s %d of inode %d with %s: %s", self._vm, kind.name, id_, self.ino, errno_name(number), why
        )
        return encode_failure(id_, kind, number, why)

    def _answer(self, id_: int, kind: Kind, packet: memoryview, *, legal: bool) -> tuple[bytes, bool]:
        if kind not in self._callbacks.operations:
            return self._refuse(id_, kind, errno.EOPNOTSUPP, f"{kind.name} is not an operation of this KVM"), False
        if not legal:
            return self._refuse(id_, kind, errno.EPROTO, f"{kind.name} is not legal now"), False
        try:
            body = decode_request(kind, packet)
        except BadBody as error:
            return self._refuse(id_, kind, errno.EINVAL, str(error)), False
        try:
            return encode_reply(id_, kind, self._do(body)), True
        except Refused as refused:
            return self._refuse(id_, kind, refused.errno, refused.reason), False

    def _do(self, body: m.Body) -> m.Body:
        reply: m.Body = m.Empty()
        if isinstance(body, m.InvalidateBegin):
            reply = m.InvalidateBeginReply([*self._callbacks.on_begin(self, body)])
            log.debug(
                "VM %s gave back pages %#x-%#x of inode %d (%s) but for %d ranges",
                *(self._vm, body.start, body.end, self.ino, body.reason.name, len(reply.kept)),
            )
        elif isinstance(body, m.Move):
            reply = m.MoveReply([*self._callbacks.on_move(self, body)])
            log.debug("VM %s moved pages %#x-%#x of inode %d", self._vm, body.start, body.end, self.ino)
        elif isinstance(body, m.InvalidateEnd):
            self._callbacks.on_end(self, body)
            log.debug("VM %s: the invalidation of inode %d is over, sequence %d", self._vm, self.ino, body.seq)
        elif isinstance(body, m.Revoke):
            self.lost = f"the store revoked the pairing: {one_line(body.reason)}"
            self._callbacks.on_lost(self, self.lost)
        elif isinstance(body, m.Report):
            reply = self._callbacks.on_report(self, Gfn(body.cursor))
        elif isinstance(body, m.SwapOut):
            pages = [(Pgoff(at), Pfn(pfn)) for at, pfn in body.pages]
            blobs, holes = self._callbacks.on_swap_out(self, pages)
            reply = m.SwapOutReply(blobs, [int(pgoff) for pgoff in holes])
        elif isinstance(body, m.SwapIn):
            self._callbacks.on_swap_in(self, Pgoff(body.pgoff), Pfn(body.pfn), body.blobs)
        return reply


def pair(fd: int, vm: str, callbacks: Callbacks) -> StoreLink:
    """Pair with the store of the file behind fd, and take the fd when all went well.

    EINVAL the file is not sealed for a guest; EPERM it belongs to another VM, or who listens is not its store;
    EHOSTDOWN its store is gone.
    """
    mount, path = store_of_sealed(fd)
    try:
        token = split_token(os.getxattr(fd, XATTR_TOKEN))
    except ValueError as error:
        raise Refused(
            errno.EPROTONOSUPPORT,
            f"{error}: the memfsd of this file has another version: use the same version of both",
        ) from None
    down = _connect(path)
    try:
        check_serves(mount, peer_of(down).uid, path)
    except Refused:
        down.close()
        raise
    return StoreLink(fd, down, token, vm, callbacks)


def store_of_sealed(file: int | str) -> tuple[Mount, str]:
    """The mount of a sealed file, and where its store listens; EINVAL when it is not guest private memory."""
    try:
        mount = mount_of(file)
        seals = os.getxattr(file, XATTR_SEALS).split(b",")
        path = os.fsdecode(os.getxattr(file, XATTR_SOCKET))
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise Refused(errno.EHOSTDOWN, "the store of this file is gone: mount again, and use a new file") from None
        if error.errno in NO_RESOURCES:
            raise
        raise Refused(
            errno.EINVAL, "not a file on a memfsd mount that can be guest memory: use a regular file"
        ) from None
    if b"guest" not in seals:
        raise Refused(errno.EINVAL, "the file is not sealed for a guest: setfattr -n user.memfsd.seals -v guest")
    return mount, path


def _connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    timeval = struct.pack("ll", int(ANSWER_DEADLINE_S), 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise Refused(errno.EHOSTDOWN, f"no memfsd listens at {quoted(path)}: {error.strerror}: mount again") from None
    return sock


def _fd_count(reply: m.PairReply) -> int:
    return 3 if reply.map_pages else 2


def _up_channel(fd: int) -> socket.socket:
    """Takes the fd. PeerLost when it is no socket that keeps messages apart."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        os.close(fd)
        raise PeerLost(f"the store passed an up channel that is not a socket: {error.strerror}") from None
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        sock.close()
        raise PeerLost("the store passed an up channel of another kind of socket")
    return sock


def _receive_fds(sock: socket.socket) -> tuple[bytes, list[int], bool]:
    """One packet and at most three fds, close-on-exec, and whether the kernel dropped one because this process has no
    room for it. More fds, or a cut packet, is a broken peer."""
    packet, fds, flags = receive_with_fds(sock, MAX_PACKET_BYTES, 3)
    dropped = bool(flags & socket.MSG_CTRUNC) and len(fds) < 3
    if not packet or flags & socket.MSG_TRUNC or (flags & socket.MSG_CTRUNC and not dropped):
        for fd in fds:
            os.close(fd)
        raise PeerLost("the store is gone" if not packet else "the store's answer to PAIR is malformed")
    return packet, fds, dropped
