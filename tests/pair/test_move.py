"""Pages that move to other frames under a running guest: MOVE, from the store to KVM's page tables and back."""

import errno
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from kvmsim.kvm import populate
from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.exits import MachineCheckExit
from kvmsim.kvm.mmu.ept import entry_pfn
from kvmsim.kvm.notifier import Notifier
from kvmsim.store.link import StoreLink
from memfsd.uapi import messages as m
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.framing import decode_failure, decode_header, encode_request
from memfsd.uapi.messages import KVM_OPERATIONS, Kind
from memfsd.uapi.units import ORDER_2M, PAGE_SIZE, Gfn, PgoffRange
from tests.support.both_sides import ALTERED, LocalStore, LocalVm, opened_store, page
from tests.support.threads import Beside, Gate, until

PAGES = 16
BUSY, HOLE = -errno.EBUSY, -errno.ENOENT
WHOLE = [number + 1 for number in range(PAGES)]


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def encrypted(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def store(tmp_path: Path, encrypted: bool) -> Iterator[LocalStore]:
    """Two nodes of 64 frames."""
    with opened_store(tmp_path, 128, encrypted=encrypted, nodes=2) as opened:
        yield opened


@pytest.fixture
def running(store: LocalStore) -> LocalVm:
    return started(store)


def started(store: LocalStore, operations: frozenset[Kind] = KVM_OPERATIONS) -> LocalVm:
    """16 private pages at GPA 0, each holding its number."""
    store.create("file", PAGES)
    local = store.vm(operations=operations)
    local.private_slot(0, 0, page(PAGES), "file")
    for number in range(PAGES):
        assert local.write(page(number), bytes([number + 1])) is None
    return local


def first_bytes(local: LocalVm) -> list[int]:
    found = [local.read(page(number), 1) for number in range(PAGES)]
    return [byte[0] for byte in found if isinstance(byte, bytes)]


def frame(local: LocalVm, gfn: int) -> int | None:
    """As the VM maps it, by the store's number."""
    entry = local.vm.mmu.epts[PRIVATE].walk(Gfn(gfn))
    return entry_pfn(entry) - local.link().base if entry else None


def test_a_guest_finds_its_data_in_the_new_frames(store: LocalStore, running: LocalVm) -> None:
    assert store.move("file", range(PAGES), 1) == [1] * PAGES
    assert [frame(running, gfn) for gfn in range(PAGES)] == [store.file("file").pages.lookup(p) for p in range(PAGES)]
    faults = running.vm.mmu.fault_count
    assert first_bytes(running) == WHOLE
    assert running.vm.mmu.fault_count == faults, "END has mapped them"
    assert store.windows.populated_count(store.file("file").ino) == PAGES, "the old frames gave their memory back"
    assert store.move("file", [3, 5], 0) == [0, 0]
    assert first_bytes(running) == WHOLE


def test_a_translation_in_a_tlb_does_not_survive(store: LocalStore, running: LocalVm) -> None:
    assert running.read(page(3), 1) == b"\4"
    store.move("file", [3], 1)
    assert running.write(page(3), b"new") is None
    store.move("file", [3], 0)
    assert running.read(page(3), 3) == b"new"


def test_what_nobody_touched_takes_no_memory_and_can_be_reclaimed(store: LocalStore) -> None:
    store.create("file", PAGES)
    local = store.vm()
    local.private_slot(0, 0, page(PAGES), "file")
    for number in (0, 1, 3, 7):
        assert local.touch(page(number), 1) is None
    granted = store.file("file").pages.page_count
    held = [number for number in range(PAGES) if store.file("file").pages.lookup(number) is not None]
    assert granted > 4
    assert store.move("file", held, 1) == [1] * granted
    assert store.windows.populated_count(store.file("file").ino) == 4
    assert store.reclaim()
    assert store.file("file").pages.page_count == 4


def test_a_kvm_without_the_operation_keeps_its_pages(store: LocalStore) -> None:
    local = started(store, KVM_OPERATIONS - {Kind.MOVE})
    assert store.move("file", range(PAGES), 1) == [BUSY] * PAGES
    assert first_bytes(local) == WHOLE
    assert store.count(FrameState.MOVING) == 0


def test_pages_under_an_ordinary_slot_move_and_are_back_when_it_goes(store: LocalStore, running: LocalVm) -> None:
    running.vmm.set_policy("overlay", "kept")
    running.shared_slot(9, page(4), page(2))
    running.kvm.blocking.set_overlay(True)
    assert store.move("file", range(PAGES), 1) == [1] * PAGES
    assert frame(running, 4) is None, "it lies under a slot"
    assert frame(running, 6) is not None
    running.delete(9, private=False)
    assert first_bytes(running) == WHOLE
    assert frame(running, 4) == store.file("file").pages.lookup(4)


def end_delayed(monkeypatch: pytest.MonkeyPatch, before_end: Callable[[], None]) -> None:
    """Between the acknowledgement of a MOVE and its END."""
    real = Notifier.on_end

    def on_end(notifier: Notifier, link: StoreLink, end: m.InvalidateEnd) -> None:
        before_end()
        real(notifier, link, end)

    monkeypatch.setattr(Notifier, "on_end", on_end)


def test_a_slot_that_goes_before_the_end_takes_the_moved_pages_with_it(
    store: LocalStore, running: LocalVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    going: list[Beside[None]] = []

    def delete() -> None:
        if not going:
            going.append(Beside(partial(running.delete, 0, private=True)))
            until(lambda: not running.vm.slots[PRIVATE].lookup(Gfn(3)), "the slot is gone")
            until(lambda: not running.vm.mmu.blocked, "what it showed is taken")

    end_delayed(monkeypatch, delete)
    store.move("file", [3], 1)
    going[0].result()
    assert frame(running, 3) is None
    assert store.findings() == []


def test_an_image_that_is_refused_is_destroyed_though_its_pages_have_moved(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """END comes when the pages are unmapped and not destroyed yet: it must not map them again (R7)."""
    store.create("file", PAGES)
    local = store.vm()
    local.private_slot(0, 0, page(PAGES), "file")
    monkeypatch.setattr(populate, "_BATCH_PAGES", PAGES // 2)
    acknowledged, unmapped, ended = Gate(), Gate(), Gate()
    notifier, unmapper = local.kvm.notifier, local.kvm.unmapper
    on_move, on_end, kick_all = notifier.on_move, notifier.on_end, unmapper.kick_all
    moving: list[Beside[list[int]]] = []

    def move(link: StoreLink, asked: m.Move) -> list[PgoffRange]:
        kept = on_move(link, asked)
        acknowledged.open()
        return kept

    def end(link: StoreLink, asked: m.InvalidateEnd) -> None:
        unmapped.wait()
        on_end(link, asked)
        ended.open()

    def kick() -> None:
        kick_all()
        if acknowledged.is_open:
            unmapped.open()
            ended.wait()

    def read(offset: int, length: int) -> bytes:
        if not offset:
            return b"x" * length
        for name, call in (("on_move", move), ("on_end", end)):
            monkeypatch.setattr(notifier, name, call)
        monkeypatch.setattr(unmapper, "kick_all", kick)
        moving.append(Beside(partial(store.move, "file", range(PAGES // 2), 1)))
        acknowledged.wait()
        raise OSError(errno.EIO, "the image ends")

    with pytest.raises(OSError, match="the image ends"):
        local.kvm.image.populate(local.vcpu, 0, PAGES, read)
    assert moving[0].result() == [1] * (PAGES // 2)
    assert first_bytes(local) == [0] * PAGES
    assert store.findings() == []


def test_a_large_page_moves_as_one_leaf(tmp_path: Path) -> None:
    large = 1 << ORDER_2M
    with opened_store(tmp_path, 4 * large, nodes=2) as store:
        store.create("file", large, page_size="2M")
        local = store.vm()
        local.private_slot(0, 0, page(large), "file")
        assert local.write(page(77), b"data") is None
        assert store.move("file", [5], 1) == [1]
        assert local.vm.mmu.epts[PRIVATE].leaf_counts == (0, 1, 0)
        assert local.read(page(77), 4) == b"data"
        assert store.windows.populated_count(store.file("file").ino) == 1


def test_guests_that_write_while_their_pages_move_to_and_fro_lose_nothing(store: LocalStore, running: LocalVm) -> None:
    running.vm.create_vcpu(1)
    stop = Gate()

    def guest(number: int) -> int:
        """Each vCPU has every second page, and counts in it."""
        vcpu, rng, count = running.vm.vcpu(number), random.Random(number), 0
        last = dict.fromkeys(range(number, PAGES, 2), 0)
        while not stop.is_open:
            at = rng.choice(list(last))
            if last[at]:
                got = running.guest.read(vcpu, page(at), 8)
                assert isinstance(got, bytes)
                assert int.from_bytes(got, "little") == last[at]
            count += 1
            last[at] = count << 8 | at
            assert running.guest.write(vcpu, page(at), last[at].to_bytes(8, "little")) is None
        return count

    guests = [Beside(partial(guest, number)) for number in (0, 1)]
    rng = random.Random(5)
    for turn in range(40):
        pages = rng.sample(range(PAGES), 6)
        assert store.move("file", pages, turn % 2) == [turn % 2] * 6
    stop.open()
    assert min(each.result() for each in guests) > 0
    assert store.findings() == []


def test_a_page_that_was_altered_stays_and_the_others_move(tmp_path: Path) -> None:
    with opened_store(tmp_path, 128, encrypted=True, nodes=2) as store:
        local = started(store)
        at = frame(local, 5)
        assert at is not None
        local.link().memory.tamper(at * PAGE_SIZE, ALTERED)
        assert store.move("file", range(PAGES), 1) == [1] * 5 + [BUSY] + [1] * 10
        assert isinstance(local.read(page(5), 1), MachineCheckExit)
        assert local.read(page(4), 1) == b"\5"
        assert local.read(page(6), 1) == b"\7"


MOVES = [
    [(4, 0, 9, 1), (2, 1, 8, 1)],
    [(2, 0, 8, 2), (3, 1, 9, 1)],
    [(15, 0, 8, 2)],
    [(0, 0, 127, 2)],
    [(0, 128, 8, 1)],
]


@pytest.mark.parametrize("moves", MOVES)
def test_a_move_that_cannot_be_is_refused_and_nothing_has_happened(
    store: LocalStore, running: LocalVm, moves: list[tuple[int, int, int, int]]
) -> None:
    packet, ok = running.link()._answer(
        7, Kind.MOVE, memoryview(encode_request(7, Kind.MOVE, m.Move(0, PAGES, 0, moves))), legal=True
    )
    assert (ok, decode_header(packet).errno) == (False, errno.EINVAL)
    assert decode_failure(packet).reason
    assert running.vm.mmu.in_progress == 0
    assert first_bytes(running) == WHOLE


def test_a_store_that_names_another_frame_moves_nothing(store: LocalStore, running: LocalVm) -> None:
    """A VM knows where its pages are."""
    link = running.link()
    assert running.kvm.notifier.on_move(link, m.Move(3, 4, 0, [(3, (frame(running, 3) or 0) + 50, 100, 1)])) == [(3, 4)]
    running.kvm.notifier.on_end(link, m.InvalidateEnd(3, 4, link.seq))
    assert first_bytes(running) == WHOLE


def test_random_moves_among_accesses_and_punches(store: LocalStore, running: LocalVm) -> None:
    """Against a dict of guest memory; R1 to R8 after each step."""
    rng = random.Random(11)
    model = {number: number + 1 for number in range(PAGES)}
    for step in range(120):
        match rng.randrange(4):
            case 0:
                at, value = rng.randrange(PAGES), step % 255 + 1
                assert running.write(page(at), bytes([value])) is None
                model[at] = value
            case 1:
                at = rng.randrange(PAGES)
                assert running.read(page(at), 1) == bytes([model[at]])
            case 2:
                start = rng.randrange(PAGES)
                store.punch("file", start, 1)
                model[start] = 0
            case _:
                node = rng.randrange(2)
                for status in store.move("file", rng.sample(range(PAGES), 5), node):
                    assert status in (node, HOLE)
        assert store.findings() == []
    assert first_bytes(running) == [model[number] for number in range(PAGES)]
