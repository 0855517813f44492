"""One connection, from HELLO to the end of its VM, on its own thread."""

import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from memfsd.common import packets, sync, trace
from memfsd.core.private.gmem_file import Pairing
from memfsd.store.dumps import Dump
from memfsd.store.pairings import PairedFile
from memfsd.store.peer import Peer
from memfsd.store.store import Store
from memfsd.uapi import messages as m
from memfsd.uapi.abi import check_same
from memfsd.uapi.errors import Refused
from memfsd.uapi.framing import (
    HEADER_BYTES,
    NO_BODY,
    NOT_LET_IN,
    REQUEST_DECODERS,
    BadPacket,
    Packet,
    decode_request_header,
    encode_failure,
    encode_reply,
    request_words,
)
from memfsd.uapi.limits import ACK_DEADLINE_S, GREETING_DEADLINE_S, MAX_PACKET_BYTES
from memfsd.uapi.messages import Kind
from memfsd.uapi.pairing import LEGAL, State
from memfsd.uapi.proof import KVM, NONCE_BYTES, STORE, Token, prove, proves
from memfsd.uapi.units import Ino

from .process import PeerProcess
from .upchannel import UpChannel, set_deadline, timeval

log = logging.getLogger("memfsd.peers")

BYE = "BYE"
_SHORT_LIVED = frozenset({State.CONNECTED, State.GREETED, State.OBSERVING})
_ENDED = State.ENDED
_QUESTIONS = frozenset(
    {
        *(Kind.CHECK, Kind.MAP, Kind.LIST, Kind.KCORE, Kind.MEMORY_FAILURE),
        *(Kind.DEVICE_ADD, Kind.DEVICE_REMOVE, Kind.PAGE_OUT, Kind.SWAP_OFF),
        *(Kind.SET_NODE, Kind.COMPACT),
    }
)

_Handler = Callable[[Any], m.Body]
_Step = tuple[Kind, Callable[[Packet], m.Body], _Handler, State]
"""How a request is served: its kind, the decoder of its body, who answers, the state after that."""


class _Claim(NamedTuple):
    """What a guest said in HELLO, and must prove in PAIR."""

    token: Token
    kvm_nonce: bytes
    store_nonce: bytes


