"""memfsd's sessions get what no VM would say: each packet is answered or ends its connection, and that is all."""

import contextlib
import socket
import struct
from functools import partial

import pytest

from memfsd.peers.upchannel import UpChannel
from memfsd.uapi import messages as m
from memfsd.uapi.errors import PeerLost, Refused
from memfsd.uapi.framing import decode_header, encode_request
from memfsd.uapi.limits import MAX_PACKET_BYTES
from memfsd.uapi.messages import Kind
from memfsd.uapi.proof import NONCE_BYTES
from tests.hostile.packets import HEADER, Hostile
from tests.hostile.tally import SEED, check_bystander, resident_bytes, share, tried
from tests.support.both_sides import LocalStore, LocalVm
from tests.support.threads import Beside, until
from tests.support.wire import Wire

GREETING = [Kind.HELLO, Kind.PAIR, Kind.PING, Kind.BIND, Kind.GET_PFN, Kind.CHECK, Kind.MOVE, Kind.INVALIDATE_BEGIN]
OBSERVING = [*[Kind.MAP, Kind.PING, Kind.HELLO, Kind.PAIR, Kind.REPORT, Kind.LIST, Kind.KCORE] * 6, Kind.CHECK]
PAIRED = [
    *[Kind.BIND, Kind.UNBIND, Kind.GET_PFN] * 8,
    Kind.STAT,
    Kind.PING,
    Kind.HELLO,
    Kind.PAIR,
    Kind.MAP,
    Kind.REVOKE,
]
GROWTH_BYTES = 32 << 20
"""What the whole process may have grown by; a leak of one byte a packet would not show, one of a body would."""


def exchange(sock: socket.socket, packet: bytes) -> bytes | None:
    """The one answer, or None when the connection has ended."""
    try:
        sock.send(packet)
        answer = sock.recv(MAX_PACKET_BYTES)
    except ConnectionError:
        return None
    return answer or None


def is_well_formed(packet: bytes) -> bool:
    if not HEADER.size <= len(packet) <= MAX_PACKET_BYTES:
        return False
    _, kind, errno = HEADER.unpack_from(packet)
    return errno == 0 and kind in set(Kind)


def check_answer(packet: bytes, answer: bytes | None) -> None:
    """What is well formed is answered, once, under its id; what is not ends the connection."""
    if answer is None:
        assert not is_well_formed(packet), packet[:40]
        return
    header = decode_header(answer)
    id_, kind, _ = HEADER.unpack_from(packet)
    assert (header.id, header.kind, header.is_reply) == (id_, kind, True)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("role", ["nobody", "guest", "observer"])
def test_anything_before_pairing_and_to_an_observer(store: LocalStore, bystander: LocalVm, role: str) -> None:
    hostile = Hostile(SEED, OBSERVING if role == "observer" else GREETING)
    memory, left, sock = resident_bytes(), share(0.18), None
    while left:
        if sock is None:
            sock = store.connect()
            if role != "nobody":
                guest = role == "guest"
                token = store.token(store.last_sealed() or "").id if guest else b""
                named = m.Role.GUEST if guest else m.Role.OBSERVER
                hello = m.Hello(m.PROTOCOL_VERSION, named, "fuzz", [32, 33], token, bytes(NONCE_BYTES))
                assert exchange(sock, encode_request(1, Kind.HELLO, hello))
        packet = hostile.anything(left)
        answer = exchange(sock, packet)
        check_answer(packet, answer)
        left -= 1
        tried["sessions"] += 1
        if answer is None or answer[4:8] == HEADER.pack(0, Kind.BYE | m.REPLY, 0)[4:]:
            sock.close()
            sock = None
    if sock is not None:
        sock.close()
    until(lambda: store.server.session_count() == 1, "the sessions end")
    check_bystander(store, bystander)
    assert resident_bytes() - memory < GROWTH_BYTES


