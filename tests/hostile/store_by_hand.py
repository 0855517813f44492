"""A store that speaks the wire by hand, against kvmsim's real link and kvm."""

import fcntl
import os
import socket
from pathlib import Path
from typing import Any

from kvmsim.cpu.accesses import Guest
from kvmsim.kvm.kvm import Kvm
from kvmsim.kvm.region import MemoryRegion
from kvmsim.kvm.vm import Vm
from kvmsim.store.link import Callbacks, StoreLink
from memfsd.peers.upchannel import set_deadline
from memfsd.uapi import messages as m
from memfsd.uapi.framing import decode_header, decode_reply, decode_request, encode_reply, encode_request
from memfsd.uapi.limits import MAX_PACKET_BYTES
from memfsd.uapi.messages import Kind
from memfsd.uapi.proof import ID_BYTES, NONCE_BYTES, STORE, Token, prove
from memfsd.uapi.units import PAGE_SIZE
from tests.support.threads import DEADLINE_S, Beside

FRAMES = 64
PAGES = 16
TOKEN = Token(bytes(ID_BYTES), b"known to both   ")


def window(size: int = FRAMES * PAGE_SIZE, seals: int = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL) -> int:
    fd = os.memfd_create("window", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


class ByHand:
    """The store's ends of one connection; `down` gets requests, `up` makes calls."""

    def __init__(self, place: Path) -> None:
        self.path = place / "file"
        self.path.write_bytes(bytes(PAGES * PAGE_SIZE))
        self._theirs, self.down = _pair()
        self.up_theirs, self.up = _pair()
        self.window = window()
        self.vm = Vm("vm")
        self.kvm = Kvm(self.vm, self._link)
        self.id = 0

    def _link(self, fd: int, vm: str, callbacks: Callbacks) -> StoreLink:
        return StoreLink(fd, self._theirs, TOKEN, vm, callbacks)

    # -- the VM's side

    def set_slot(self) -> "Beside[Any]":
        """Makes a slot over the whole file at GFN 0: HELLO, PAIR and BIND will come."""
        size = PAGES * PAGE_SIZE
        return Beside(lambda: self.kvm.slots.set_private_slot(MemoryRegion.private(0, 0, size), str(self.path)))

    def write(self, page: int, data: bytes = b"x") -> "Beside[Any]":
        guest = Guest(self.kvm)
        return Beside(lambda: guest.write(self.vm.vcpu(0), page * PAGE_SIZE, data))

    # -- the store's side

    def asked(self) -> tuple[int, Kind, m.Body]:
        packet = self.down.recv(MAX_PACKET_BYTES)
        assert packet, "the VM has hung up"
        header = decode_header(packet)
        return header.id, header.kind, decode_request(header.kind, packet)

    def answer(self, body: m.Body) -> m.Body:
        """The next request, answered with this."""
        id_, kind, asked = self.asked()
        self.down.send(encode_reply(id_, kind, body))
        return asked

    def hello(self, key: bytes = TOKEN.key) -> None:
        id_, kind, hello = self.asked()
        assert isinstance(hello, m.Hello)
        nonce = bytes(NONCE_BYTES)
        proof = prove(STORE, Token(hello.token, key), hello.nonce, nonce)
        reply = m.HelloReply(m.PROTOCOL_VERSION, sorted(m.STORE_OPERATIONS), nonce, proof)
        self.down.send(encode_reply(id_, kind, reply))

    def greet(self, fds: list[int] | None = None, **changes: int) -> None:
        """HELLO and PAIR."""
        self.hello()
        id_, kind, _ = self.asked()
        fields = {"ino": 7, "size_bytes": PAGES * PAGE_SIZE, "order": 0, "seq": 0, "window_frames": FRAMES, **changes}
        answer = m.PairReply(**fields, memory_type=m.MemoryType.WB, punch_order=0, map_pages=0, flags=0)
        reply = encode_reply(id_, kind, answer)
        socket.send_fds(self.down, [reply], [self.window, self.up_theirs.fileno()] if fds is None else fds)

    def paired(self) -> "ByHand":
        """With its slot."""
        slot = self.set_slot()
        self.greet()
        assert isinstance(self.answer(m.Empty()), m.Bind)
        slot.result()
        return self

    def map_page(self, page: int, pfn: int) -> None:
        """The guest touches a page and gets this frame."""
        write = self.write(page)
        self.answer(m.GetPfnReply(pfn, 1, 0, 0))
        assert write.result() is None

    def call(self, kind: Kind, body: m.Body) -> m.Body | str:
        """An up-call: its reply, or the errno's number as text."""
        self.id += 1
        self.up.send(encode_request(self.id, kind, body))
        packet = self.up.recv(MAX_PACKET_BYTES)
        assert packet, "the VM has closed the up channel"
        header = decode_header(packet)
        assert (header.id, header.kind, header.is_reply) == (self.id, kind, True)
        return os.strerror(header.errno) if header.errno else decode_reply(kind, packet)

    def close(self) -> None:
        for sock in (self.down, self.up, self.up_theirs):
            sock.close()
        self.kvm.close()
        self._theirs.close()
        os.close(self.window)


def _pair() -> tuple[socket.socket, socket.socket]:
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    set_deadline(ours, DEADLINE_S)
    set_deadline(theirs, DEADLINE_S)
    return theirs, ours
