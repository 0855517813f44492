"""memfs check and memfs map: what both sides hold, asked and compared."""

from memfsd.backing import Backing
from memfsd.core.audit import Facts, Finding, PeerReport, audit
from memfsd.core.filepages import END
from memfsd.core.gmem import guest_of
from memfsd.core.inodes import Regular
from memfsd.core.service import Service
from memfsd.core.xattrs import owner_line
from memfsd.uapi.errors import PeerLost
from memfsd.uapi.limits import (
    MAX_BINDINGS_PER_FILE,
    MAX_FILES_PER_LIST,
    MAX_FINDINGS,
    MAX_LINE_CHARS,
    MAX_RUNS_PER_REPORT,
    PROOF_DEADLINE_S,
)
from memfsd.uapi.messages import CheckReply, FileReport, Kind, ListReply, MapReply, Report, ReportReply
from memfsd.uapi.units import PAGE_SHIFT, Pgoff

from .brackets import Brackets
from .upchannel import PeerSilent

_ATTEMPTS = 3


class Checker:
    """Asks every VM for its slots and mappings under the file's bracket lock, then audits the store."""

    def __init__(self, service: Service, backing: Backing, brackets: Brackets) -> None:
        self._service = service
        self._backing = backing
        self._brackets = brackets

    def check(self) -> CheckReply:
        """Only findings that every attempt makes are believed: files change while we look."""
        believed: list[Finding] = self._attempt()
        for _ in range(_ATTEMPTS - 1):
            if not believed:
                break
            again = set(self._attempt())
            believed = [finding for finding in believed if finding in again]
        service = self._service
        with service.lock:
            pairings = sum(guest_of(f).active is not None for f in service.inodes.sealed_files())
            told = [(rule, text[:MAX_LINE_CHARS]) for rule, text in believed[:MAX_FINDINGS]]
            return CheckReply(told, len(service.inodes), pairings, service.pool.frame_count)

    def _attempt(self) -> list[Finding]:
        facts = Facts()
        findings: list[Finding] = []
        with self._service.lock:
            files = self._service.inodes.sealed_files()
        for file in files:
            findings += self._ask(file, facts)
        facts.populated = self._backing.populated(None)
        with self._service.lock:
            return findings + audit(self._service, facts)

    def _ask(self, file: Regular, facts: Facts) -> list[Finding]:
        guest = guest_of(file)
        with self._brackets.hold(guest):
            facts.windows[file.ino] = self._backing.populated(file.ino)
            with self._service.lock:
                peer = self._brackets.peers.get(file.ino)
                asks = guest.active is not None and guest.active.implements(Kind.REPORT)
            if peer is None or not asks:
                return []
            report, cursor = PeerReport(), 0
            try:
                while cursor >= 0:
                    part = peer.up.call(Kind.REPORT, Report(cursor), ReportReply)
                    report.slots += part.slots
                    report.mappings += part.mappings
                    report.seq = part.seq
                    if len(report.slots) > MAX_BINDINGS_PER_FILE or len(report.mappings) > self._most_mappings(file):
                        return [("R3", f"inode {file.ino}: VM {peer.vm} reports more than there can be")]
                    goes_on = part.next_cursor > cursor and (part.slots or part.mappings)
                    cursor = part.next_cursor if goes_on else -1
            except PeerLost as lost:
                patience = 0 if isinstance(lost, PeerSilent) else PROOF_DEADLINE_S
                if peer.said_bye or peer.process.wait_dead(patience):
                    return []  # it breaks no rule to end, and its session gives the frames back
                return [("R3", f"inode {file.ino}: VM {peer.vm} does not report: {lost}")]
            facts.reports[file.ino] = report
            return []

    def _most_mappings(self, file: Regular) -> int:
        """A VM maps each page of the file once; a report begins anew at most at each binding."""
        return min(file.size >> PAGE_SHIFT, self._service.pool.frame_count) + MAX_BINDINGS_PER_FILE


def page_map(service: Service, file: Regular, pgoff: int) -> MapReply:
    """Runs (pgoff, pfn, pages, gfn or -1, frame state) from pgoff on, split where binding or state changes."""
    runs: list[tuple[int, int, int, int, int]] = []
    for start, first, count in file.pages.extents(Pgoff(pgoff), Pgoff(max(END, pgoff))):
        at = int(start)
        while at < start + count:
            if len(runs) >= MAX_RUNS_PER_REPORT:
                return MapReply(runs, at)
            pfn = first + at - start
            binding = file.guest.bindings.find(at) if file.guest else None
            stop = min(start + count, binding.end) if binding else _next_binding(file, at, start + count)
            states = service.pool.states(pfn, stop - at)
            other = (states != states[0]).nonzero()[0]
            length = int(other[0]) if len(other) else stop - at
            runs.append((at, pfn, length, binding.gfn_of(at) if binding else -1, int(states[0])))
            at += length
    return MapReply(runs, -1)


def file_list(service: Service, backing: Backing) -> ListReply:
    """The pool, and the sealed files that hold most frames."""
    with service.lock:
        files = service.inodes.sealed_files()
        largest = sorted(files, key=lambda file: -file.pages.page_count)[:MAX_FILES_PER_LIST]
    touched = {file.ino: backing.populated(file.ino) for file in largest}
    with service.lock:
        reports = []
        for file in largest:
            service.gmem.settle(file, touched[file.ino])
            reports.append(_file_report(service, file))
        return ListReply(service.pool.counts(), reports, len(files))


def _file_report(service: Service, file: Regular) -> FileReport:
    guest = guest_of(file)
    return FileReport(
        file.ino,
        service.names.name_of(file).decode(errors="replace")[-MAX_LINE_CHARS:],
        owner_line(file),
        file.size,
        file.pages.page_count,
        guest.pending,
        guest.grant_count,
        guest.invalidation_count,
    )


def _next_binding(file: Regular, at: int, end: int) -> int:
    following = file.guest.bindings.overlapping(at, end) if file.guest else []
    return following[0].start if following else end
