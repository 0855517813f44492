"""R1 to R8, checked on the state of both sides.

The adapter brings what only it can see: which pages of the windows and of the pool of ordinary files hold
memory, and what each VM reports. It holds the invalidation locks of all sealed files from before it asks until the
audit is done, so all of it is true at one moment.
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SHIFT, PGOFF_END, Ino, Pgoff

from .files.inodes import Regular
from .gmem import guest_of
from .memory.page_table import FilePages
from .private.bindings import Binding
from .private.gmem_file import GmemFile, PairState
from .service import Service

Finding = tuple[str, str]
FrameRange = tuple[int, int]
"""Frames [start, end)."""

_PRIVATE_STATES = (FrameState.PRIVATE, FrameState.PENDING, FrameState.CLOSING)


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


def audit(service: Service, facts: Facts) -> list[Finding]:
    """Broken rules, each with what was found; empty when all hold. Call with the service's lock held."""
    findings: list[Finding] = []
    owner = np.zeros(service.pool.frame_count, dtype=np.uint32)
    for inode in service.inodes:
        if isinstance(inode, Regular):
            legal = _PRIVATE_STATES if inode.guest is not None else (FrameState.SHARED,)
            findings += _own_frames(service, inode.ino, inode.pages, legal, owner)
    for discard in service.data.discards:
        states = (FrameState.SHARED,) if discard.window is None else (*_PRIVATE_STATES, FrameState.QUARANTINED)
        findings += _own_frames(service, discard.ino, discard.pages, states, owner)
    for allocation in service.data.allocations.values():
        file = allocation.file
        findings += _own_frames(service, file.ino, allocation.supply, (FrameState.SHARED, FrameState.PRIVATE), owner)
    for effect in service.gmem.quarantines:
        findings += _own_frames(service, effect.ino, effect.pages, _PRIVATE_STATES, owner)
    findings += _quarantined(service, owner)
    findings += _pool_sums(service, owner)
    findings += _leaked(service, "the pool of ordinary files", None, facts.populated, owner, {FrameState.SHARED})
    findings += _leaked_windows(service, facts.held_windows)
    for file in service.inodes.sealed_files():
        assert file.guest is not None
        if file.readers and not service.options.open_rw:
            findings.append(("R2", f"inode {file.ino} is sealed and open for reading"))
        findings += _sealed_file(service, file, file.guest)
        if file.guest.open_invalidation is not None and file.ino not in facts.moving:
            findings.append(
                ("R7", f"inode {file.ino}: the bracket on {file.guest.open_invalidation.start:#x} was never closed")
            )
        window = facts.windows.get(file.ino, [])
        findings += _leaked(service, f"window {file.ino}", file.ino, window, owner, set(_PRIVATE_STATES))
        report = facts.reports.get(file.ino)
        if report is not None:
            findings += _compare(file, file.guest, report)
    return findings


def _own_frames(
    service: Service, ino: Ino, pages: FilePages, legal: tuple[FrameState, ...], owner: np.ndarray
) -> Iterator[Finding]:
    """R1 and R2: a frame is in one file, in a state that fits the file."""
    for pgoff, pfn, count in pages.extents(Pgoff(0), PGOFF_END):
        taken = owner[pfn : pfn + count]
        if taken.any():
            at = pfn + int(taken.nonzero()[0][0])
            yield "R1", f"frame {at:#x} belongs to inodes {owner[at]} and {ino}"
        owner[pfn : pfn + count] = ino & 0xFFFFFFFF
        wrong = ~np.isin(service.pool.states(pfn, count), legal)
        if wrong.any():
            at = pfn + int(wrong.nonzero()[0][0])
            state = service.pool.state(at).name.lower()
            yield "R2", f"frame {at:#x} of inode {ino} (page {pgoff:#x}) is {state}"