def test_anything_that_a_paired_vm_could_say(store: LocalStore, bystander: LocalVm) -> None:
    """BIND, UNBIND and GET_PFN over and over: the store's tables hold what memfs check wants of them."""
    memory, per_vm = resident_bytes(), 4000
    total = share(0.30)
    for number in range(-(-total // per_vm)):
        name = f"file{number}"
        store.create(name, 16)
        hostile = Hostile(SEED + number, PAIRED)
        with Wire(store) as wire:
            wire.hello(store.token(name), operations=sorted(m.REQUIRED_KVM_OPERATIONS))
            assert isinstance(wire.pair(), m.PairReply)
            for id_ in range(2, min(per_vm, total) + 2):
                packet = hostile.answerable(id_)
                check_answer(packet, exchange(wire.down, packet))
            tried["sessions"] += min(per_vm, total)
            assert store.findings() == []
            wire.id = 0
            wire.ask(Kind.BYE)
        until(partial(is_settled, store, name), "its end is settled")
        with store.service.lock:
            assert store.file(name).pages.page_count == 0
    check_bystander(store, bystander)
    assert resident_bytes() - memory < GROWTH_BYTES


@pytest.mark.usefixtures("nothing_left")
def test_descriptors_that_come_along_with_anything(store: LocalStore, bystander: LocalVm) -> None:
    hostile = Hostile(SEED, GREETING)
    for id_ in range(share(0.02)):
        with store.connect() as sock:
            fds = [0] * hostile.dice.choice((1, 2, 30, 253))
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))
            with contextlib.suppress(ConnectionError):
                sock.sendmsg([hostile.anything(id_)], [rights])
                sock.recv(MAX_PACKET_BYTES)
            tried["sessions, with fds"] += 1
    until(lambda: store.server.session_count() == 1, "the sessions end")
    check_bystander(store, bystander)


def test_any_answer_to_an_up_call_is_an_answer_or_the_end() -> None:
    """UpChannel alone: an acknowledgement that is none never counts as one."""
    hostile = Hostile(SEED, [*m.KVM_OPERATIONS, Kind.PING], replies=True)
    begin = m.InvalidateBegin(0, 8, 0, m.Reason.PUNCH)
    good = 0
    for number in range(share(0.10)):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel = UpChannel(ours, 5)
        packet = hostile.anything(1)
        with contextlib.suppress(BlockingIOError):
            theirs.send(packet)
        theirs.shutdown(socket.SHUT_WR)
        try:
            reply = channel.call(Kind.INVALIDATE_BEGIN, begin, m.InvalidateBeginReply)
        except PeerLost:
            pass
        else:
            good += 1
            assert isinstance(reply, m.InvalidateBeginReply)
            assert packet.startswith(HEADER.pack(1, Kind.INVALIDATE_BEGIN | m.REPLY, 0)), number
        channel.close()
        theirs.close()
        tried["up channels"] += 1
    assert good, "some were good"


def test_a_vm_that_answers_up_calls_with_anything(store: LocalStore, bystander: LocalVm) -> None:
    """The whole way: bracket, cut, quarantine, and never a frame too early."""
    hostile = Hostile(SEED, [Kind.INVALIDATE_BEGIN, Kind.INVALIDATE_END, Kind.REPORT], replies=True)
    for number in range(40):
        name = f"file{number}"
        store.create(name, 4)
        with Wire(store) as wire:
            wire.hello(store.token(name), operations=sorted(m.REQUIRED_KVM_OPERATIONS))
            wire.pair()
            wire.ask(Kind.BIND, m.Bind(0, 0, 0, 4))
            pfn = wire.get_pfn(0).pfn
            punch = Beside(partial(_punch, store, name))
            kind, id_, _ = wire.called()
            assert kind is Kind.INVALIDATE_BEGIN
            assert wire.up is not None
            packet = hostile.answerable(id_, Kind.INVALIDATE_BEGIN) if number % 2 else hostile.anything(id_)
            tried["up channels"] += 1
            wire.up.send(packet)
            try:
                kind, id_, _ = wire.called()
            except (AssertionError, OSError):
                pass
            else:
                wire.answer(kind, id_)
            done = punch.result()
            with store.service.lock:
                freed = store.service.pool.state(pfn).name == "FREE"
            assert freed == done, "freed if and only if it was acknowledged"
            assert store.findings() == []
    check_bystander(store, bystander)


def is_settled(store: LocalStore, name: str) -> bool:
    return not store.guest(name).holds_memory


def _punch(store: LocalStore, name: str) -> bool:
    try:
        store.punch(name, 0, 4)
    except Refused:
        return False
    return True


def test_seeds_repeat() -> None:
    """The same seed makes the same packets, another one others."""
    first, again, other = (Hostile(seed, GREETING) for seed in (1, 1, 2))
    packets = [first.anything(n) for n in range(200)]
    assert [again.anything(n) for n in range(200)] == packets
    assert [other.anything(n) for n in range(200)] != packets
