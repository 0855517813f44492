"""Invalidations: BEGIN, acknowledged, freed, END; and all ways in which a fault can meet one, in a driven order."""

import errno
import socket
from collections.abc import Callable, Iterator
from functools import partial

import pytest

import memfsd.peers.session
from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.exits import MemoryErrorExit
from kvmsim.kvm.mmu.tlb import tlb_key
from memfsd.peers.upchannel import UpChannel
from memfsd.uapi import messages as m
from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.framing import decode_failure, decode_header, encode_failure
from memfsd.uapi.messages import Kind
from memfsd.uapi.units import PAGE_SIZE, Gfn, Pgoff
from tests.support.both_sides import LocalStore, LocalVm, errno_of, page
from tests.support.threads import DEADLINE_S, Beside, Gate, until
from tests.support.wire import HEADER, Wire


@pytest.fixture
def running(store: LocalStore) -> LocalVm:
    """16 private pages at GPA 0, each holding its number."""
    store.create("file", 16)
    local = store.vm()
    local.private_slot(0, 0, page(16), "file")
    for number in range(16):
        assert local.write(page(number), bytes([number + 1])) is None
    return local


def first_bytes(local: LocalVm) -> list[int]:
    found = [local.read(page(number), 1) for number in range(16)]
    return [byte[0] for byte in found if isinstance(byte, bytes)]


WHOLE = [number + 1 for number in range(16)]


# -- punch and truncate, as a guest sees them


def test_a_punched_page_reads_zero_and_other_data_is_intact(store: LocalStore, running: LocalVm) -> None:
    store.punch("file", 4, 3)
    assert first_bytes(running) == [*WHOLE[:4], 0, 0, 0, *WHOLE[7:]]


def test_a_punch_gives_the_frames_back_before_it_returns(store: LocalStore, running: LocalVm) -> None:
    free, seq = store.free_count, running.link().stat().seq
    store.punch("file", 4, 3)
    assert store.free_count == free + 3
    assert store.count(FrameState.CLOSING) == 0
    assert running.link().stat().seq == seq + 1 == running.link().seq, "both sides know the new sequence number"
    assert store.windows.populated_count(store.file("file").ino) == 13, "the memory itself is gone from the window"


def test_a_punch_while_guests_run_never_shows_anything_but_data_or_zeros(store: LocalStore, running: LocalVm) -> None:
    running.vm.create_vcpu(1)
    stop = Gate()

    def guest(number: int) -> set[bytes]:
        seen: set[bytes] = set()
        vcpu = running.vm.vcpu(number)
        while not stop.is_open:
            for at in (5, 6, 9):
                got = running.guest.read(vcpu, page(at), 1)
                assert isinstance(got, bytes), got
                seen.add(got)
        return seen

    guests = [Beside(partial(guest, number)) for number in (0, 1)]
    for _ in range(30):
        store.punch("file", 5, 2)
    stop.open()
    for each in guests:
        assert each.result() <= {b"\0", b"\x06", b"\x07", b"\x0a"}
    assert first_bytes(running) == [*WHOLE[:5], 0, 0, *WHOLE[7:]]


def test_a_punch_of_what_no_vm_has_bound_asks_nobody(store: LocalStore, running: LocalVm) -> None:
    running.vmm.memory.punch_slot(0, page(4), page(4))
    seq = running.vm.mmu.invalidate_seq
    store.punch("file", 4, 4)
    assert running.vm.mmu.invalidate_seq == seq, "a range without a binding does not touch the sequence"
    assert first_bytes(running) == [*WHOLE[:4], *WHOLE[8:]]


def test_a_shrink_takes_back_and_a_page_past_the_end_exits(resizable_store: LocalStore) -> None:
    store = resizable_store
    store.create("file", 16)
    local = store.vm()
    local.private_slot(0, 0, page(16), "file")
    local.touch(0, page(16))
    local.write(page(3), b"kept")
    store.truncate("file", 8)
    assert store.free_count == 1024 - 8
    exit_ = local.read(page(8), 1)
    assert isinstance(exit_, MemoryErrorExit)
    assert (exit_.gpa, exit_.errno) == (page(8), errno.EFAULT)
    assert local.read(page(3), 4) == b"kept"
    store.truncate("file", 16)
    assert local.read(page(8), 4) == bytes(4), "it grew again: new pages, zero"


# -- a fault and an invalidation at once


