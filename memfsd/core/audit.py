"""R1 to R8, checked on the state of both sides.

The adapter brings what only it can see: which pages of the windows and of the pool of ordinary files hold
memory, and what each VM reports. It holds the invalidation locks of all sealed files from before it asks until it has
the Moment, so all of it is true at one moment. What is compared are copies, in parts of bounded length: numpy does it.
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.limits import MAX_FINDINGS
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SHIFT, PGOFF_END, Ino, Pgoff

from .files.inodes import Regular
from .gmem import guest_of
from .memory.page_table import FilePages
from .memory.state_copy import Pfns
from .moment import PRIVATE_STATES, Moment, Pages
from .private.bindings import Binding
from .private.gmem_file import GmemFile, PairState
from .service import Service

Finding = tuple[str, str]
FrameRange = tuple[int, int]
"""Frames [start, end)."""

Owners = NDArray[np.uint32]
"""For each frame the low half of its inode number; 0: nobody's."""

_PART_FRAMES = 1 << 16
"""Looked at in one step of numpy."""
_ORDINARY = [FrameState.SHARED, FrameState.CLOSING, FrameState.LEAKED]
"""The pool of ordinary files holds memory of no other frames."""
_OWNED = (FrameState.SHARED, FrameState.PRIVATE, FrameState.PENDING, FrameState.QUARANTINED)
_ON_THEIR_WAY = [FrameState.CLOSING, FrameState.LEAKED]
"""Nobody's any more, and a window may hold memory of them."""


@dataclass(slots=True)
class PeerReport:
    """What a VM says: slots (id, gfn, pgoff, pages), mappings (gfn, pfn, pages), its sequence number.

    changing: file pages of slots that are being made or deleted, which only one side may know.
    """

    slots: list[tuple[int, int, int, int]] = field(default_factory=list)
    mappings: list[tuple[int, int, int]] = field(default_factory=list)
    seq: int = 0
    changing: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class Facts:
    """populated: of the pool of ordinary files. windows: populated frame ranges of each sealed file's window.

    held_windows: files whose window the store holds.
    moving: sealed files whose invalidation lock the caller does not hold.
    """

    populated: list[FrameRange] = field(default_factory=list)
    windows: dict[Ino, list[FrameRange]] = field(default_factory=dict)
    held_windows: list[Ino] = field(default_factory=list)
    reports: dict[Ino, PeerReport] = field(default_factory=dict)
    moving: set[Ino] = field(default_factory=set)


def audit(moment: Moment, facts: Facts) -> list[Finding]:
    """Broken rules, each with what was found; empty when all hold."""
    findings: list[Finding] = []
    owner = np.zeros(moment.frame_count, dtype=np.uint32)
    for pages in moment.small:
        findings += _own_frames(moment, pages, [FrameState.SHARED], "R2", owner)
    for holding in moment.holdings:
        for pgoffs, pfns in holding.pages.frames():
            part = np.broadcast_to(np.uint64(holding.ino), len(pfns)), pgoffs, pfns
            findings += _own_frames(moment, part, [*holding.legal], holding.rule, owner)
    findings += _pool_sums(moment, owner)
    findings += _swap(moment)
    for start, _ in misplaced(moment, facts.populated):
        findings.append(_leak(moment, "the pool of ordinary files", start))
    findings += _leaked_windows(moment, facts.held_windows)
    for file in moment.sealed:
        assert file.guest is not None
        if file.readers and not moment.options.open_rw and file.guest.memfd is None:
            findings.append(("R2", f"inode {file.ino} is sealed and open for reading"))
        findings += _sealed_file(moment, file, file.guest)
        if file.guest.open_invalidation is not None and file.ino not in facts.moving:
            findings.append(
                ("R7", f"inode {file.ino}: the bracket on {file.guest.open_invalidation.start:#x} was never closed")
            )
        if file.guest.device is None:
            findings += _leaked(moment, file.ino, facts.windows.get(file.ino, []), owner)
        report = facts.reports.get(file.ino)
        if report is not None:
            findings += _compare(file, file.guest, report)
    return findings