class Session:
    """uapi.pairing's table over one socket. Only its own thread touches its fields, but for `stop`."""

    def __init__(
        self,
        sock: socket.socket,
        uid: int,
        store: Store,
        stop_fd: int,
    ) -> None:
        self._sock = packets.down(sync.channel(sock, "store.down"), trace.store)
        self.uid = uid
        self._store = store
        self._stop_fd = stop_fd
        self._hello: m.Hello | None = None
        self._claim: _Claim | None = None
        self._paired: PairedFile | None = None
        self._fds: list[int] = []
        """To send with the next reply."""
        self._sent_away: list[int] = []
        """Those of them that are closed then."""
        self._dump: Dump | None = None
        self._handlers = self._handlers_by_kind()
        self._enter(State.CONNECTED)

    def _handlers_by_kind(self) -> dict[Kind, _Handler]:
        """Each gets a body of its kind's class (messages.REQUESTS)."""
        return {
            Kind.HELLO: self._on_hello,
            Kind.PAIR: self._on_pair,
            Kind.BIND: self._on_bind,
            Kind.UNBIND: self._on_unbind,
            Kind.GET_PFN: self._on_get_pfn,
            Kind.STAT: self._on_stat,
            Kind.ATTRIBUTES: self._on_attributes,
            Kind.PING: lambda _: m.Empty(),
            Kind.BYE: self._on_bye,
            Kind.CHECK: self._on_check,
            Kind.MAP: self._on_map,
            Kind.LIST: self._on_list,
            Kind.KCORE: self._on_kcore,
            Kind.MEMORY_FAILURE: self._on_memory_failure,
            Kind.DEVICE_ADD: self._on_device_add,
            Kind.DEVICE_REMOVE: self._on_device_remove,
            Kind.PAGE_OUT: self._on_page_out,
            Kind.SWAP_OFF: self._on_swap_off,
            Kind.SET_NODE: self._on_set_node,
            Kind.COMPACT: self._on_compact,
        }

    def _enter(self, state: State) -> None:
        if state is State.GREETED and self._hello is not None and self._hello.role is m.Role.OBSERVER:
            state = State.OBSERVING
        self._state, self._short_lived = state, state in _SHORT_LIVED
        # What is legal now, by the word in the header: a fault finds all that it needs in one look-up.
        self._steps: dict[int, _Step] = {
            kind: (kind, REQUEST_DECODERS[kind], self._handlers[kind], following)
            for kind, following in LEGAL[state].items()
            if kind in self._handlers
        }

    def run(self) -> None:
        """Serve until the end; whatever happens, frames, fds and the process handle are settled."""
        try:
            process = PeerProcess(self._sock)
        except OSError as error:
            refuse(self._sock, error.errno or errno.EIO, f"no handle on its process ({error.strerror})")
            return
        try:
            try:
                why = self._serve(process)
            except Exception:
                log.exception("a session failed")
                why = "memfsd failed to serve it"
            if self._paired is not None and not self._paired.is_released:
                self._paired.connection_lost(why, self._stop_fd)
        finally:
            self._sock.close()
            if self._paired is not None and not self._paired.is_released:
                self._paired.peer.up.close()
            process.close()

    @property
    def is_paired(self) -> bool:
        """Or was, until its end is settled; from any thread."""
        return self._paired is not None

    def stop(self) -> None:
        """From another thread: the store ends."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _serve(self, process: PeerProcess) -> str:
        """Requests and replies until the connection ends; why it did."""
        self._process = process
        set_deadline(self._sock, GREETING_DEADLINE_S)
        self._until = time.monotonic() + GREETING_DEADLINE_S
        buffer = bytearray(MAX_PACKET_BYTES)
        sock = self._sock
        receive, send = sock.recv_into, sock.send
        try:
            while self._state is not _ENDED:
                size = receive(buffer, 0, socket.MSG_TRUNC)
                if not HEADER_BYTES <= size <= MAX_PACKET_BYTES:
                    return f"it sent a packet of {size} bytes" if size else "it closed the connection"
                if self._short_lived and time.monotonic() > self._until:
                    return "it did not pair, or ask anything, in time"
                reply = self._answer(buffer, size)
                if self._fds:
                    self._send_with_fds(reply)
                else:
                    send(reply)
            return BYE
        except BlockingIOError:
            return "it did not answer in time"
        except (BadPacket, OSError) as error:
            return str(error)

    def _answer(self, buffer: bytearray, size: int) -> bytes:
        id_, word = request_words(buffer)
        step = self._steps.get(word)
        if step is None:
            return self._refusal(buffer[:size])
        kind, decode, handler, following = step
        try:
            body = decode(buffer[HEADER_BYTES:size])
        except NO_BODY as error:
            return encode_failure(id_, kind, errno.EINVAL, f"{kind.name}: {error}")
        try:
            reply = handler(body)
        except Refused as refused:
            return encode_failure(id_, kind, refused.errno, refused.reason)
        if following is not self._state:
            self._enter(following)
        elif kind in _QUESTIONS:  # PING, and what is refused, keep no place
            self._until = time.monotonic() + GREETING_DEADLINE_S
        return encode_reply(id_, kind, reply)

    def _refusal(self, packet: bytearray) -> bytes:
        """Of what is not legal now; BadPacket when it is no request at all."""
        id_, kind = decode_request_header(packet)
        if kind not in self._handlers:
            return encode_failure(id_, kind, errno.EOPNOTSUPP, f"{kind.name} is not an operation of the store")
        return encode_failure(id_, kind, errno.EPROTO, f"{kind.name} is not legal in state {self._state.value}")

    # -- greeting

    def _on_hello(self, hello: m.Hello) -> m.Body:
        if hello.version != m.PROTOCOL_VERSION:
            raise Refused(
                errno.EPROTONOSUPPORT,
                f"protocol {hello.version}: this store speaks {m.PROTOCOL_VERSION}: use the same version of both",
            )
        abi = self._store.service.options.abi
        nonce, proof = os.urandom(NONCE_BYTES), b""
        if hello.role is m.Role.GUEST:
            check_same(abi, hello.abi)
            token = self._store.pairings.token(hello.token, self._process.uid)
            self._claim = _Claim(token, hello.nonce, nonce)
            proof = prove(STORE, *self._claim)
        self._hello = hello
        operations: list[int] = sorted(self._store.pairings.operations)
        return m.HelloReply(m.PROTOCOL_VERSION, operations, nonce, proof, abi.name)

    def _on_pair(self, pair: m.Pair) -> m.Body:
        assert self._hello is not None and self._claim is not None
        hello, process = self._hello, self._process
        if not proves(pair.proof, KVM, *self._claim):
            raise Refused(errno.EACCES, "this does not prove the token of HELLO: read user.memfsd.token again")
        if not m.REQUIRED_KVM_OPERATIONS.issubset(hello.operations):
            raise Refused(
                errno.EOPNOTSUPP,
                "a VM that cannot be invalidated cannot pair: implement INVALIDATE_BEGIN and INVALIDATE_END",
            )
        vm = _plain(hello.vm)
        pairing = Pairing(vm, process.pid, process.uid, frozenset(hello.operations), pair.secret)
        ends: list[socket.socket] = []

        def connect(ino: Ino) -> Peer:
            ends.extend(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            return Peer(ino, vm, UpChannel(packets.up(self._sock, ends[0])), process, self.stop)

        try:
            paired = self._store.pairings.pair(self._claim.token.id, pairing, connect)
        except Refused:
            for end in ends:
                end.close()
            raise
        self._paired = paired
        maps = [paired.page_map] if paired.map_pages else []
        self._fds = [paired.window, ends[1].detach(), *maps]
        self._sent_away = self._fds[1:]
        file, kind = paired.file, paired.memory_type
        punch = self._store.service.gmem.punch_order(file)
        return m.PairReply(
            file.ino,
            file.size,
            file.order,
            paired.seq,
            paired.window_frames,
            kind,
            punch,
            paired.map_pages,
            paired.memfd_flags,
        )

    def _send_with_fds(self, reply: bytes) -> None:
        fds, self._fds = self._fds, []
        closed, self._sent_away = self._sent_away, []
        try:
            socket.send_fds(self._sock, [reply], fds)
        finally:
            for fd in closed:
                os.close(fd)
        if self._short_lived:
            return
        set_deadline(self._sock, 0)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(ACK_DEADLINE_S))

    # -- paired

    def _on_bind(self, bind: m.Bind) -> m.Body:
        assert self._paired is not None
        self._paired.bind(bind.slot, bind.gfn, bind.pgoff, bind.page_count)
        return m.Empty()

    def _on_unbind(self, unbind: m.Unbind) -> m.Body:
        assert self._paired is not None
        self._paired.unbind(unbind.pgoff, unbind.page_count)
        return m.Empty()

    def _on_get_pfn(self, want: m.GetPfn) -> m.Body:
        assert self._paired is not None
        return self._paired.get_pfn(want.pgoff, want.max_pages, want.order)

    def _on_stat(self, _: m.Empty) -> m.Body:
        assert self._paired is not None
        return self._paired.stat()

    def _on_attributes(self, want: m.Attributes) -> m.Body:
        assert self._paired is not None
        return self._paired.attributes(want.pgoff)

    def _on_bye(self, _: m.Body) -> m.Body:
        """Answered when the frames are free and the file can be paired again."""
        if self._paired is not None:
            self._paired.bye()
        return m.Empty()

    # -- observing

    def _on_check(self, _: m.Empty) -> m.Body:
        self._check_may_observe("memfs check")
        return self._store.checker.check()

    def _on_map(self, want: m.Map) -> m.Body:
        return self._store.checker.map_of(Ino(want.ino), self._process.uid, want.pgoff)

    def _on_page_out(self, want: m.PageOut) -> m.Body:
        uid, owner = self._process.uid, os.getuid()
        done = self._store.swapper.page_out(Ino(want.ino), want.start, want.end, uid, owner)
        return m.PageOutReply(done.page_count, done.next_pgoff, done.stayed, *_failure(done.why))

    def _on_swap_off(self, want: m.SwapOff) -> m.Body:
        if self._process.uid not in (0, os.getuid()):
            raise Refused(errno.EACCES, "memfs swapoff is for root and the user who mounted: run it as one of them")
        done = self._store.swapoff.swap_off(want.ino, want.pgoff)
        next_page = done.next_page or (0, -1)
        return m.SwapOffReply(
            done.page_count, done.stayed, *_failure(done.why), done.name, done.vm, done.left, *next_page
        )

    def _on_list(self, _: m.Empty) -> m.Body:
        self._check_may_observe("the list of sealed files")
        return self._store.checker.files()

    def _on_set_node(self, want: m.SetNode) -> m.Body:
        self._check_may_observe("memfs online" if want.online else "memfs offline")
        nodes = self._store.nodes
        return nodes.online(want.node) if want.online else nodes.offline(want.node)

    def _on_compact(self, _: m.Empty) -> m.Body:
        self._check_may_observe("memfs compact")
        return self._store.nodes.compact()

    def _on_kcore(self, want: m.Kcore) -> m.Body:
        self._check_may_observe("memfs kcore")
        if want.pfn == 0:
            self._dump = Dump(self._store.service)
            self._fds = self._sent_away = [self._store.open_pool_read_only()]
        elif self._dump is None:
            raise Refused(errno.EINVAL, "no dump was begun on this connection: ask from frame 0 on")
        return self._dump.part(want.pfn)

    def _on_memory_failure(self, failure: m.MemoryFailure) -> m.Body:
        self._check_may_observe("memfs poison")
        return self._store.failures.poison(Ino(failure.ino), failure.pgoff)

    def _on_device_add(self, device: m.DeviceFile) -> m.Body:
        self._check_may_observe("memfs device")
        self._store.devices.add(Ino(device.ino))
        return m.Empty()

    def _on_device_remove(self, device: m.DeviceFile) -> m.Body:
        self._check_may_observe("memfs device")
        self._store.devices.remove(Ino(device.ino))
        return m.Empty()

    def _check_may_observe(self, command: str) -> None:
        if self._process.uid not in (0, os.getuid()):
            raise Refused(errno.EACCES, f"{command} is for root and the user who mounted: run it as one of them")


def refuse(sock: socket.socket, number: int, why: str) -> None:
    """To a connection that has said nothing: why it is not let in. A new socket has room for a packet: no wait."""
    reason = f"memfsd lets no more connections in: {why}: end some, or try again later"
    with contextlib.suppress(OSError):
        sock.send(encode_failure(NOT_LET_IN, Kind.HELLO, number, reason))
    sock.close()


def _failure(why: Refused | None) -> tuple[int, str]:
    return (0, "") if why is None else (why.errno, why.reason)


def _plain(name: str) -> str:
    """A VM's name as it is shown beside other fields: what could look like one of them is replaced."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
