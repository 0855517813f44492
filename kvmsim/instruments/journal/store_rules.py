"""What memfsd's journal proves: a frame is given to one VM, and taken away before it is freed (R1, R6)."""

from memfsd.common.intervals import IntervalMap, subtract
from memfsd.common.journal import Message
from memfsd.uapi.messages import MemoryType

from .conversation import Asked, Broken, Conversation

_POOL = 0


class StoreRules:
    """One run of memfsd. Knows which frames VMs may map: granted, and neither acknowledged, nor unbound, nor dead."""

    def __init__(self) -> None:
        self._windows: dict[int, IntervalMap[tuple[int, int]]] = {}
        """Frames to (inode, frame - page): of the pool, and of each device, by its inode."""
        self._devices: set[int] = set()
        self._pages: dict[int, IntervalMap[int]] = {}
        """Of each inode: pages to frame - page."""

    def answered(self, message: Message, asked: Asked, conversation: Conversation) -> None:
        ino, was = message.ino, asked.body or {}
        if message.errno or ino < 0:
            return
        if message.kind == "INVALIDATE_BEGIN" and message.body is not None:
            kept = [(low, high) for low, high in message.body["kept"]]
            for start, end in subtract(was["start"], was["end"], kept):
                self._let_go(ino, start, end)
        elif message.kind == "MOVE":
            for low, high, pfn in conversation.moves(message, asked):
                self._let_go(ino, low, high)
                self._grant(ino, low, high, pfn - low)
        elif message.kind == "UNBIND":
            self._let_go(ino, was["pgoff"], was["pgoff"] + was["page_count"])
        elif message.kind == "BYE":
            self.gone(ino)
        elif message.kind == "PAIR" and message.body is not None and message.body["memory_type"] == MemoryType.UC:
            self._devices.add(ino)
        else:
            granted = conversation.check_grant(message, asked)
            if granted is not None:
                start, end, pfn, seq = granted
                for low, high in subtract(start, end, conversation.is_void(start, end, seq)):
                    self._grant(ino, low, high, pfn - start)

    def freed(self, ino: int, runs: list[list[int]]) -> None:
        for pfn, count in runs:
            for low, _, (owner, distance) in self._frames(ino).within(pfn, pfn + count):
                if owner == ino:
                    raise Broken(
                        "freed",
                        f"frame {low:#x} (page {low - distance:#x} of inode {ino}) is freed before its VM "
                        "acknowledged, let go, or was proven dead",
                    )

    def gone(self, ino: int) -> None:
        self._let_go(ino, 0, 1 << 62)

    def _let_go(self, ino: int, start: int, end: int) -> None:
        for low, high, distance in self._pages.get(ino, IntervalMap()).cut(start, end):
            self._frames(ino).cut(low + distance, high + distance)

    def _frames(self, ino: int) -> IntervalMap[tuple[int, int]]:
        """Of the window that has the frames of this inode."""
        return self._windows.setdefault(ino if ino in self._devices else _POOL, IntervalMap())

    def _grant(self, ino: int, start: int, end: int, distance: int) -> None:
        pages = self._pages.setdefault(ino, IntervalMap())
        for low, _, before in pages.within(start, end):
            if before != distance:
                raise Broken(
                    "frame",
                    f"page {low:#x} of inode {ino} is frame {low + before:#x}, and is granted as {low + distance:#x}",
                )
        for low, _, (owner, before) in self._frames(ino).within(start + distance, end + distance):
            if (owner, before) != (ino, distance):
                raise Broken(
                    "frame",
                    f"frame {low:#x} is granted to inode {ino} while the VM of inode {owner} may map it "
                    f"(page {low - before:#x})",
                )
        pages.put(start, end, distance)
        self._frames(ino).put(start + distance, end + distance, (ino, distance))
