"""R1 to R8, checked on the state of both sides.

The adapter brings what only it can see: which pages of the windows and of the pool of ordinary files hold
memory, and what each VM reports. It holds a file's invalidation lock while it asks for that file's facts, and
repeats the audit before it believes a finding, because ordinary files change meanwhile.
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SHIFT, Ino, Pgoff

from .bindings import Binding
from .frames import FrameState
from .gmem import guest_of
from .guest import Guest, PairState
from .inodes import Regular
from .service import Service

Finding = tuple[str, str]
FrameRange = tuple[int, int]
"""Frames [start, end)."""

_PRIVATE_STATES = (FrameState.PRIVATE, FrameState.PENDING, FrameState.CLOSING)


@dataclass(slots=True)
class PeerReport:
    """What a VM says: slots (id, gfn, pgoff, pages), mappings (gfn, pfn, pages), its sequence number."""

    slots: list[tuple[int, int, int, int]] = field(default_factory=list)
    mappings: list[tuple[int, int, int]] = field(default_factory=list)
    seq: int = 0


@dataclass(slots=True)
class Facts:
    """populated: of the pool of ordinary files. windows: populated frame ranges of each sealed file's window."""

    populated: list[FrameRange] = field(default_factory=list)
    windows: dict[Ino, list[FrameRange]] = field(default_factory=dict)
    reports: dict[Ino, PeerReport] = field(default_factory=dict)


def audit(service: Service, facts: Facts) -> list[Finding]:
    """Broken rules, each with what was found; empty when all hold. Call with the service's lock held."""
    findings: list[Finding] = []
    owner = np.zeros(service.pool.frame_count, dtype=np.uint32)
    for inode in service.inodes:
        if isinstance(inode, Regular):
            findings += _own_frames(service, inode, owner)
    findings += _pool_sums(service, owner)
    findings += _leaked(service, "the pool of ordinary files", None, facts.populated, owner, {FrameState.SHARED})
    for file in service.inodes.sealed_files():
        assert file.guest is not None
        if file.readers and not service.options.open_rw:
            findings.append(("R2", f"inode {file.ino} is sealed and open for reading"))
        findings += _sealed_file(file, file.guest)
        window = facts.windows.get(file.ino, [])
        findings += _leaked(service, f"window {file.ino}", file.ino, window, owner, set(_PRIVATE_STATES))
        report = facts.reports.get(file.ino)
        if report is not None:
            findings += _compare(file, file.guest, report)
    return findings


def _own_frames(service: Service, file: Regular, owner: np.ndarray) -> Iterator[Finding]:
    """R1 and R2: a frame is in one file, in a state that fits the file."""
    legal = _PRIVATE_STATES if file.guest is not None else (FrameState.SHARED,)
    for pgoff, pfn, count in file.pages.extents(Pgoff(0), Pgoff(1 << 51)):
        taken = owner[pfn : pfn + count]
        if taken.any():
            at = pfn + int(taken.nonzero()[0][0])
            yield "R1", f"frame {at:#x} belongs to inodes {owner[at]} and {file.ino}"
        owner[pfn : pfn + count] = file.ino & 0xFFFFFFFF
        wrong = ~np.isin(service.pool.states(pfn, count), legal)
        if wrong.any():
            at = pfn + int(wrong.nonzero()[0][0])
            state = service.pool.state(at).name.lower()
            yield "R2", f"frame {at:#x} of inode {file.ino} (page {pgoff:#x}) is {state}"


def _pool_sums(service: Service, owner: np.ndarray) -> Iterator[Finding]:
    """R6: every frame that is not free is owned, and the counts agree."""
    pool = service.pool
    owned = int(np.count_nonzero(owner))
    held = pool.count(FrameState.SHARED) + pool.count(FrameState.PRIVATE) + pool.count(FrameState.PENDING)
    if owned != held:
        yield "R6", f"files own {owned} frames but {held} are shared, private or pending"
    kept = sum(count for file in service.inodes.sealed_files() for _, count in guest_of(file).quarantine)
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
            fits = ((owners == ino & 0xFFFFFFFF) & fits) | (states == FrameState.QUARANTINED)
        fits |= states == FrameState.CLOSING
        if not fits.all():
            at = start + int((~fits).nonzero()[0][0])
            state = service.pool.state(at).name.lower()
            yield "R8", f"{where} holds memory for frame {at:#x}, which is {state} and not its own"


def _sealed_file(file: Regular, guest: Guest) -> Iterator[Finding]:
    """R2, R4, R6, R7 of one sealed file, from the store's state alone."""
    if Seal.GUEST not in file.seals:
        yield "R2", f"inode {file.ino} has guest state without the seal"
    if guest.closing is not None:
        yield "R7", f"inode {file.ino}: the bracket on {guest.closing.start:#x} was never closed"
    if guest.quarantine and (guest.pairing is None or guest.pairing.state is not PairState.CUT):
        yield "R6", f"inode {file.ino} keeps quarantined frames though its VM is not cut off"
    if guest.bindings and guest.active is None:
        yield "R6", f"inode {file.ino} has bindings without a live VM"
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


def _compare(file: Regular, guest: Guest, report: PeerReport) -> Iterator[Finding]:
    """R3 (and R7's sequence): both processes agree on slots, frames and the sequence number."""
    if report.seq != guest.seq:
        yield "R7", f"inode {file.ino}: sequence number {guest.seq} here, {report.seq} in the VM"
    mine = {(b.slot, b.gfn, b.start, b.end - b.start) for b in guest.bindings}
    for slot in sorted(mine.symmetric_difference(report.slots)):
        side = "the store" if slot in mine else "the VM"
        yield "R3", f"inode {file.ino}: only {side} knows slot {slot[0]} at GFN {slot[1]:#x}"
    bindings = sorted(guest.bindings, key=_first_gfn)
    for gfn, pfn, count in report.mappings:
        yield from _compare_run(file, bindings, gfn, pfn, count)


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
