"""memfs check, map and top, asked for more than fits and answered with more than can be."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, cast

import pytest

from memfsd.core.audit import Facts, audit
from memfsd.core.files.inodes import Regular
from memfsd.core.memory.large import whole_order
from memfsd.core.moment import Moment
from memfsd.host.windows import Windows
from memfsd.store.checker import Checker, file_list, page_map
from memfsd.store.deadlines import Deadlines
from memfsd.store.invalidator import Invalidator
from memfsd.uapi.errors import PeerLost
from memfsd.uapi.framing import decode_reply, encode_reply
from memfsd.uapi.limits import (
    MAX_FILES_PER_LIST,
    MAX_FINDINGS,
    MAX_LINE_CHARS,
    MAX_RUNS_PER_REPORT,
    VMS_PER_CHECK_THREAD,
)
from memfsd.uapi.messages import Kind, Report, ReportReply
from memfsd.uapi.units import PAGE_SIZE, Pfn
from tests.support.bodies import WIDEST
from tests.support.core_store import PUNCH, CoreStore
from tests.support.threads import DEADLINE_S

P = PAGE_SIZE


class FakeWindows:
    """In the place of Windows: which frames hold memory."""

    def __init__(self, store: CoreStore) -> None:
        self._store = store

    def files(self) -> list[int]:
        return []

    def populated(self, window: int | None) -> list[tuple[int, int]]:
        facts = self._store.facts()
        return facts.populated if window is None else facts.windows.get(window, [])  # type: ignore[call-overload]

    def populated_count(self, window: int) -> int:
        return sum(end - start for start, end in self.populated(window))

    def first_written(self, pfn: Pfn, count: int) -> int | None:
        return self._store.windows.first_written(pfn, count)


class TalkativeVm:
    """In the place of a Peer: its up channel answers each REPORT with what it is made with."""

    def __init__(self, reports: Iterator[ReportReply | PeerLost]) -> None:
        self.vm, self.up, self.process, self.said_bye = "vm0", self, self, False
        self._reports = reports
        self.asked: list[int] = []

    def call(self, kind: Kind, body: Report, _: type[ReportReply]) -> ReportReply:
        assert kind is Kind.REPORT
        self.asked.append(body.cursor)
        report = next(self._reports)
        if isinstance(report, PeerLost):
            raise report
        return report

    def wait_dead(self, _: float) -> bool:
        return False


class PeersOf:
    """In the place of Invalidator."""

    def __init__(self) -> None:
        self.peers: dict[int, TalkativeVm] = {}

    @contextlib.contextmanager
    def hold_all(self, files: list[Regular]) -> Iterator[list[Regular]]:
        yield files


@pytest.fixture
def peers() -> PeersOf:
    return PeersOf()


@pytest.fixture
def checker(store: CoreStore, peers: PeersOf) -> Checker:
    return Checker(store.service, cast(Windows, FakeWindows(store)), cast(Invalidator, peers), Deadlines())


@pytest.fixture
def store() -> CoreStore:
    return CoreStore(pages=4096)


def listed(store: CoreStore) -> Any:
    return file_list(store.service, cast(Windows, FakeWindows(store)))


# -- LIST


def test_a_list_of_files_with_the_longest_names_fits_in_a_packet(store: CoreStore) -> None:
    for number in range(MAX_FILES_PER_LIST + 8):
        inner = store.mkdir(f"{number:03}" + WIDEST * 60)
        file = store.make(WIDEST * 63, parent=inner)
        store.seal(file)
        store.pair(file, WIDEST * 64)
    reply = listed(store)
    assert (len(reply.files), reply.file_count) == (MAX_FILES_PER_LIST, MAX_FILES_PER_LIST + 8)
    assert decode_reply(Kind.LIST, encode_reply(1, Kind.LIST, reply)) == reply


def test_a_list_has_the_files_that_hold_most(store: CoreStore) -> None:
    for pages in range(1, MAX_FILES_PER_LIST + 5):
        file = store.guest_file(f"file{pages}", pages)
        store.fallocate(file, 0, 0, pages * P)
    assert [file.frames for file in listed(store).files] == list(range(MAX_FILES_PER_LIST + 4, 4, -1))


def test_a_list_has_the_files_of_vms_before_all_others(store: CoreStore) -> None:
    for pages in range(1, MAX_FILES_PER_LIST + 5):
        file = store.guest_file(f"file{pages}", pages)
        store.fallocate(file, 0, 0, pages * P)
    held = store.guest_file("held", 1)
    store.pair(held, "vm0")
    assert [file.ino for file in listed(store).files][:2] == [held.ino, file.ino]


# -- CHECK


class MeetingVm(TalkativeVm):
    """Answers when others are asked, too."""

    def __init__(self, meeting: threading.Barrier, report: ReportReply | Exception) -> None:
        super().__init__(iter([]))
        self._meeting, self._report = meeting, report

    def call(self, kind: Kind, body: Report, _: type[ReportReply]) -> ReportReply:
        self._meeting.wait(DEADLINE_S)
        if isinstance(self._report, Exception):
            raise self._report
        return self._report


def test_vms_are_asked_side_by_side(store: CoreStore, checker: Checker, peers: PeersOf) -> None:
    """One after the other, the first would not answer before the second is asked."""
    side_by_side = 3
    meeting = threading.Barrier(side_by_side)
    for number in range(2 * VMS_PER_CHECK_THREAD + 1):
        file = store.guest_file(f"file{number}", 1)
        store.pair(file)
        peers.peers[file.ino] = MeetingVm(meeting, ReportReply([], [], 0, (0, 0), -1))
    assert checker.check().findings == []


def test_what_fails_beside_is_not_lost(store: CoreStore, checker: Checker, peers: PeersOf) -> None:
    meeting = threading.Barrier(2)
    for number in range(VMS_PER_CHECK_THREAD):
        file = store.guest_file(f"file{number}", 1)
        store.pair(file)
        peers.peers[file.ino] = MeetingVm(meeting, KeyError("it is broken"))
    with pytest.raises(KeyError, match="it is broken"):
        checker.check()


def test_as_many_findings_as_fit_are_told_and_each_in_a_line(store: CoreStore, checker: Checker) -> None:
    for number in range(MAX_FINDINGS + 5):
        store.guest_file(f"file{number}").size = 5
    reply = checker.check()
    assert len(reply.findings) == MAX_FINDINGS
    assert decode_reply(Kind.CHECK, encode_reply(1, Kind.CHECK, reply)) == reply


def test_what_a_vm_says_of_itself_is_cut_to_a_line(store: CoreStore, checker: Checker, peers: PeersOf) -> None:
    file, _ = store.bound_file("file", 4)
    refusal = PeerLost("REPORT refused with EIO: " + WIDEST * 4096)
    peers.peers[file.ino] = TalkativeVm(iter([refusal]))
    ((rule, text),) = checker.check().findings
    assert rule == "R3"
    assert len(text) == MAX_LINE_CHARS


def reports_for_ever(**parts: list[Any]) -> Iterator[ReportReply]:
    cursor = 0
    while True:
        cursor += 1
        yield ReportReply(parts.get("slots", []), parts.get("mappings", []), 0, (0, 0), cursor)


@pytest.mark.parametrize(
    "parts",
    [{}, {"slots": [(1, 0x100, 0, 1)]}, {"mappings": [(0x100, 0, 1)] * MAX_RUNS_PER_REPORT}],
    ids=["empty", "slots", "mappings"],
)
def test_a_vm_that_never_stops_reporting_does_not_keep_the_check(
    store: CoreStore, checker: Checker, peers: PeersOf, parts: dict[str, list[Any]]
) -> None:
    """A report has at most as many mappings as frames, slots as bindings, and no empty part but the last."""
    file, _ = store.bound_file("file", 4)
    peers.peers[file.ino] = TalkativeVm(reports_for_ever(**parts))
    assert "R3" in [rule for rule, _ in checker.check().findings]


def test_a_report_in_parts_is_put_together(store: CoreStore, checker: Checker, peers: PeersOf) -> None:
    file, _ = store.bound_file("file", 4)
    frames = [int(store.fault(file, pgoff).pfn) for pgoff in (0, 2)]
    vm = TalkativeVm(
        iter(
            [
                ReportReply([(1, 0x100, 0, 4)], [(0x100, frames[0], 1)], 0, (0, 0), 0x102),
                ReportReply([], [(0x102, frames[1], 1)], 0, (0, 0), -1),
            ]
        )
    )
    peers.peers[file.ino] = vm
    assert checker.check().findings == []
    assert vm.asked == [0, 0x102]


class BusyWindows(FakeWindows):
    """Something happens just before the memory of ordinary files is looked at, or just after."""

    def __init__(self, store: CoreStore, before: Callable[[], object], after: Callable[[], object]) -> None:
        super().__init__(store)
        self._before, self._after = before, after

    def populated(self, window: int | None) -> list[tuple[int, int]]:
        if window is not None:
            return super().populated(window)
        assert not self._store.service.lock.locked(), "it takes as long as there are extents"
        self._before()
        found = super().populated(None)
        self._after()
        return found


def nothing() -> None:
    pass


def checked(
    store: CoreStore, before: Callable[[], object] = nothing, after: Callable[[], object] = nothing
) -> list[tuple[str, str]]:
    windows = cast(Windows, BusyWindows(store, before, after))
    return checker_of(store, windows).check().findings


def checker_of(store: CoreStore, windows: Windows) -> Checker:
    return Checker(store.service, windows, cast(Invalidator, PeersOf()), Deadlines())


def test_ordinary_files_that_grow_and_go_meanwhile_are_no_findings(store: CoreStore) -> None:
    """The look finds memory for frames that were free at the moment, and are ordinary or empty by now."""
    stays, goes = store.make("stays"), store.make("goes")

    def grow() -> None:
        for file in (stays, goes):
            store.write(store.open(file), 0, b"x" * 99 * P)

    assert checked(store, grow, lambda: store.resize(goes, 0)) == []


def test_memory_of_free_frames_that_is_there_at_both_looks_is_a_finding(store: CoreStore) -> None:
    first = store.pool.frame_count - 1500
    for pfn in (first, first + 1, first + 1400):
        store.memory[None, pfn] = bytearray(P)
    where = "the pool of ordinary files holds memory for frame"
    assert checked(store) == [
        ("R8", f"{where} {first:#x}, which is free and not its own"),
        ("R8", f"{where} {first + 1400:#x}, which is free and not its own"),
    ]
    assert checked(store, after=store.memory.clear) == []


def test_the_audit_runs_without_the_lock(store: CoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[bool] = []

    def watched(moment: Moment, facts: Facts) -> list[tuple[str, str]]:
        locked.append(store.service.lock.locked())
        return audit(moment, facts)

    monkeypatch.setattr("memfsd.store.checker.audit", watched)
    assert checked(store) == []
    assert locked == [False]


# -- MAP


def test_a_map_is_split_where_binding_or_state_changes(store: CoreStore) -> None:
    file = store.guest_file("file", 16)
    store.pair(file)
    store.gmem.bind(file, 1, 0x100, 0, 8)
    store.fallocate(file, 0, 12 * P, 2 * P)
    for pgoff in (0, 1, 3):
        store.fault(file, pgoff, 512)
    reply = store.store.checker.map_of(file.ino, 0, 0)
    assert [(pgoff, count, gfn, state) for pgoff, _, count, gfn, state, *_ in reply.runs] == [
        (0, 2, 0x100, 2),
        (2, 1, 0x102, 3),
        (3, 1, 0x103, 2),
        (4, 3, 0x104, 3),
        (12, 2, -1, 2),
    ]
    assert reply.next_pgoff == -1


def test_a_map_is_split_where_a_node_ends() -> None:
    store = CoreStore(16, nodes=2)
    file = store.make("file")
    store.fallocate(file, 0, 0, 16 * P)
    assert store.store.checker.map_of(file.ino, 0, 0).runs == [(0, 0, 8, -1, 1, 0, 0), (8, 8, 8, -1, 1, 1, 0)]


def test_a_long_map_goes_on_where_it_stopped(store: CoreStore) -> None:
    file = store.guest_file("file", 4096)
    for pgoff in range(0, 4096, 2):
        store.fallocate(file, 0, pgoff * P, P)
    first = store.store.checker.map_of(file.ino, 0, 0)
    assert len(first.runs) == MAX_RUNS_PER_REPORT
    second = store.store.checker.map_of(file.ino, 0, first.next_pgoff)
    assert [run[0] for run in first.runs + second.runs] == list(range(0, 4096, 2))
    assert second.next_pgoff == -1


@pytest.mark.parametrize("page_size", ["2M", "1G"])
def test_a_map_tells_whole_pages_from_split_ones_wherever_it_begins(page_size: str) -> None:
    gig, chosen = 1 << 18, Random(f"map {page_size}")
    store = CoreStore(6 * gig, split=True)
    file = store.guest_file("file")
    store.setfattr(file, "page_size", page_size)
    store.resize(file, 5 * gig * P)
    store.fallocate(file, 1, 0, 5 * gig * P)
    for first in (gig, 3 * gig, 4 * gig):
        for _ in range(3):
            store.fallocate(file, PUNCH, (first + chosen.randrange(gig)) * P, P)
    store.fallocate(file, PUNCH, 0, 512 * P)
    starts = [0, 1, 511, 512, gig - 1, gig, gig + 700, *(chosen.randrange(5 * gig) for _ in range(20))]
    for start in starts:
        with store.service.lock:
            runs = page_map(store.service, file, start, 999).runs
        assert runs[0][0] == file.pages.next_data(start)
        for at, _, count, *_, order in runs:
            for page in {at, at + count - 1, *range((at | 511) + 1, at + count, 512)}:
                assert whole_order(file.pages, page, file.order) == order, (start, at, page)
