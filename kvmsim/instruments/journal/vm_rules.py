"""What kvmsim's journal proves: zap and kick before acknowledgement, and no mapping of what was taken back (R3, R7)."""

from dataclasses import dataclass, field

from memfsd.common.intervals import IntervalMap, subtract
from memfsd.common.journal import Message, Note

from .conversation import BEGINNINGS, Asked, Broken, Conversation


@dataclass
class _File:
    """granted: pages to (frame - page, seq). mapped: pages to GFN - page. frames: mapped frames to frame - page.

    zapped: pages that were mapped until some vCPU is out and flushed, with the time of their zap.
    """

    granted: IntervalMap[tuple[int, int]] = field(default_factory=IntervalMap)
    mapped: IntervalMap[tuple[int, int]] = field(default_factory=IntervalMap)
    frames: IntervalMap[int] = field(default_factory=IntervalMap)
    zapped: list[tuple[int, int, int]] = field(default_factory=list)


class VmRules:
    """One VM of one run of kvmsim."""

    def __init__(self) -> None:
        self._files: dict[int, _File] = {}
        """By connection."""
        self._gfns: IntervalMap[tuple[int, int]] = IntervalMap()
        """Mapped GFNs to (connection, GFN - page)."""

    def before(self, message: Message, conversation: Conversation) -> None:
        """An acknowledgement, before it counts as given."""
        bracket, file = conversation.bracket, self._files.get(message.conn)
        if message.kind not in BEGINNINGS or message.errno or not message.reply or not message.sent:
            return
        if bracket is None or file is None or message.body is None:
            return
        kept = [(low, high) for low, high in message.body["kept"]]
        taken = subtract(bracket.start, bracket.end, kept) if bracket.moves is None else bracket.moves
        for start, end in taken:
            mapped = file.mapped.within(start, end)
            if mapped:
                low, at = mapped[0][0], mapped[0][0] + mapped[0][2][0]
                raise Broken(
                    "acknowledged",
                    f"{bracket.what} of {bracket.where} is acknowledged with page {low:#x} still mapped at GFN {at:#x}",
                )
            for low, high, _ in file.zapped:
                if low < end and start < high:
                    raise Broken(
                        "acknowledged",
                        f"{bracket.what} of {bracket.where} is acknowledged before every vCPU was out after page "
                        f"{max(low, start):#x} was zapped",
                    )

    def answered(self, message: Message, asked: Asked, conversation: Conversation) -> None:
        granted = conversation.check_grant(message, asked)
        if granted is not None:
            start, end, pfn, seq = granted
            self._file(message.conn).granted.put(start, end, (pfn - start, seq))
        for low, high, frame in conversation.moves(message, asked):
            seq = (asked.body or {})["seq"] + 1
            self._file(message.conn).granted.put(low, high, (frame - low, seq))

    def note(self, note: Note, conversation: Conversation | None) -> None:
        data = note.data
        if note.what == "installed":
            self._installed(note, conversation)
        elif note.what == "found":
            start, end = data["pgoff"], data["pgoff"] + data["pages"]
            self._file(note.conn).granted.put(start, end, (data["pfn"] - start, data["seq"]))
        elif note.what == "zapped":
            bounds = [(low, high) for low, high in data["kept"]]
            for start, end in subtract(data["start"], data["end"], bounds):
                self._zapped(start, end, note.t)
        elif note.what == "out":
            for file in self._files.values():
                file.zapped = [zap for zap in file.zapped if zap[2] > data["since"]]

    def still_maps(self, conn: int, pfn: int, count: int) -> int | None:
        """A frame of these that the VM maps, over this connection."""
        file = self._files.get(conn)
        found = file.frames.within(pfn, pfn + count) if file else []
        return found[0][0] if found else None

    def gone(self, conn: int) -> None:
        """The store says so: whatever this VM maps reaches no frame any more."""
        self._files.pop(conn, None)

    def _file(self, conn: int) -> _File:
        return self._files.setdefault(conn, _File())

    def _installed(self, note: Note, conversation: Conversation | None) -> None:
        data, file = note.data, self._file(note.conn)
        start, end = data["pgoff"], data["pgoff"] + data["pages"]
        distance, gfn = data["pfn"] - start, data["gfn"]
        if conversation is not None:
            bracket = conversation.bracket
            if bracket is not None and bracket.acknowledged and start < bracket.end and bracket.start < end:
                raise Broken("install", f"page {start:#x} is mapped inside the bracket that {bracket.where} opened")
            for low, high, since in conversation.revoked.within(start, end):
                for _, _, (_, seq) in file.granted.within(low, high):
                    if seq < since:
                        raise Broken(
                            "stale", f"page {low:#x} is mapped from a grant of sequence {seq}, void since {since}"
                        )
        grants = file.granted.within(start, end)
        if sum(high - low for low, high, _ in grants) != end - start:
            raise Broken("install", f"page {start:#x} of inode {note.ino} is mapped without a grant")
        wrong = [low for low, _, (granted, _) in grants if granted != distance]
        if wrong:
            raise Broken(
                "install", f"page {wrong[0]:#x} is mapped to frame {wrong[0] + distance:#x}, which was not granted"
            )
        file.mapped.put(start, end, (gfn - start, distance))
        file.frames.put(start + distance, end + distance, distance)
        self._gfns.put(gfn, gfn + data["pages"], (note.conn, gfn - start))

    def _zapped(self, start: int, end: int, at: int) -> None:
        for low, high, (conn, distance) in self._gfns.cut(start, end):
            file = self._files.get(conn)
            if file is None:
                continue
            for first, last, (_, to_frame) in file.mapped.cut(low - distance, high - distance):
                file.frames.cut(first + to_frame, last + to_frame)
                file.zapped.append((first, last, at))
