"""A VM that speaks the wire by hand, and so can say what no real one would."""

import os
import select
import socket
import struct
from typing import Any

import msgspec

from memfsd.common.sockets import receive_with_fds
from memfsd.uapi import messages as m
from memfsd.uapi.errors import errno_name
from memfsd.uapi.framing import decode_failure, decode_header, decode_reply, encode_reply, encode_request
from memfsd.uapi.limits import MAX_PACKET_BYTES
from memfsd.uapi.messages import Kind
from memfsd.uapi.proof import KVM, NONCE_BYTES, SECRET_BYTES, STORE, Token, prove, proves
from memfsd.uapi.units import PAGE_SIZE

from .both_sides import LocalStore
from .threads import DEADLINE_S, until

HEADER = struct.Struct("<IHH")


def is_readable(sock: socket.socket, timeout_s: float = 0.0) -> bool:
    """Not by select(2), which knows no descriptor from 1024 on: a process of many tests may have more."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


class Wire:
    """One down channel. `ask` answers the reply, or the name of the errno that the store refused with."""

    def __init__(self, store: LocalStore) -> None:
        self.store = store
        self.down = store.connect()
        self.up: socket.socket | None = None
        self.window = -1
        self.id = 0
        self.token = Token(b"", b"")
        self.nonce = self.store_nonce = b""
        self.secret = os.urandom(SECRET_BYTES)

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.down.close()
        if self.up:
            self.up.close()
        if self.window >= 0:
            os.close(self.window)
            self.window = -1

    def hello(self, token: Token | None = None, **changes: Any) -> Any:
        """Of a guest with this token, else with one of the sealed file that was made last. Checks the store's proof."""
        if token is None and self.store.last_sealed() is None:
            self.store.create("of the wire", 1)
        self.token = token or self.store.token(self.store.last_sealed() or "")
        self.nonce = os.urandom(NONCE_BYTES)
        fields: dict[str, Any] = {
            "version": m.PROTOCOL_VERSION,
            "role": m.Role.GUEST,
            "vm": "wire",
            "operations": sorted(m.KVM_OPERATIONS),
            "token": self.token.id,
            "nonce": self.nonce,
        }
        reply = self.ask(Kind.HELLO, m.Hello(**{**fields, **changes}))
        if isinstance(reply, m.HelloReply):
            self.store_nonce = reply.nonce
            is_guest = changes.get("role", m.Role.GUEST) is m.Role.GUEST
            assert bool(reply.proof) is is_guest
            assert not is_guest or proves(reply.proof, STORE, self.token, self.nonce, reply.nonce)
        return reply

    def pair(self, proof: bytes | None = None) -> Any:
        """PAIR after HELLO; keeps the window and the up channel."""
        body = m.Pair(prove(KVM, self.token, self.nonce, self.store_nonce) if proof is None else proof, self.secret)
        reply, fds = self.ask_with_fds(Kind.PAIR, body)
        if fds:
            self.window, up = fds
            self.up = socket.socket(fileno=up)
            self.up.settimeout(DEADLINE_S)
        return reply

    def paired(self, name: str, pages: int) -> "Wire":
        """HELLO, PAIR, and BIND of the first pages at GFN 0 in slot 0."""
        assert isinstance(self.hello(self.store.token(name)), m.HelloReply)
        assert isinstance(self.pair(), m.PairReply)
        assert isinstance(self.ask(Kind.BIND, m.Bind(0, 0, 0, pages)), m.Empty)
        return self

    def ask(self, kind: Kind, body: m.Body | None = None) -> Any:
        self.id += 1
        return self.raw(encode_request(self.id, kind, body or m.Empty()), kind)

    def ask_with_fds(self, kind: Kind, body: m.Body) -> tuple[Any, list[int]]:
        """As `ask`, and the descriptors that come with the answer."""
        self.id += 1
        self.down.send(encode_request(self.id, kind, body))
        packet, fds, _ = receive_with_fds(self.down, MAX_PACKET_BYTES, 2)
        return self._reply(kind, packet), fds

    def raw(self, packet: bytes, kind: Kind) -> Any:
        self.down.send(packet)
        return self._reply(kind, self.down.recv(MAX_PACKET_BYTES))

    def get_pfn(self, pgoff: int, max_pages: int = 512) -> Any:
        return self.ask(Kind.GET_PFN, m.GetPfn(pgoff, max_pages, 0))

    def touch(self, pfn: int, data: bytes = b"touched") -> None:
        """The guest writes to a frame."""
        os.pwrite(self.window, data, pfn * PAGE_SIZE)

    def called(self) -> tuple[Kind, int, m.Body]:
        """The store's next call on the up channel: kind, id, body."""
        assert self.up is not None
        packet = self.up.recv(MAX_PACKET_BYTES)
        assert packet, "the up channel ended"
        header = decode_header(packet)
        return header.kind, header.id, msgspec.msgpack.Decoder(m.REQUESTS[header.kind]).decode(packet[HEADER.size :])

    def answer(self, kind: Kind, id_: int, body: m.Body | None = None) -> None:
        assert self.up is not None
        self.up.send(encode_reply(id_, kind, body or m.Empty()))

    def ended(self) -> bool:
        """The store ends the connection, now or soon."""
        try:
            return self.down.recv(MAX_PACKET_BYTES) == b""
        except ConnectionError:
            return True

    def _reply(self, kind: Kind, packet: bytes) -> Any:
        assert packet, "the connection ended"
        header = decode_header(packet)
        assert (header.id, header.kind, header.is_reply) == (self.id, kind, True)
        if header.errno:
            assert decode_failure(packet).reason
            return errno_name(header.errno)
        return decode_reply(kind, packet)


def settled(store: LocalStore) -> None:
    """All connections have ended."""
    until(lambda: store.server.session_count() == 0, "all sessions end")
