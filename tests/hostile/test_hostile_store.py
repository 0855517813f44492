"""Stores that lie to kvmsim: nothing of what they pass or grant is believed unseen, and the VM goes on or exits."""

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import kvmsim.store.link
from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.exits import MemoryErrorExit
from kvmsim.store.link import StoreLink
from memfsd.uapi import messages as m
from memfsd.uapi.errors import Refused
from memfsd.uapi.framing import encode_failure, encode_reply, encode_request
from memfsd.uapi.limits import MAX_PACKET_BYTES
from memfsd.uapi.messages import Kind
from memfsd.uapi.proof import PROOF_BYTES
from memfsd.uapi.units import PAGE_SIZE, Gfn
from tests.hostile.packets import HEADER, Hostile
from tests.hostile.store_by_hand import FRAMES, PAGES, ByHand, window
from tests.hostile.tally import SEED, share, tried
from tests.support.threads import Beside, until
from tests.support.wire import is_readable


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ByHand]:
    """Not the one of the other tests: this one lies."""
    made = ByHand(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    yield made
    if made.kvm.pairings.links:
        before += 1 + 1 + 3  # the slot's file, and the window twice (fd and map) and the up channel
        assert len(os.listdir("/proc/self/fd")) <= before
    else:
        assert len(os.listdir("/proc/self/fd")) <= before, "every descriptor that came along is closed"
    made.close()


# -- what comes with PAIR


def a_pipe() -> int:
    read, write = os.pipe()
    os.close(write)
    return read


def a_file() -> int:
    fd = os.open("/tmp", os.O_TMPFILE | os.O_RDWR)
    os.ftruncate(fd, FRAMES * PAGE_SIZE)
    return fd


WINDOWS: list[Callable[[], int]] = [
    a_pipe,
    a_file,
    lambda: os.open("/dev/zero", os.O_RDWR),
    lambda: window(FRAMES * PAGE_SIZE - 1),
    lambda: window((FRAMES + 1) * PAGE_SIZE),
    lambda: window(0),
    lambda: window(seals=0),
    lambda: window(seals=fcntl.F_SEAL_SHRINK),
    lambda: window(seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL | fcntl.F_SEAL_WRITE),
]


@pytest.mark.parametrize(
    "made",
    WINDOWS,
    ids=["pipe", "file", "device", "too small", "too large", "empty", "no seals", "open seals", "not writable"],
)
def test_a_window_that_is_none_is_refused(store: ByHand, made: Callable[[], int]) -> None:
    """Mapped, it could kill the VM with SIGBUS, or show it what is not its own."""
    fd = made()
    slot = store.set_slot()
    store.greet(fds=[fd, store.up_theirs.fileno()])
    os.close(fd)
    refused_as(slot, errno.EHOSTDOWN)


def refused_as(slot: "Beside[None]", number: int) -> None:
    with pytest.raises(Refused) as refused:
        slot.result()
    assert refused.value.errno == number, refused.value
    assert refused.value.reason
    assert "\n" not in refused.value.reason


@pytest.mark.parametrize("count", [0, 1, 3, 50])
def test_more_or_fewer_descriptors_than_two_are_refused(store: ByHand, count: int) -> None:
    slot = store.set_slot()
    store.greet(fds=[store.window] * count) if count else answer_pair_without_fds(store)
    refused_as(slot, errno.EHOSTDOWN)


def answer_pair_without_fds(store: ByHand) -> None:
    store.hello()
    store.answer(m.PairReply(7, PAGES * PAGE_SIZE, 0, 0, FRAMES, m.MemoryType.WB, 0, 0, 0))


def test_a_store_that_cannot_prove_the_token_is_told_nothing_more(store: ByHand) -> None:
    """It learns an id that opens nothing: PAIR is not said, and no window of its making is touched."""
    slot = store.set_slot()
    store.hello(key=b"a guess of the k")
    refused_as(slot, errno.EPERM)
    assert store.down.recv(MAX_PACKET_BYTES) == b"", "the VM has hung up"


@pytest.mark.parametrize("proof", [b"", bytes(PROOF_BYTES)])
def test_a_store_without_a_proof_is_no_store(store: ByHand, proof: bytes) -> None:
    slot = store.set_slot()
    store.answer(m.HelloReply(m.PROTOCOL_VERSION, sorted(m.STORE_OPERATIONS), bytes(16), proof))
    refused_as(slot, errno.EPERM)


@pytest.mark.parametrize("kind", ["window", "stream", "datagram", "internet", "pipe"])
def test_an_up_channel_that_is_none_is_refused(store: ByHand, kind: str) -> None:
    closing: list[socket.socket] = []
    if kind == "window":
        fd = os.dup(store.window)
    elif kind == "pipe":
        fd = a_pipe()
    elif kind == "internet":
        closing = [socket.socket(socket.AF_INET, socket.SOCK_STREAM)]
        fd = os.dup(closing[0].fileno())
    else:
        closing = list(socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM))
        fd = os.dup(closing[0].fileno())
    for sock in closing:
        sock.close()
    slot = store.set_slot()
    store.greet(fds=[store.window, fd])
    os.close(fd)
    refused_as(slot, errno.EHOSTDOWN)