def misplaced(moment: Moment, populated: list[FrameRange]) -> Iterator[FrameRange]:
    """R8: frames for which the pool of ordinary files holds memory, and which were not theirs at the moment."""
    for pfns in _parts(populated):
        yield from _runs(pfns[~np.isin(moment.states.of(pfns), _ORDINARY)])


def misplaced_now(service: Service, start: int, end: int) -> Iterator[FrameRange]:
    """Frames of [start, end) that are not ordinary files'. Call with the service's lock held, with not too many."""
    yield from _runs(start + np.flatnonzero(~np.isin(service.pool.states(start, end - start), _ORDINARY)))


def _parts(ranges: Iterable[FrameRange]) -> Iterator[Pfns]:
    """The frames of all ranges, in parts of bounded length."""
    part: list[Pfns] = []
    count = 0
    for start, end in ranges:
        for low in range(start, end, _PART_FRAMES):
            part.append(np.arange(low, min(low + _PART_FRAMES, end)))
            count += len(part[-1])
            if count >= _PART_FRAMES:
                yield np.concatenate(part)
                part, count = [], 0
    if part:
        yield np.concatenate(part)


def _runs(pfns: Pfns) -> list[FrameRange]:
    """Ascending frames as ranges."""
    edges = np.flatnonzero(np.diff(pfns) != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(pfns, edges) if len(run)]


def _own_frames(moment: Moment, pages: Pages, legal: list[FrameState], rule: str, owner: Owners) -> Iterator[Finding]:
    """R1, R2 and R6: a frame is in one file, in a state that fits the file."""
    inos, pgoffs, pfns = pages
    taken = owner[pfns]
    for index in np.flatnonzero(taken != 0)[:MAX_FINDINGS].tolist():
        yield "R1", f"frame {pfns[index]:#x} belongs to inodes {taken[index]} and {_whose(inos[index], rule)}"
    if np.any(np.diff(pfns) <= 0):
        order = np.argsort(pfns, kind="stable")
        for at in np.flatnonzero(np.diff(pfns[order]) == 0)[:MAX_FINDINGS].tolist():
            first, again = order[at : at + 2]
            yield "R1", f"frame {pfns[again]:#x} belongs to inodes {inos[first]} and {_whose(inos[again], rule)}"
    owner[pfns] = inos & np.uint64(0xFFFFFFFF)
    states = moment.states.of(pfns)
    for index in np.flatnonzero(~np.isin(states, legal))[:MAX_FINDINGS].tolist():
        state, whose = FrameState(states[index]).name.lower(), _whose(inos[index], rule)
        yield rule, f"frame {pfns[index]:#x} of {whose} (page {pgoffs[index]:#x}) is {state}"


def _whose(ino: int, rule: str) -> str:
    return f"the quarantine or a move of inode {ino}" if rule == "R6" else f"inode {ino}"


def _leaked_windows(moment: Moment, held: list[Ino]) -> Iterator[Finding]:
    """R6: a window is there as long as a VM may reach frames through it, and no longer."""
    sealed = {file.ino: file for file in moment.sealed}
    for ino in held:
        file = sealed.get(ino)
        if file is not None and file.guest is not None and file.guest.memfd is not None:
            continue  # its memory is the file's
        if file is None or file.guest is None or not file.guest.holds_memory:
            yield "R6", f"window {ino} is held, and no VM may reach frames through it"