def _quarantined(service: Service, owner: np.ndarray) -> Iterator[Finding]:
    """R1 and R6: what a file keeps in quarantine is in no file, and in that state."""
    for file in service.inodes.sealed_files():
        for _, pfn, count in guest_of(file).quarantine.extents(Pgoff(0), PGOFF_END):
            taken = owner[pfn : pfn + count]
            if taken.any():
                at = pfn + int(taken.nonzero()[0][0])
                yield "R1", f"frame {at:#x}, in the quarantine of inode {file.ino}, belongs to inode {owner[at]}"
            owner[pfn : pfn + count] = file.ino & 0xFFFFFFFF
            wrong = service.pool.states(pfn, count) != FrameState.QUARANTINED
            if wrong.any():
                at = pfn + int(wrong.nonzero()[0][0])
                state = service.pool.state(at).name.lower()
                yield "R6", f"frame {at:#x}, in the quarantine of inode {file.ino}, is {state}"


def _leaked_windows(service: Service, held: list[Ino]) -> Iterator[Finding]:
    """R6: a window is there as long as a VM may reach frames through it, and no longer."""
    for ino in held:
        file = service.inodes.find(ino)
        if not isinstance(file, Regular) or file.guest is None or not file.guest.holds_memory:
            yield "R6", f"window {ino} is held, and no VM may reach frames through it"


def _pool_sums(service: Service, owner: np.ndarray) -> Iterator[Finding]:
    """R6: every frame that is not free is owned, and the counts agree."""
    pool = service.pool
    owned = int(np.count_nonzero(owner))
    held = sum(map(pool.count, (FrameState.SHARED, FrameState.PRIVATE, FrameState.PENDING, FrameState.QUARANTINED)))
    if owned != held:
        yield "R6", f"files own {owned} frames but {held} are shared, private, pending or quarantined"
    discarded = (discard.pages.extents(0, PGOFF_END) for discard in service.data.discards if discard.window is not None)
    kept = sum(guest_of(file).quarantine.page_count for file in service.inodes.sealed_files())
    kept += sum(pool.tally(pfn, n)[FrameState.QUARANTINED] for extents in discarded for _, pfn, n in extents)
    if kept != pool.count(FrameState.QUARANTINED):
        yield "R6", f"files keep {kept} frames in quarantine but {pool.count(FrameState.QUARANTINED)} are quarantined"
    total = sum(pool.count(state) for state in FrameState)
    if total != pool.frame_count:
        yield "R6", f"the states count {total} frames of {pool.frame_count}"


def _leaked(
    service: Service,
    where: str,
    ino: Ino | None,
    populated: list[FrameRange],
    owner: np.ndarray,
    legal: set[FrameState],
) -> Iterator[Finding]:
    """R8: memory exists only in the right window, for frames that are owned or on their way out."""
    for start, end in populated:
        states = service.pool.states(start, end - start)
        fits = np.isin(states, list(legal))
        if ino is not None:
            owners = owner[start:end]
            fits = (owners == ino & 0xFFFFFFFF) & (fits | (states == FrameState.QUARANTINED))
        fits |= states == FrameState.CLOSING
        if not fits.all():
            at = start + int((~fits).nonzero()[0][0])
            state = service.pool.state(at).name.lower()
            yield "R8", f"{where} holds memory for frame {at:#x}, which is {state} and not its own"


def _sealed_file(service: Service, file: Regular, guest: GmemFile) -> Iterator[Finding]:
    """R2, R4, R5, R6 of one sealed file, from the store's state alone."""
    if Seal.GUEST not in file.seals:
        yield "R2", f"inode {file.ino} has guest state without the seal"
    if guest.quarantine.page_count and (guest.pairing is None or guest.pairing.state is not PairState.DISCONNECTED):
        yield "R6", f"inode {file.ino} keeps quarantined frames though its VM is not cut off"
    if guest.bindings and guest.active is None:
        yield "R6", f"inode {file.ino} has bindings without a live VM"
    pool = service.pool
    pending = sum(pool.tally(pfn, n)[FrameState.PENDING] for _, pfn, n in file.pages.extents(Pgoff(0), PGOFF_END))
    if pending != guest.pending:
        yield "R6", f"inode {file.ino} counts {guest.pending} pending frames and has {pending}"
    moved = guest.bindings.moved() if service.options.fixed_gfn else None
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
        run = file.pages.run_at(Pgoff(pgoff), min(gfn + count - at, binding.end - pgoff))
        if run is None or run[0] != want:
            here = "no frame" if run is None else f"frame {run[0]:#x}"
            yield "R3", f"inode {file.ino}: GFN {at:#x} is frame {want:#x} in the VM and {here} here"
            return
        at += run[1]