@pytest.mark.parametrize("frames", [0, FRAMES - 1, FRAMES + 1, 1 << 40, (1 << 63) - 1])
def test_a_window_that_is_not_as_long_as_the_store_says_is_refused(store: ByHand, frames: int) -> None:
    slot = store.set_slot()
    store.greet(window_frames=frames)
    refused_as(slot, errno.EHOSTDOWN)


@pytest.mark.parametrize(
    "answer",
    [
        b"x",
        b"\x01\0\0\0" + b"\0" * 60,
        HEADER.pack(1, Kind.HELLO, 0),
        HEADER.pack(9, Kind.HELLO | m.REPLY, 0) + b"\x93\x01\x90\x40",
        HEADER.pack(1, Kind.PAIR | m.REPLY, 0) + b"\x94\x01\x02\x03\x04",
        HEADER.pack(1, Kind.HELLO | m.REPLY, 0) + b"\xc0",
        HEADER.pack(1, Kind.HELLO | m.REPLY, 0) + bytes(MAX_PACKET_BYTES),
        HEADER.pack(1, Kind.HELLO | m.REPLY, 7) + b"\xff",
        encode_request(1, Kind.HELLO, m.Hello(m.PROTOCOL_VERSION, m.Role.GUEST, "me too", [], b"", bytes(16))),
    ],
    ids=["byte", "zeros", "request", "other id", "other kind", "nil", "oversized", "no reason", "HELLO back"],
)
def test_an_answer_to_hello_that_is_none_ends_it(store: ByHand, answer: bytes) -> None:
    slot = store.set_slot()
    store.asked()
    store.down.send(answer)
    refused_as(slot, errno.EHOSTDOWN)


def test_a_refusal_with_an_errno_that_does_not_exist(store: ByHand) -> None:
    slot = store.set_slot()
    id_, kind, _ = store.asked()
    store.down.send(encode_failure(id_, kind, 65535, "\n".join(["many", "lines"]) * 100))
    with pytest.raises(Refused) as refused:
        slot.result()
    assert refused.value.errno == 65535
    store.down.close()


# -- grants


@pytest.mark.parametrize(
    ("pfn", "count"), [(FRAMES, 1), (FRAMES - 1, 2), (0, FRAMES + 1), ((1 << 32) - 1, 1), ((1 << 32) - 1, 4096)]
)
def test_frames_outside_the_window_are_never_mapped(store: ByHand, pfn: int, count: int) -> None:
    store.paired()
    write = store.write(0)
    store.answer(m.GetPfnReply(pfn, count, 0, 0))
    exit_ = write.result()
    assert isinstance(exit_, MemoryErrorExit)
    assert exit_.errno == errno.EIO
    assert store.vm.mmu.epts[PRIVATE].leaf_count == 0


def test_a_run_longer_than_was_asked_is_cut_to_the_slot(store: ByHand) -> None:
    store.paired()
    write = store.write(PAGES - 1)
    store.answer(m.GetPfnReply(0, FRAMES, 18, (1 << 63) - 1))
    assert write.result() is None
    assert store.vm.mmu.epts[PRIVATE].leaf_count == 1


def test_two_pages_in_one_frame_are_the_guests_own_loss(store: ByHand) -> None:
    store.paired()
    for page in range(4):
        store.map_page(page, 5)
    assert store.vm.mmu.epts[PRIVATE].leaf_count == 4