def _pool_sums(moment: Moment, owner: Owners) -> Iterator[Finding]:
    """R6: every frame that is not free is owned, and the counts agree."""
    count, everyone = moment.states.count, [*moment.sealed, *moment.unsettled]
    owned = int(np.count_nonzero(owner))
    held = sum(map(count, _OWNED))
    held += sum(_count(moment, guest_of(file).moving, FrameState.MOVING) for file in everyone)
    if owned != held:
        yield "R6", f"files own {owned} frames but {held} are shared, private, pending, moving or quarantined"
    kept = sum(guest_of(file).quarantine.page_count for file in everyone)
    kept += sum(_count(moment, guest_of(file).moving, FrameState.QUARANTINED) for file in everyone)
    kept += sum(_count(moment, discard.pages, FrameState.QUARANTINED) for discard in moment.discards)
    if kept != count(FrameState.QUARANTINED):
        yield "R6", f"files keep {kept} frames in quarantine but {count(FrameState.QUARANTINED)} are quarantined"
    total = sum(map(count, FrameState))
    if total != moment.frame_count:
        yield "R6", f"the states count {total} frames of {moment.frame_count}"


def _swap(moment: Moment) -> Iterator[Finding]:
    """R1, R6: each slot that is in use holds one page of one file, and nothing else has its place."""
    owners: dict[int, Ino] = {}
    for file in [*moment.sealed, *moment.unsettled]:
        for _, parts in guest_of(file).absent.swapped.frames():
            slots = parts.tolist()
            for slot in slots:
                if slot in owners:
                    yield "R1", f"swap slot {slot} belongs to inodes {owners[slot]} and {file.ino}"
            owners.update(dict.fromkeys(slots, file.ino))
    count = len(owners) + sum(table.page_count for table in moment.returned)
    if count != moment.swap_used:
        yield "R6", f"files own {count} swap slots but {moment.swap_used} are in use"


def _count(moment: Moment, pages: FilePages, state: FrameState) -> int:
    return sum(int(np.count_nonzero(moment.states.of(pfns) == state)) for _, pfns in pages.frames())


def _leaked(moment: Moment, ino: Ino, populated: list[FrameRange], owner: Owners) -> Iterator[Finding]:
    """R8: memory exists only in the right window, for frames that are owned or on their way out."""
    legal = [*PRIVATE_STATES, FrameState.MOVING, FrameState.QUARANTINED]
    for pfns in _parts(populated):
        states = moment.states.of(pfns)
        fits = (owner[pfns] == ino & 0xFFFFFFFF) & np.isin(states, legal) | np.isin(states, _ON_THEIR_WAY)
        for start, _ in _runs(pfns[~fits]):
            yield _leak(moment, f"window {ino}", start)


def _leak(moment: Moment, where: str, pfn: int) -> Finding:
    state = FrameState(moment.states.of(np.array([pfn]))[0]).name.lower()
    return "R8", f"{where} holds memory for frame {pfn:#x}, which is {state} and not its own"


def _sealed_file(moment: Moment, file: Regular, guest: GmemFile) -> Iterator[Finding]:
    """R2, R4, R5, R6 of one sealed file, from the store's state alone."""
    if Seal.GUEST not in file.seals:
        yield "R2", f"inode {file.ino} has guest state without the seal"
    if guest.quarantine.page_count and (guest.pairing is None or guest.pairing.state is not PairState.DISCONNECTED):
        yield "R6", f"inode {file.ino} keeps quarantined frames though its VM is not cut off"
    if guest.bindings and guest.active is None:
        yield "R6", f"inode {file.ino} has bindings without a live VM"
    for low, high, _ in guest.absent.runs(0, PGOFF_END):
        if (both := file.pages.first_mapped(low, high)) is not None:
            yield "R6", f"inode {file.ino}: page {both:#x} is absent and has a frame"
    pending = _count(moment, file.pages, FrameState.PENDING)
    if pending != guest.pending:
        yield "R6", f"inode {file.ino} counts {guest.pending} pending frames and has {pending}"
    if file.order and not moment.options.split:
        yield from _split_pages(file)
    moved = guest.bindings.moved() if moment.options.keeps_gfn else None
    if moved is not None:
        yield "R4", f"inode {file.ino}: page {moved.start:#x} is at GFN {moved.gfn:#x} and was at another one before"
    end_before = 0
    for binding in guest.bindings:
        if binding.start < end_before:
            yield "R5", f"inode {file.ino}: bindings overlap at page {binding.start:#x}"
        end_before = binding.end
    gfns = sorted((b.gfn, b.gfn + b.end - b.start) for b in guest.bindings)
    for (_, high), (low, _) in itertools.pairwise(gfns):
        if low < high:
            yield "R4", f"inode {file.ino}: GFN {low:#x} stands for two pages"
    if file.size & ((1 << PAGE_SHIFT) - 1):
        yield "R2", f"inode {file.ino}: the size {file.size} is not whole pages"


