"""VMs that lie about what they did, in ways that are well formed."""

import os
from collections.abc import Callable

import msgspec
import pytest

import memfsd.core.private.bindings
import memfsd.peers.session
import memfsd.peers.upchannel
from memfsd.core.audit import Facts, audit
from memfsd.core.moment import moment_of
from memfsd.core.private.bindings import Bindings
from memfsd.core.private.gmem_file import PairState
from memfsd.peers.upchannel import UpChannel, set_deadline
from memfsd.uapi import messages as m
from memfsd.uapi.errors import PeerLost
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.framing import encode_failure, encode_reply, encode_request
from memfsd.uapi.limits import MAX_PACKET_BYTES, MAX_RUNS_PER_REPORT
from memfsd.uapi.messages import Kind
from memfsd.uapi.proof import KVM, PROOF_BYTES, Token, prove
from memfsd.uapi.units import PAGE_SIZE
from tests.hostile.packets import HEADER
from tests.support.both_sides import LocalStore, errno_of, page
from tests.support.threads import Beside, until
from tests.support.wire import Wire

FRAMES = 1024


def obedient_punch(store: LocalStore, wire: Wire, start: int, pages: int, **answer: object) -> None:
    """A punch that the VM acknowledges and ends as the protocol wants; what it really does is its own business."""
    punch = Beside(lambda: store.punch("file", start, pages))
    kind, id_, _ = wire.called()
    assert kind is Kind.INVALIDATE_BEGIN
    wire.answer(kind, id_, m.InvalidateBeginReply(answer.get("kept", [])))  # type: ignore[arg-type]
    kind, id_, _ = wire.called()
    assert kind is Kind.INVALIDATE_END
    wire.answer(kind, id_)
    punch.result()


@pytest.fixture
def liar(store: LocalStore) -> Wire:
    """It has 64 pages bound at GFN 0, and is not asked for reports."""
    store.create("file", 64)
    wire = Wire(store)
    wire.hello(operations=sorted(m.REQUIRED_KVM_OPERATIONS))
    wire.pair()
    wire.ask(Kind.BIND, m.Bind(0, 0, 0, 64))
    return wire


def test_a_vm_that_keeps_its_mapping_keeps_zeros(store: LocalStore, liar: Wire) -> None:
    """It acknowledges and reads and writes on where the frames were. They are reused, and the two never meet."""
    with liar:
        frames = set()
        for pgoff in range(64):
            pfn = liar.get_pfn(pgoff, 1).pfn
            liar.touch(pfn, b"secret of the liar")
            frames.add(pfn)
        obedient_punch(store, liar, 0, 64)
        assert all(os.pread(liar.window, 18, page(pfn)) == bytes(18) for pfn in frames), "R8: punched, so zero"
        assert store.free_count == FRAMES
        store.create("victim", FRAMES)
        victim = store.vm("victim")
        victim.private_slot(0, 0, page(FRAMES), "victim")
        assert victim.read(0, page(FRAMES)) == bytes(page(FRAMES)), "R8: new pages are zero"
        for pgoff in range(FRAMES):
            assert victim.write(page(pgoff), b"of the victim") is None
        reused = {store.file("victim").pages.lookup(pgoff) for pgoff in range(FRAMES)}
        assert frames <= reused, "its frames are another VM's now"
        for pfn in frames:
            assert os.pread(liar.window, PAGE_SIZE, page(pfn)) == bytes(PAGE_SIZE), "R1: not a byte of the other"
            liar.touch(pfn, b"into the victim?")
        for pgoff in range(FRAMES):
            assert victim.read(page(pgoff), 13) == b"of the victim", "R1: it writes into its own window only"
        store.is_broken = True
        found = store.findings()
        assert {rule for rule, _ in found} >= {"R8"}, "and memfs check tells of the memory that is not its own"
        liar.ask(Kind.BYE)


def test_memory_that_a_vm_puts_in_its_window_without_a_grant_is_its_own_and_told(store: LocalStore, liar: Wire) -> None:
    """Nothing prevents it: the window is a memfd as it could make one itself, and goes with it."""
    with liar:
        for pfn in range(100, 200):
            liar.touch(pfn)
        assert store.free_count == FRAMES, "no frame of the pool is used up by it"
        store.is_broken = True
        ((rule, text),) = store.findings()
        assert rule == "R8"
        assert f"window {store.file('file').ino} holds memory for frame 0x64" in text
        for pgoff in range(20):
            pfn = liar.get_pfn(pgoff, 1).pfn
            store.create(f"other{pgoff}", 1)
        liar.ask(Kind.BYE)
    until(lambda: store.guest("file").active is None, "it ends")
    until(lambda: store.windows.window_count() == 0, "and its window goes")
    assert store.findings() == []