def test_a_store_that_always_says_again_ends_as_an_exit(store: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvmsim.kvm.faults._MAX_RETRIES", 50)
    store.paired()
    write = store.write(0)
    for _ in range(50):
        id_, kind, _ = store.asked()
        store.down.send(encode_failure(id_, kind, errno.EAGAIN, "again"))
    exit_ = write.result()
    assert isinstance(exit_, MemoryErrorExit)
    assert exit_.errno == errno.EAGAIN


# -- up-calls


def test_up_calls_that_are_not_legal_are_refused_and_change_nothing(store: ByHand) -> None:
    store.paired()
    store.map_page(3, 9)
    mmu = store.vm.mmu
    assert store.call(Kind.INVALIDATE_END, m.InvalidateEnd(0, 8, 1)) == os.strerror(errno.EPROTO), "END without BEGIN"
    assert mmu.invalidate_seq == 0
    assert isinstance(store.call(Kind.INVALIDATE_BEGIN, begin(0, 1)), m.InvalidateBeginReply)
    assert store.call(Kind.INVALIDATE_BEGIN, begin(0, 16)) == os.strerror(errno.EPROTO), "a second BEGIN"
    assert mmu.in_progress == 1
    assert mmu.epts[PRIVATE].leaf_count == 1, "the second zapped nothing"
    assert store.call(Kind.INVALIDATE_END, m.InvalidateEnd(9, 2, 7)) == m.Empty(), "a range of its own, as it likes"
    assert (mmu.in_progress, mmu.invalidate_seq) == (0, 1)
    assert store.call(Kind.INVALIDATE_END, m.InvalidateEnd(0, 1, 1)) == os.strerror(errno.EPROTO), "END twice"
    for kind in (Kind.HELLO, Kind.GET_PFN, Kind.POISON, Kind.BYE, Kind.CHECK):
        store.id += 1
        store.up.send(HEADER.pack(store.id, kind, 0) + b"\x90")
        answer = store.up.recv(MAX_PACKET_BYTES)
        assert HEADER.unpack_from(answer)[2] == errno.EOPNOTSUPP


def begin(start: int, end: int, reason: m.Reason = m.Reason.PUNCH) -> m.InvalidateBegin:
    return m.InvalidateBegin(start, end, 0, reason)


@pytest.mark.parametrize("reason", list(m.Reason))
@pytest.mark.parametrize(("start", "end"), [(PAGES, PAGES + 8), ((1 << 51) - 2, (1 << 51) - 1), (8, 4), (5, 5), (0, 0)])
def test_a_begin_that_covers_nothing_of_the_file(store: ByHand, start: int, end: int, reason: m.Reason) -> None:
    store.paired()
    store.map_page(3, 9)
    assert store.call(Kind.INVALIDATE_BEGIN, begin(start, end, reason)) == m.InvalidateBeginReply([])
    assert store.call(Kind.INVALIDATE_END, m.InvalidateEnd(start, end, 1)) == m.Empty()
    assert store.vm.mmu.in_progress == 0
    assert store.vm.mmu.epts[PRIVATE].leaf_count == 1
    store.map_page(4, 10)


def test_a_begin_without_an_end_stops_the_guest_only_until_the_store_is_gone(store: ByHand) -> None:
    store.paired()
    store.map_page(3, 9)
    store.call(Kind.INVALIDATE_BEGIN, begin(0, PAGES))
    write = store.write(3)
    store.answer(m.GetPfnReply(9, 1, 0, 0))
    until(lambda: bool(store.vm.mmu.invalidation_ended._waiters), "the fault waits for END")  # type: ignore[attr-defined]
    store.up.close()
    exit_ = write.result()
    assert isinstance(exit_, MemoryErrorExit)
    assert exit_.errno == errno.EIO
    assert store.vm.mmu.in_progress == 0
    assert store.vm.mmu.epts[PRIVATE].leaf_count == 0


@pytest.mark.parametrize("cursor", [0, 15, 16, (1 << 36) - 1, 1 << 36, (1 << 40) - 1])
def test_reports_from_anywhere(store: ByHand, cursor: int) -> None:
    store.paired()
    store.map_page(3, 9)
    reply = store.call(Kind.REPORT, m.Report(cursor))
    assert isinstance(reply, m.ReportReply)
    assert reply.next_cursor == -1
    assert len(reply.mappings) == (cursor <= 3)
    assert len(reply.slots) == (cursor < PAGES)


def test_after_revoke_nothing_of_the_store_is_mapped_and_it_can_not_call_any_more(store: ByHand) -> None:
    store.paired()
    store.map_page(3, 9)
    assert store.call(Kind.REVOKE, m.Revoke("go away\n" * 100)) == m.Empty()
    until(lambda: store.vm.mmu.epts[PRIVATE].leaf_count == 0, "everything is zapped")
    exit_ = store.write(3).result()
    assert isinstance(exit_, MemoryErrorExit)


def test_a_flood_of_up_calls_is_answered_one_by_one_and_guests_go_on(store: ByHand) -> None:
    store.paired()
    store.map_page(3, 9)
    for number in range(500):
        assert isinstance(store.call(Kind.REPORT, m.Report(number)), m.ReportReply)
    write = store.write(3, b"on")
    assert write.result() is None


def test_a_flood_whose_answers_nobody_reads_holds_a_socket_buffer_and_no_more(store: ByHand) -> None:
    """The up thread waits to send; vCPUs do not."""
    store.paired()
    store.map_page(3, 9)
    store.up.setblocking(False)
    packet, sent = encode_request(1, Kind.REPORT, m.Report(0)), 0

    def stuffed() -> bool:
        nonlocal sent
        try:
            while True:
                store.up.send(packet)
                sent += 1
        except BlockingIOError:
            return sent > 300

    until(stuffed, "the channel is full")
    assert store.write(3, b"on").result() is None
    store.map_page(4, 10)


def test_descriptors_that_come_with_up_calls_and_answers_are_closed(store: ByHand) -> None:
    store.paired()
    read, write = os.pipe()
    many = struct.pack("200i", *[write] * 200)
    store.up.sendmsg([encode_request(1, Kind.REPORT, m.Report(0))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, many)])
    assert store.up.recv(MAX_PACKET_BYTES)
    guest = store.write(0)
    id_, kind, _ = store.asked()
    reply = encode_reply(id_, kind, m.GetPfnReply(1, 1, 0, 0))
    store.down.sendmsg([reply], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, many)])
    assert guest.result() is None
    os.close(write)
    assert os.read(read, 1) == b"", "nobody holds the other end"
    os.close(read)