def _split_pages(file: Regular) -> Iterator[Finding]:
    """R5: without split=on no part of a large page goes, or comes, alone."""
    size = 1 << file.order
    for pgoff, pfn, count in itertools.islice(file.pages.extents(Pgoff(0), PGOFF_END), _PART_FRAMES):
        if (pgoff | pfn | count) & size - 1:
            yield "R5", f"inode {file.ino}: pages {pgoff:#x}-{pgoff + count:#x} are not whole pages of {size} frames"
            return


def _compare(file: Regular, guest: GmemFile, report: PeerReport) -> Iterator[Finding]:
    """R3 (and R7's sequence): both processes agree on slots, frames and the sequence number."""
    if report.seq != guest.seq:
        yield "R7", f"inode {file.ino}: sequence number {guest.seq} here, {report.seq} in the VM"
    mine = _pieces([(b.slot, b.gfn, b.start, b.end - b.start) for b in guest.bindings], report.changing)
    theirs = _pieces(report.slots, report.changing)
    for slot, distance, start, _ in sorted(mine ^ theirs):
        side = "the store" if (slot, distance, start, _) in mine else "the VM"
        yield "R3", f"inode {file.ino}: only {side} knows slot {slot} at GFN {start + distance:#x}"
    bindings = sorted(guest.bindings, key=_first_gfn)
    for gfn, pfn, count in report.mappings:
        yield from _compare_run(file, bindings, gfn, pfn, count)


def _pieces(slots: list[tuple[int, int, int, int]], changing: list[tuple[int, int]]) -> set[tuple[int, int, int, int]]:
    """Slots (id, gfn, pgoff, pages) as (id, gfn - pgoff, first page, end): joined where they meet; no `changing`."""
    joined: list[tuple[int, int, int, int]] = []
    for id_, distance, start, end in sorted((i, gfn - pgoff, pgoff, pgoff + n) for i, gfn, pgoff, n in slots):
        if joined and joined[-1][:2] == (id_, distance) and start <= joined[-1][3]:
            joined[-1] = (id_, distance, joined[-1][2], max(joined[-1][3], end))
        else:
            joined.append((id_, distance, start, end))
    for low, high in changing:
        if low < high:
            joined = [
                (id_, distance, first, last)
                for id_, distance, start, end in joined
                for first, last in ((start, min(end, low)), (max(start, high), end))
                if first < last
            ]
    return set(joined)


def _first_gfn(binding: Binding) -> int:
    return binding.gfn


def _compare_run(file: Regular, bindings: list[Binding], gfn: int, pfn: int, count: int) -> Iterator[Finding]:
    at = gfn
    while at < gfn + count:
        index = bisect_right(bindings, at, key=_first_gfn) - 1
        binding = bindings[index] if index >= 0 else None
        if binding is None or at >= binding.gfn + binding.end - binding.start:
            yield "R3", f"inode {file.ino}: the VM maps GFN {at:#x}, which is not bound"
            return
        pgoff = binding.start + at - binding.gfn
        want = pfn + at - gfn
        pages = file.pages if file.guest is None or file.guest.device is None else file.guest.device
        run = pages.run_at(Pgoff(pgoff), min(gfn + count - at, binding.end - pgoff))
        if run is None or run[0] != want:
            here = "no frame" if run is None else f"frame {run[0]:#x}"
            yield "R3", f"inode {file.ino}: GFN {at:#x} is frame {want:#x} in the VM and {here} here"
            return
        at += run[1]