def test_kept_ranges_that_make_no_sense_keep_only_what_is_its_own(store: LocalStore, liar: Wire) -> None:
    with liar:
        for pgoff in range(8):
            liar.get_pfn(pgoff)
        free = store.free_count
        kept = [(5, 3), (0, (1 << 51) - 1), (2, 4), (2, 4), (60, 64), ((1 << 51) - 1, 0)]
        obedient_punch(store, liar, 0, 64, kept=kept)
        assert store.free_count == FRAMES > free, "a punch takes all, whatever the VM would like to keep"
        assert audit(moment_of(store.service), Facts()) == []
        liar.ask(Kind.BYE)


def test_reclaim_leaves_what_a_vm_claims_to_have_touched_and_no_more(store: LocalStore, liar: Wire) -> None:
    with liar:
        pgoff = 0
        while pgoff < 64:
            pgoff += liar.get_pfn(pgoff).page_count
        pending = store.count(FrameState.PENDING)
        assert pending > 20
        reclaim = Beside(store.reclaim)
        kind, id_, begin = liar.called()
        assert isinstance(begin, m.InvalidateBegin)
        assert begin.reason is m.Reason.RECLAIM
        kept = [(0, (1 << 51) - 1)] * MAX_RUNS_PER_REPORT
        liar.answer(kind, id_, m.InvalidateBeginReply(kept))
        kind, id_, _ = liar.called()
        liar.answer(kind, id_)
        assert reclaim.result() is False
        assert store.count(FrameState.PENDING) == 0, "who claims all has touched all: at most its own file's pages"
        assert store.guest("file").pending == 0
        assert audit(moment_of(store.service), Facts()) == []
        liar.ask(Kind.BYE)


BEGIN = m.InvalidateBegin(0, 1, 0, m.Reason.PUNCH)
UNASKED = [
    lambda wire, id_: wire.answer(Kind.INVALIDATE_BEGIN, id_, m.InvalidateBeginReply([])),
    lambda wire, id_: wire.answer(Kind.INVALIDATE_END, id_),
    lambda wire, id_: wire.answer(Kind.REPORT, id_ + 1, m.ReportReply([], [], 0, (0, 0), -1)),
    lambda wire, id_: wire.up.send(encode_request(id_, Kind.INVALIDATE_BEGIN, BEGIN)),
    lambda wire, id_: wire.up.send(encode_request(1, Kind.BYE, m.Empty())),
    lambda wire, id_: wire.up.send(b"x"),
    lambda wire, id_: wire.up.send(b""),
]


@pytest.mark.parametrize("also", UNASKED, ids=["BEGIN twice", "END", "REPORT", "a request", "BYE", "a byte", "nothing"])
def test_more_than_the_acknowledgement_does_not_count_as_the_next_one(
    store: LocalStore, liar: Wire, also: Callable[[Wire, int], object]
) -> None:
    """What lies in the channel before it is asked for is no answer: cut off, and the frames in quarantine."""
    with liar:
        pfn = liar.get_pfn(0, 1).pfn
        kept = liar.get_pfn(8, 1).pfn
        punch = Beside(lambda: store.punch("file", 0, 8))
        kind, id_, _ = liar.called()
        liar.answer(kind, id_, m.InvalidateBeginReply([]))
        also(liar, id_)
        punch.result()
        pairing = store.guest("file").pairing
        until(lambda: pairing is not None and pairing.state is PairState.DISCONNECTED, "it is cut off")
        with store.service.lock:
            assert store.service.pool.state(kept) is FrameState.QUARANTINED
        assert store.service.pool.state(pfn) is FrameState.FREE, "this one was acknowledged"


def test_acknowledgements_in_advance_free_nothing(store: LocalStore, liar: Wire) -> None:
    with liar:
        pfn = liar.get_pfn(0, 1).pfn
        assert liar.up is not None
        for id_ in (7, 2, 3, 99):
            liar.up.send(encode_reply(id_, Kind.INVALIDATE_BEGIN, m.InvalidateBeginReply([])))
        assert errno_of(store.punch, "file", 0, 8) == "ETIMEDOUT"
        assert store.service.pool.state(pfn) is FrameState.QUARANTINED


