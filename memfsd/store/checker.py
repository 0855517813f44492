"""memfs check, memfs map and memfs top: what both sides hold, asked and compared."""

import errno
import heapq
import threading
import time
from collections.abc import Iterator

from memfsd.common import sync
from memfsd.core.audit import Facts, Finding, FrameRange, PeerReport, audit, misplaced, misplaced_now
from memfsd.core.files.inodes import Regular
from memfsd.core.files.xattrs import owner_line
from memfsd.core.gmem import guest_of
from memfsd.core.memory.large import whole_order
from memfsd.core.moment import Moment
from memfsd.core.private.absent import AbsentPages
from memfsd.core.private.device_memory import Device
from memfsd.core.service import Service
from memfsd.host.effect_runner import PAUSE_S
from memfsd.host.windows import Windows
from memfsd.uapi.errors import PeerLost, Refused
from memfsd.uapi.frame_state import SWAPPED, FrameState
from memfsd.uapi.limits import (
    MAX_BINDINGS_PER_FILE,
    MAX_CHECK_THREADS,
    MAX_FILES_PER_LIST,
    MAX_FINDINGS,
    MAX_LINE_CHARS,
    MAX_RUNS_PER_REPORT,
    VMS_PER_CHECK_THREAD,
)
from memfsd.uapi.messages import CheckReply, FileReport, Kind, ListReply, MapReply, Report, ReportReply
from memfsd.uapi.units import ORDER_2M, ORDER_4K, PAGE_SHIFT, PGOFF_END, Ino, Pfn, Pgoff

from .deadlines import Deadlines
from .invalidator import Invalidator
from .peer import Peer, PeerGone, PeerSilent

_Run = tuple[int, int, int, int, int, int, int]
"""Of a map: as MapReply has them."""
_RUNS_AT_ONCE = 16
_PAGES_AT_ONCE = 1 << 20
"""Of a map, in one step."""
_FRAMES_AT_ONCE = 1024
"""Looked at again in one step: a lseek(2) of a microsecond for every second one at most."""