# -- anything at all


def test_any_up_call_is_answered_or_the_end_of_the_store(tmp_path: Path) -> None:
    left, number = share(0.13), 0
    while left:
        number += 1
        hostile = Hostile(SEED + number, sorted(m.KVM_OPERATIONS - {Kind.REVOKE}) * 5 + [Kind.REVOKE, Kind.PING])
        place = tmp_path / str(number)
        place.mkdir()
        store = ByHand(place).paired()
        store.map_page(3, 9)
        budget, ended = min(left, 2000), False
        while budget and not ended:
            packet = hostile.answerable(left) if budget > 1 else hostile.anything(left)
            budget, left = budget - 1, left - 1
            tried["up threads"] += 1
            try:
                store.up.send(packet)
                answer = store.up.recv(MAX_PACKET_BYTES)
            except ConnectionError:
                answer = b""
            ended = not answer
            if answer:
                id_, kind, _ = HEADER.unpack_from(packet)
                assert HEADER.unpack_from(answer)[:2] == (id_, kind | m.REPLY)
        if ended:
            check_lost(store)
        store.close()


def check_lost(store: ByHand) -> None:
    (link,) = store.kvm.pairings.links.values()
    until(lambda: bool(link.lost), "the VM knows")
    until(lambda: store.vm.mmu.epts[PRIVATE].leaf_count == 0, "all is zapped")
    assert store.vm.mmu.in_progress == 0


def test_any_answer_to_a_fault_is_a_frame_of_the_window_or_an_exit(tmp_path: Path) -> None:
    """The same for the down channel: whatever is mapped lies in the window."""
    left, number = share(0.02), 0
    while left > 0:
        number += 1
        place = tmp_path / str(number)
        place.mkdir()
        store = ByHand(place).paired()
        left -= fuzz_faults(store, Hostile(SEED + number, [Kind.GET_PFN], replies=True), left)
        store.close()


def goes_on(store: ByHand, link: StoreLink, write: Beside[object]) -> bool:
    return bool(link.lost) or not write.running or is_asked(store)


def fuzz_faults(store: ByHand, hostile: Hostile, budget: int) -> int:
    """Faults with any answer until the link is lost; how many packets that took."""
    (link,) = store.kvm.pairings.links.values()
    count = 0
    while count < budget and not link.lost:
        write = store.write(hostile.dice.randrange(PAGES))
        while not link.lost:
            until(partial(goes_on, store, link, write), "it goes on")
            if not is_asked(store) or link.lost:
                break
            id_, _, _ = store.asked()
            packet = hostile.answerable(id_) if hostile.dice.random() < 0.97 else hostile.anything(id_)
            with contextlib.suppress(OSError):
                store.down.send(packet)
            count += 1
            tried["down links"] += 1
        exit_ = write.result()
        assert exit_ is None or isinstance(exit_, MemoryErrorExit)
        with store.vm.mmu.lock:
            runs = list(store.vm.mmu.epts[PRIVATE].zap(Gfn(0), Gfn(PAGES)))
        assert all(pfn + pages <= FRAMES for _, pfn, pages in runs)
        store.vm.vcpu(0).tlb.flush()
    return max(count, 1)


def is_asked(store: ByHand) -> bool:
    """A request of the VM lies in the down channel."""
    return is_readable(store.down)


def test_a_store_that_is_stopped_while_its_queue_is_full_is_ehostdown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """connect(2) waits for a place in the queue, and has a deadline as every other wait."""
    monkeypatch.setattr(kvmsim.store.link, "ANSWER_DEADLINE_S", 1)
    path = str(tmp_path / "socket")
    waiting: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                waiting[-1].setblocking(False)
                waiting[-1].connect(path)
        refused_as(Beside(lambda: kvmsim.store.link._connect(path).close()), errno.EHOSTDOWN)
    for sock in waiting:
        sock.close()