def test_an_operations_table_that_lies(store: LocalStore) -> None:
    """It promises REPORT and REVOKE and refuses them; it does not promise END but would get it."""
    store.create("file", 4)
    with Wire(store) as wire:
        wire.hello(operations=[*m.KVM_OPERATIONS, *range(1000, 1050)])
        assert isinstance(wire.pair(), m.PairReply)
        check = Beside(store.findings)
        _, id_, _ = wire.called()
        assert wire.up is not None
        wire.up.send(encode_failure(id_, Kind.REPORT, 95, "not really"))
        ((rule, text),) = check.result()
        assert rule == "R3"
        assert "REPORT refused with EOPNOTSUPP: not really" in text
        assert store.guest("file").active is not None, "a check cuts nobody off"
        wire.ask(Kind.BYE)


def test_a_table_of_thousands_is_refused(store: LocalStore) -> None:
    with Wire(store) as wire:
        wire.id = 1
        body = msgspec.msgpack.encode([1, 0, "vm", list(range(65))])
        assert wire.raw(HEADER.pack(1, Kind.HELLO, 0) + body, Kind.HELLO) == "EINVAL"


# -- those who do not read


def test_who_never_reads_its_answers_is_cut_off(store: LocalStore, liar: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel holds a socket buffer's worth; then the session waits for its deadline, and for no one else."""
    store.create("slow", 8)
    monkeypatch.setattr(memfsd.peers.session, "ACK_DEADLINE_S", 0.2)
    with liar, Wire(store) as slow:
        slow.hello(store.token("slow"))
        slow.pair()
        slow.down.setblocking(False)
        packet, sent = encode_request(1, Kind.STAT, m.Empty()), 0

        def stuffed() -> bool:
            nonlocal sent
            try:
                while True:
                    slow.down.send(packet)
                    sent += 1
            except BlockingIOError:
                return False
            except OSError:
                return True

        until(stuffed, "the connection ends")
        assert sent > 100
        assert liar.get_pfn(0).page_count == 1, "others are served meanwhile"
        until(lambda: store.guest("slow").active is None, "it is cut off")
        liar.ask(Kind.BYE)


def test_a_silent_vm_is_called_so_often_and_no_more(store: LocalStore, liar: Wire) -> None:
    """REPORT after REPORT without an answer: the store remembers 64 of them, then it has enough."""
    with liar:
        peer = store.invalidator.peers[store.file("file").ino]
        assert isinstance(peer.up, UpChannel)
        set_deadline(peer.up._sock, 0.001)
        for _ in range(memfsd.peers.upchannel._MAX_ABANDONED + 5):
            with pytest.raises(PeerLost):
                peer.up.call(Kind.REPORT, m.Report(0), m.ReportReply)
        assert len(peer.up._abandoned) <= memfsd.peers.upchannel._MAX_ABANDONED
        liar.ask(Kind.BYE)


def test_requests_are_answered_in_their_order_however_many_wait(store: LocalStore, liar: Wire) -> None:
    """A flood of requests with one id, then of replayed ones: one answer each."""
    with liar:
        flood = [encode_request(5, Kind.GET_PFN, m.GetPfn(n % 64, 1, 0)) for n in range(100)]
        for packet in flood:
            liar.down.send(packet)
        answers = [liar.down.recv(MAX_PACKET_BYTES) for _ in flood]
        assert len(set(answers)) == 64
        assert store.file("file").pages.page_count == 64
        liar.ask(Kind.BYE)


def test_what_a_vm_binds_is_bounded(store: LocalStore, liar: Wire) -> None:
    with liar:
        liar.ask(Kind.UNBIND, m.Unbind(0, 64))
        store.guest("file").bindings = Bindings(limit=16)
        errors = [liar.ask(Kind.BIND, m.Bind(0, 2 * n, 2 * n, 1)) for n in range(32)]
        assert errors[:16] == [m.Empty()] * 16
        assert set(errors[16:]) == {"ENOSPC"}
        assert len(store.guest("file").bindings) == 16
        liar.ask(Kind.BYE)


def test_tokens_that_are_wrong_or_of_another_file_open_nothing(store: LocalStore) -> None:
    store.create("file", 4)
    store.create("other", 4)
    own, others = store.token("file"), store.token("other")
    with Wire(store) as wire:
        mixed = Token(own.id, others.key)
        wire.hello(own)
        assert wire.pair(prove(KVM, mixed, wire.nonce, wire.store_nonce)) == "EACCES"
        assert wire.pair(bytes(PROOF_BYTES)) == "EACCES"
        assert isinstance(wire.pair(), m.PairReply)
        assert isinstance(wire.ask(Kind.BIND, m.Bind(0, 0, 0, 4)), m.Empty)
        wire.ask(Kind.BYE)
    with Wire(store) as again:
        again.hello(store.token("file"))
        assert again.pair() == "EPERM"