class Checker:
    """One moment of all files: with every invalidate_lock held, no page leaves a file and no binding changes.

    Guests go on. What they fault in meanwhile adds pages to the store and mappings to VMs that were asked already;
    that is no difference, since a VM may know less than the store, never more. Then the store's own state is
    copied with Service.lock held, and compared without any lock.
    """

    def __init__(self, service: Service, windows: Windows, invalidator: Invalidator, deadlines: Deadlines) -> None:
        self._service = service
        self._windows = windows
        self._invalidator = invalidator
        self._deadlines = deadlines
        self._turn = sync.lock("Checker.turn")

    def check(self) -> CheckReply:
        """EBUSY while another check runs. It changes nothing, but that a VM whose connection has ended is cut off."""
        if not self._turn.acquire(timeout=self._deadlines.check_turn_s):
            raise Refused(errno.EBUSY, "another memfs check is running: try again")
        try:
            return self._check()
        finally:
            self._turn.release()

    def _check(self) -> CheckReply:
        service, facts = self._service, Facts()
        with service.lock:
            files = service.inodes.sealed_files()
        windows = set(self._windows.files())
        with self._invalidator.hold_all(files) as held:
            ours = {file.ino for file in held}
            findings = [self._endless(file) for file in files if file.ino not in ours]
            findings += self._ask_all(held, facts)
            with service.lock:
                there = self._windows.files()
                moment = Moment(service, ours)
            is_whole = False
            while not is_whole:
                with service.lock:
                    is_whole = not moment.copy_some()
                time.sleep(0 if is_whole else PAUSE_S)
        facts.moving = {file.ino for file in moment.unsettled}
        # One that is about to be dropped is so under its invalidate_lock.
        unheld = {file.ino for file in files} - ours | facts.moving
        facts.held_windows = [ino for ino in there if ino in windows - unheld]
        facts.populated = self._leaks(moment)
        findings += audit(moment, facts)
        pairings = sum(guest_of(file).active is not None for file in moment.sealed)
        report = [(rule, text[:MAX_LINE_CHARS]) for rule, text in findings[:MAX_FINDINGS]]
        return CheckReply(report, moment.inode_count, pairings, moment.frame_count)

    def _leaks(self, moment: Moment) -> list[FrameRange]:
        """Frames of which the pool of ordinary files holds memory, though they were not theirs at the moment, nor are.

        Ordinary files have gone on since, so each suspect is looked at once more, in steps with the lock held.
        """
        leaks: list[FrameRange] = []
        for start, end in misplaced(moment, self._windows.populated(None)):
            for low in range(start, end, _FRAMES_AT_ONCE):
                with self._service.lock:
                    for first, stop in misplaced_now(self._service, low, min(low + _FRAMES_AT_ONCE, end)):
                        at = self._windows.first_written(Pfn(first), stop - first)
                        if at is not None:
                            leaks.append((first + at, first + at + 1))
                if len(leaks) >= MAX_FINDINGS:
                    return leaks
        return leaks

    def _ask_all(self, files: list[Regular], facts: Facts) -> list[Finding]:
        """Several VMs at a time, so that the slow ones do not use up the time of the others."""
        until = time.monotonic() + self._deadlines.check_reports_s
        left, found, failed = files[::-1], dict[Ino, list[Finding]](), list[Exception]()

        def ask() -> None:
            while not failed:
                try:
                    file = left.pop()
                except IndexError:
                    return
                try:
                    found[file.ino] = self._ask(file, facts, until)
                    facts.windows[file.ino] = self._windows.populated(file.ino)
                except Exception as error:
                    failed.append(error)

        helper_count = min(len(self._invalidator.peers) // VMS_PER_CHECK_THREAD, MAX_CHECK_THREADS)
        helpers = [sync.thread(ask, "check") for _ in range(helper_count)]
        started = [helper for helper in helpers if _has_started(helper)]
        ask()
        for helper in started:
            helper.join()  # each question has its deadline
        if failed:
            raise failed[0]
        return [finding for file in files for finding in found[file.ino]]

    def _ask(self, file: Regular, facts: Facts, until: float) -> list[Finding]:
        """What the file's VM reports, into the facts. Call with the file's invalidate_lock held."""
        with self._service.lock:
            pairing = guest_of(file).active
            peer = self._invalidator.peers.get(file.ino)
        if pairing is None:
            return []
        if peer is None:
            return [("R1", f"inode {file.ino}: VM {pairing.vm} is paired, and has no connection")]
        if not pairing.implements(Kind.REPORT):
            return []
        try:
            facts.reports[file.ino] = self._report(peer, file, until)
        except PeerLost as lost:
            left = max(until - time.monotonic(), 0)
            patience = 0 if isinstance(lost, PeerSilent) else min(self._deadlines.proof_s, left)
            if peer.said_bye or peer.process.wait_dead(patience):
                return []  # it breaks no rule to end, and its session gives the frames back
            if isinstance(lost, PeerGone):
                self._invalidator.disconnect(peer, str(lost))  # as its session is about to, once it has the lock
                return []
            return [("R3", f"inode {file.ino}: VM {peer.vm} does not report: {lost}")]
        return []

    def _report(self, peer: Peer, file: Regular, until: float) -> PeerReport:
        """All parts of it. PeerLost also when it does not come to an end."""
        report, cursor, part_count = PeerReport(), 0, 0
        while cursor >= 0:
            if time.monotonic() > until:
                raise PeerLost(f"only {part_count} parts of its report came before the deadline for all VMs")
            part = peer.up.call(Kind.REPORT, Report(cursor), ReportReply)
            part_count += 1
            report.slots += part.slots
            report.mappings += part.mappings
            report.changing.append(part.changing)
            report.seq = part.seq
            # A slot that goes on in a next part is reported again: only a part that is full of mappings has a next one.
            most_slots = MAX_BINDINGS_PER_FILE + len(report.mappings) // MAX_RUNS_PER_REPORT + 1
            if len(report.slots) > most_slots or len(report.mappings) > self._most_mappings(file):
                raise PeerLost("it reports more slots or mappings than there can be")
            goes_on = part.next_cursor > cursor and (part.slots or part.mappings)
            cursor = part.next_cursor if goes_on else -1
        return report

    def _most_mappings(self, file: Regular) -> int:
        """A VM maps each page of the file once; a report starts over at most at each binding."""
        pages = file.size >> PAGE_SHIFT
        if guest_of(file).device is None:
            pages = min(pages, self._service.pool.frame_count)
        return pages + MAX_BINDINGS_PER_FILE

    def _endless(self, file: Regular) -> Finding:
        return "R7", f"inode {file.ino}: a bracket has been open for {self._deadlines.check_locks_s:.0f} seconds"

    # -- memfs map, memfs top

    def map_of(self, ino: Ino, uid: int, pgoff: int) -> MapReply:
        """Where the pages of a file are, from pgoff on. EACCES for a user who neither owns it nor is root."""
        with self._service.lock:
            file = self._service.inodes.regular(ino)
            if uid not in (0, file.uid):
                raise Refused(errno.EACCES, f"uid {uid} does not own inode {file.ino}: run it as root or as the owner")
        # Without the lock: how long it takes is up to the VM, which may touch every second page of its window.
        populated = self._windows.populated(file.ino) if file.guest is not None else []
        if populated:
            settle(self._service, file, populated)
        reply, at = MapReply([], -1), pgoff
        while at >= 0:
            with self._service.lock:
                part = page_map(self._service, file, at, min(_RUNS_AT_ONCE, MAX_RUNS_PER_REPORT - len(reply.runs)))
            _append(reply.runs, part.runs)
            at = reply.next_pgoff = part.next_pgoff
            if len(reply.runs) >= MAX_RUNS_PER_REPORT:
                break
            time.sleep(0 if at < 0 else PAUSE_S)
        return reply

    def files(self) -> ListReply:
        """The pool, the sealed files that VMs hold, and of the others those with most frames."""
        return file_list(self._service, self._windows)


def _has_started(thread: threading.Thread) -> bool:
    try:
        thread.start()
    except RuntimeError:  # there are no more: the others do its work
        return False
    return True


def page_map(service: Service, file: Regular, pgoff: int, most: int) -> MapReply:
    """Runs (pgoff, pfn, pages, gfn or -1, state, node, order), split where one of the last changes: at most so many,
    and no more than one step should look at."""
    runs: list[_Run] = []
    if file.guest is not None and file.guest.device is not None:
        return _device_map(file, file.guest.device, pgoff, most)
    end = _step_end(file, pgoff)
    for entry in _entries(file, pgoff, end):
        start, first, count, state = entry
        at, last = max(start, pgoff), min(start + count, end)
        while at < last:
            if len(runs) >= most:
                return MapReply(runs, at)
            binding = file.guest.bindings.find(at) if file.guest else None
            stop = min(last, binding.end) if binding else _next_binding(file, at, last)
            gfn = binding.gfn_of(at) if binding else -1
            if first is None:
                runs.append((at, -1, stop - at, gfn, state, -1, 0))
                at = stop
                continue
            pfn = first + at - start
            node, node_end = service.pool.node_at(pfn)
            stop = min(stop, at + node_end - pfn)
            order, stop = _large_pages(entry, file.order, at, stop)
            is_shared, stop = _shared_until(file, at, stop)
            state, length = service.pool.state_run(pfn, stop - at)
            state = FrameState.SHARED if is_shared and state is FrameState.PRIVATE else state
            runs.append((at, pfn, length, gfn, int(state), node, order))
            at += length
    may_be_more = file.pages.next_data(end) is not None or (file.guest is not None and bool(file.guest.absent))
    return MapReply(runs, end if end < PGOFF_END and may_be_more else -1)


def _step_end(file: Regular, pgoff: int) -> int:
    """Up to where one step looks, from its first page with a frame; PGOFF_END: there is none."""
    first = file.pages.next_data(pgoff)
    return max(PGOFF_END, pgoff) if first is None else min(first + _PAGES_AT_ONCE, PGOFF_END)


def _append(runs: list[_Run], more: list[_Run]) -> None:
    """Where a step ended in the middle of a run it goes on."""
    for run in more:
        if runs and _goes_on(runs[-1], run):
            runs[-1] = (*runs[-1][:2], runs[-1][2] + run[2], *runs[-1][3:])
        else:
            runs.append(run)


def _goes_on(run: _Run, following: _Run) -> bool:
    at, pfn, length, gfn, *alike = run
    moved = [at + length, pfn if pfn < 0 else pfn + length, gfn if gfn < 0 else gfn + length]
    next_at, next_pfn, _, next_gfn, *others = following
    return [next_at, next_pfn, next_gfn, *others] == [*moved, *alike]


def _shared_until(file: Regular, at: int, stop: int) -> tuple[bool, int]:
    """Whether a page of a guest_memfd is shared, and up to where that is so."""
    if file.guest is None or file.guest.memfd is None:
        return False, stop
    is_shared, until = file.guest.memfd.shared_until(at)
    return is_shared, stop if until is None else min(stop, until)


def _device_map(file: Regular, device: Device, pgoff: int, most: int) -> MapReply:
    """Its frames are numbered by their place in the device, and of no node."""
    runs: list[_Run] = []
    at = pgoff
    while (run := device.run_at(at, device.page_count)) is not None:
        if len(runs) >= most:
            return MapReply(runs, at)
        binding = guest_of(file).bindings.find(at)
        stop = min(at + run[1], binding.end if binding else _next_binding(file, at, at + run[1]))
        runs.append((at, run[0], stop - at, binding.gfn_of(at) if binding else -1, FrameState.DEVICE, 0, file.order))
        at = stop
    return MapReply(runs, -1)


_Entry = tuple[int, Pfn | None, int, int]
"""(first page, first frame, pages, state) of a run; without a frame, what it is instead."""


def _entries(file: Regular, pgoff: int, end: int) -> Iterator[_Entry]:
    """What is no hole of [pgoff, end), in order; of what has frames, all of the whole pages at both ends."""
    pages, order = file.pages, file.order
    low = pgoff & -(1 << whole_order(pages, pgoff, order))
    high = (end - 1 | (1 << whole_order(pages, end - 1, order)) - 1) + 1
    mapped: Iterator[_Entry] = ((int(start), pfn, count, 0) for start, pfn, count in pages.extents(low, high))
    if file.guest is None or not file.guest.absent:
        return mapped
    return heapq.merge(mapped, _absent_runs(file.guest.absent, pgoff, end), key=_first_page)


def _first_page(entry: _Entry) -> int:
    return entry[0]


def _absent_runs(absent: AbsentPages, pgoff: int, end: int) -> Iterator[_Entry]:
    for low, high, why in absent.runs(pgoff, end):
        yield low, None, high - low, SWAPPED if why is None else int(FrameState.POISONED)


def _large_pages(entry: _Entry, order: int, at: int, end: int) -> tuple[int, int]:
    """Of a file with pages of `order`: that of the large page around a page, 0 if that is split; up to where, at most
    end, that is so. As large.whole_order has it, without a look for each page."""
    start, first, count, _ = entry
    assert first is not None
    while order:
        size = 1 << order
        low, high = start + size - 1 & -size, start + count & -size
        if low < high and (first - start) & size - 1 == 0:
            if low <= at < high:
                return order, min(high, end)
            if at < low:
                end = min(low, end)
        order = ORDER_2M if order > ORDER_2M else ORDER_4K
    return ORDER_4K, end


def file_list(service: Service, windows: Windows) -> ListReply:
    """The pool, the sealed files that VMs hold, and of the others those with most frames."""
    with service.lock:
        files = service.inodes.sealed_files()
        listed = sorted(files, key=lambda file: (not guest_of(file).holds_memory, -file.pages.page_count))
        listed = listed[:MAX_FILES_PER_LIST]
    reports = []
    for file in listed:
        settle(service, file, windows.populated(file.ino))
        populated = windows.populated_count(file.ino)
        with service.lock:
            reports.append(_file_report(service, file, populated))
    with service.lock:
        slots = service.slots
        return ListReply(service.pool.counts(), slots.used, slots.total, reports, len(files))


def settle(service: Service, file: Regular, touched: list[FrameRange]) -> None:
    """What the guest has touched is pending no more."""
    at: Pgoff | None = Pgoff(0)
    while at is not None:
        with service.lock:
            at = service.gmem.settle(file, touched, at)
        time.sleep(0 if at is None else PAUSE_S)


def _file_report(service: Service, file: Regular, populated: int) -> FileReport:
    guest = guest_of(file)
    return FileReport(
        file.ino,
        service.names.name_of(file),
        owner_line(file),
        file.size,
        file.pages.page_count,
        guest.pending,
        guest.quarantine.page_count,
        populated,
        guest.punched_count,
        guest.leaked_count,
        guest.absent.swapped_count,
        guest.grant_count,
        guest.invalidation_count,
        guest.split_count,
        guest.merge_count,
    )


def _next_binding(file: Regular, at: int, end: int) -> int:
    """Where the next binding after a page that has none begins, or end."""
    start = file.guest.bindings.next_start(at) if file.guest else None
    return end if start is None else min(start, end)