def hold_next_grant(local: LocalVm, monkeypatch: pytest.MonkeyPatch) -> tuple[Gate, list[m.GetPfnReply]]:
    """The answer to the next GET_PFN stays at a gate on its way to the fault."""
    gate, link = Gate(), local.link()
    real: Callable[[Pgoff, int], m.GetPfnReply] = link.get_pfn
    answers: list[m.GetPfnReply] = []

    def held(pgoff: Pgoff, max_pages: int) -> m.GetPfnReply:
        answers.append(real(pgoff, max_pages))
        if len(answers) == 1:
            gate.wait()
        return answers[-1]

    monkeypatch.setattr(link, "get_pfn", held)
    return gate, answers


def test_an_invalidation_in_the_middle_of_a_fault_retries_it(
    store: LocalStore, running: LocalVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.punch("file", 5, 1)
    gate, answers = hold_next_grant(running, monkeypatch)
    reader = Beside(lambda: running.read(page(5), 4))
    gate.reached()
    store.punch("file", 5, 1)
    store.create("thief", 1)
    store.allocate("thief", 0, 1)
    stolen = store.file("thief").pages.lookup(0)
    assert stolen == answers[0].pfn, "the frame of the answer is another file's by now"
    gate.open()
    assert reader.result() == bytes(4)
    assert running.vm.mmu.retry_count == 1
    assert len(answers) == 2
    mapped = [pfn for _, pfn, _ in running.vm.mmu.epts[PRIVATE].runs(Gfn(5), Gfn(6))]
    assert mapped == [answers[1].pfn + running.link().base]
    assert answers[1].pfn != stolen, "R7: the stale frame was never mapped"


def test_an_invalidation_elsewhere_retries_too_and_maps_the_same_frame(
    store: LocalStore, running: LocalVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sequence number for all, as in KVM: harmless, the fault is only asked again."""
    store.punch("file", 5, 1)
    gate, answers = hold_next_grant(running, monkeypatch)
    reader = Beside(lambda: running.read(page(5), 4))
    gate.reached()
    store.punch("file", 12, 1)
    gate.open()
    assert reader.result() == bytes(4)
    assert running.vm.mmu.retry_count == 1
    (granted,) = answers
    assert running.link().found_count == 1, "the page map had it the second time"
    mapped = [pfn for _, pfn, _ in running.vm.mmu.epts[PRIVATE].runs(Gfn(5), Gfn(6))]
    assert mapped == [granted.pfn + running.link().base]


def test_a_slot_deleted_in_the_middle_of_a_fault_is_not_mapped(
    store: LocalStore, running: LocalVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.punch("file", 5, 1)
    gate, _ = hold_next_grant(running, monkeypatch)
    reader = Beside(lambda: running.read(page(5), 4))
    gate.reached()
    running.delete(0, private=True)
    gate.open()
    assert reader.result() == MemoryErrorExit(page(5), PAGE_SIZE, private=True)
    assert running.vm.mmu.epts[PRIVATE].leaf_count == 0


def hold_scrub(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """An invalidation stays open: acknowledged, its frames not yet free."""
    gate = Gate()
    real = store.windows.punch

    def held(*arguments: object) -> None:
        gate.wait()
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store.windows, "punch", held)
    return gate


def test_a_fault_in_a_closing_range_waits_for_its_end(
    store: LocalStore, running: LocalVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = hold_scrub(store, monkeypatch)
    punch = Beside(lambda: store.punch("file", 4, 4))
    gate.reached()
    assert running.vm.mmu.in_progress == 1
    assert errno_of(running.link().get_pfn, 5, 1) == "EAGAIN"
    assert running.link().stat().frames == 12
    reader = Beside(lambda: running.read(page(5), 4))
    until(lambda: bool(running.vm.mmu.invalidation_ended._waiters), "the fault waits for END")  # type: ignore[attr-defined]
    other = running.vm.create_vcpu(1)
    assert running.guest.read(other, page(3), 1) == b"\x04", "what lies outside the range is not held up"
    assert store.count(FrameState.CLOSING) == 4 and punch.running
    gate.open()
    assert reader.result() == bytes(4)
    punch.result()
    assert running.vm.mmu.in_progress == 0


def test_a_run_ends_where_a_closing_range_begins(
    store: LocalStore, running: LocalVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = hold_scrub(store, monkeypatch)
    punch = Beside(lambda: store.punch("file", 4, 4))
    gate.reached()
    assert running.link().get_pfn(Pgoff(1), 512).page_count == 3
    assert running.link().get_pfn(Pgoff(8), 512).page_count >= 1
    gate.open()
    punch.result()


def test_slots_can_not_change_while_a_range_is_closing(
    store: LocalStore, running: LocalVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The set of bindings is the same at BEGIN and at END, or the count would never come back to zero."""
    gate = hold_scrub(store, monkeypatch)
    punch = Beside(lambda: store.punch("file", 4, 4))
    gate.reached()
    delete = Beside(lambda: running.delete(0, private=True))
    until(lambda: running.vm.slots[PRIVATE].get(0) is None, "the slot goes")
    assert delete.running
    gate.open()
    punch.result()
    delete.result()
    assert (running.vm.mmu.in_progress, len(store.guest("file").bindings)) == (0, 0)


def test_invalidations_of_two_files_of_a_vm_are_two_brackets(
    store: LocalStore, running: LocalVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create("other", 4)
    running.private_slot(1, page(32), page(4), "other")
    running.touch(page(32), page(4))
    gate = hold_scrub(store, monkeypatch)
    first = Beside(lambda: store.punch("file", 0, 1))
    second = Beside(lambda: store.punch("other", 3, 1))
    until(lambda: running.vm.mmu.in_progress == 2, "both are open")
    assert (running.vm.mmu.range_start, running.vm.mmu.range_end) == (0, 36), "one merged range"
    gate.open()
    first.result()
    second.result()
    assert running.vm.mmu.in_progress == 0
    assert running.read(page(35), 1) == b"\0"


# -- the acknowledgement


def test_begin_is_acknowledged_only_after_every_vcpu_left_the_guest(store: LocalStore, running: LocalVm) -> None:
    busy = running.vm.create_vcpu(1)
    busy.enter()
    punch = Beside(lambda: store.punch("file", 5, 1))
    until(lambda: running.vm.mmu.in_progress == 1, "BEGIN arrives")
    until(lambda: running.vcpu.kick_count > 0, "the other vCPU is kicked")
    until(lambda: busy._kickers > 0, "the busy one is asked to leave")
    assert punch.running
    assert store.count(FrameState.CLOSING) == 0 and store.file("file").pages.lookup(5) is not None, "nothing is freed"
    busy.leave()
    punch.result()
    assert store.file("file").pages.lookup(5) is None


def test_a_tlb_holds_nothing_of_the_range_when_begin_is_acknowledged(store: LocalStore, running: LocalVm) -> None:
    assert running.read(page(5), 1) == b"\x06"
    cached = [gfn for gfn in range(16) if running.vcpu.tlb.lookup(tlb_key(gfn, False))]
    assert 5 in cached
    store.punch("file", 5, 1)
    left = [gfn for gfn in range(16) if running.vcpu.tlb.lookup(tlb_key(gfn, False))]
    assert left == [gfn for gfn in cached if gfn != 5], "and keeps what is not of it"
    assert (running.vcpu.tlb.flush_count, running.vcpu.tlb.ranged_flush_count) == (0, 1)


def test_what_was_not_mapped_is_not_flushed_and_every_vcpu_leaves_all_the_same(store: LocalStore) -> None:
    store.create("file", 16)
    local = store.vm()
    local.private_slot(0, 0, page(16), "file")
    assert local.write(0, b"x") is None
    kicks = local.vcpu.kick_count
    store.punch("file", 5, 1)
    assert local.vcpu.kick_count == kicks + 1
    assert (local.vcpu.tlb.flush_count, local.vcpu.tlb.ranged_flush_count, len(local.vcpu.tlb)) == (0, 0, 1)


# -- peers that do not play along


@pytest.fixture
def wire(store: LocalStore) -> Iterator[Wire]:
    """A VM by hand with two touched pages of 16, at file pages 3 and 8."""
    store.create("file", 16)
    with Wire(store) as paired:
        paired.paired("file", 16)
        for pgoff in (3, 8):
            paired.touch(paired.get_pfn(pgoff).pfn)
        yield paired


def test_the_bracket_on_the_wire(store: LocalStore, wire: Wire) -> None:
    punch = Beside(lambda: store.punch("file", 2, 4))
    kind, id_, begin = wire.called()
    assert (kind, begin) == (Kind.INVALIDATE_BEGIN, m.InvalidateBegin(2, 6, 0, m.Reason.PUNCH))
    assert (store.count(FrameState.PRIVATE), punch.running) == (2, True)
    wire.answer(kind, id_, m.InvalidateBeginReply([]))
    kind, id_, end = wire.called()
    assert (kind, end) == (Kind.INVALIDATE_END, m.InvalidateEnd(2, 6, 1))
    assert store.free_count == 1023, "freed between BEGIN and END"
    assert punch.running, "only now the answer to fallocate"
    wire.answer(kind, id_)
    punch.result()
    assert wire.get_pfn(3).seq == 1
    wire.ask(Kind.BYE)


def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memfsd.peers.session, "UpChannel", lambda sock: UpChannel(sock, 0.05))


def test_a_silent_peer_is_etimedout_cut_off_and_its_frames_are_quarantined(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_patience(monkeypatch)
    store.create("file", 16)
    with Wire(store) as wire:
        wire.paired("file", 16)
        frame = wire.get_pfn(3).pfn
        wire.touch(frame, b"mine")
        wire.touch(wire.get_pfn(8).pfn)
        assert errno_of(store.punch, "file", 2, 4) == "ETIMEDOUT"
        until(lambda: store.guest("file").active is None, "the VM is cut off")
        assert wire.ended()
        assert (store.count(FrameState.QUARANTINED), store.free_count) == (2, 1022), "all of its frames, freed none"
        assert store.service.getxattr(store.file("file").ino, b"user.memfsd.frames", bytes).startswith(
            b"private=0 pending=0 quarantined=2 "
        )
        wire.touch(frame, b"it can")
        store.create("next", 1022)
        store.allocate("next", 0, 1022)
        store.create("more", 1)
        assert errno_of(store.allocate, "more", 0, 1) == "ENOSPC", "a quarantined frame is nobody else's"
    with Wire(store) as second:
        second.hello(store.token("file"))
        assert second.pair() == "EPERM"


@pytest.mark.parametrize(
    "answer",
    [
        lambda wire, id_: wire.answer(Kind.INVALIDATE_BEGIN, id_ + 1, m.InvalidateBeginReply([])),
        lambda wire, id_: wire.answer(Kind.INVALIDATE_END, id_, m.Empty()),
        lambda wire, id_: wire.answer(Kind.INVALIDATE_BEGIN, id_, m.Failure("no")),
        lambda wire, id_: wire.up.send(b"junk"),
        lambda wire, id_: wire.up.close(),
    ],
    ids=["another id", "another kind", "another body", "junk", "end of file"],
)
def test_a_broken_acknowledgement_is_none_and_the_frames_are_quarantined(
    store: LocalStore, wire: Wire, answer: Callable[[Wire, int], None]
) -> None:
    punch = Beside(lambda: store.punch("file", 2, 4))
    _, id_, _ = wire.called()
    answer(wire, id_)
    with pytest.raises(Refused) as refused:
        punch.result()
    assert refused.value.errno == errno.ETIMEDOUT
    assert store.count(FrameState.QUARANTINED) == 2
    assert wire.ended()


def test_a_refused_acknowledgement_is_none(store: LocalStore, wire: Wire) -> None:
    punch = Beside(lambda: store.punch("file", 2, 4))
    kind, id_, _ = wire.called()
    assert wire.up is not None
    wire.up.send(encode_failure(id_, kind, errno.EPERM, "I do not want to"))
    with pytest.raises(Refused, match="I do not want to"):
        punch.result()
    assert store.count(FrameState.QUARANTINED) == 2


def test_a_peer_that_is_silent_at_end_is_cut_off_but_the_memory_came_back(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_patience(monkeypatch)
    store.create("file", 16)
    with Wire(store) as wire:
        wire.paired("file", 16)
        for pgoff in (3, 8):
            wire.touch(wire.get_pfn(pgoff).pfn)
        punch = Beside(lambda: store.punch("file", 2, 4))
        kind, id_, _ = wire.called()
        wire.answer(kind, id_, m.InvalidateBeginReply([]))
        punch.result()
        until(lambda: store.count(FrameState.QUARANTINED) == 1, "what it still has is quarantined")
        assert store.free_count == 1023


def test_reserved_operations_are_never_sent_and_kvmsim_refuses_them(store: LocalStore, running: LocalVm) -> None:
    """A store that knows MOVE speaks to a VM that does not."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(DEADLINE_S)
    link = running.link()
    real, link._up = link._up, theirs
    up = Beside(link._serve_up)
    for kind in sorted(m.RESERVED_KINDS):
        ours.send(HEADER.pack(4, kind, 0) + b"\x90")
        packet = ours.recv(4096)
        assert (decode_header(packet).errno, decode_header(packet).kind) == (errno.EOPNOTSUPP, kind)
        assert "is not an operation" in decode_failure(packet).reason
    ours.send(HEADER.pack(5, Kind.INVALIDATE_END, 0) + b"\x93\x00\x01\x00")
    assert decode_header(ours.recv(4096)).errno == errno.EPROTO, "END without BEGIN"
    ours.send(HEADER.pack(6, Kind.INVALIDATE_BEGIN, 0) + b"\x90")
    assert decode_header(ours.recv(4096)).errno == errno.EINVAL
    link._callbacks = Nobody()  # type: ignore[assignment]
    ours.close()
    up.result()
    theirs.close()
    link._up = real
    store.hang_up("file")


class Nobody:
    def on_lost(self, link: object, why: str) -> None:
        pass
