"""The core's store with a dict for its memory: what a mount does, without FUSE, sockets and memfds."""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest

from memfsd.core.audit import Facts, Finding, PeerReport, audit
from memfsd.core.effects import Discard, DropWindow, Effect, Fill, ForgetCache, Quarantine, Scrub, ZeroBytes
from memfsd.core.files.inodes import ROOT_INO, Regular
from memfsd.core.files.namespace import Creds
from memfsd.core.gmem import PageRange, guest_of
from memfsd.core.options import StoreOptions
from memfsd.core.private.gmem_file import Guest, Pairing
from memfsd.core.service import Service
from memfsd.uapi.errors import Refused, errno_name
from memfsd.uapi.messages import KVM_OPERATIONS, GetPfnReply, Reason
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SIZE, Ino

ME = Creds(1000, 1000)
_ROOT = Creds(0, 0)
RDWR, RDONLY, WRONLY = os.O_RDWR, os.O_RDONLY, os.O_WRONLY
KEEP_SIZE, PUNCH = 1, 3
_NO_KEPT: list[PageRange] = []


@contextmanager
def refused(name: str, match: str | None = None) -> Iterator[None]:
    """The block is refused with this errno, and for a reason that matches."""
    with pytest.raises(Refused, match=match) as caught:
        yield
    assert errno_name(caught.value.errno) == name, caught.value
    assert caught.value.reason


class CoreStore:
    """A Service whose effects are done in `memory`: (window or None, frame) -> its 4096 bytes.

    Time is a counter. Files are made in the root unless a parent is named. creds: who mounted.
    """

    def __init__(self, pages: int = 64, creds: Creds = _ROOT, **options: bool | int) -> None:
        chosen = replace(StoreOptions(pool_bytes=pages * PAGE_SIZE), **options)  # type: ignore[arg-type]
        self.now = 0
        self.service = Service(chosen, root_mode=0o755, creds=creds, now_ns=self.tick(), socket_path="/run/s")
        self.pool = self.service.pool
        self.gmem = self.service.gmem
        self.names = self.service.names
        self.memory: dict[tuple[Ino | None, int], bytearray] = {}
        self.dropped: list[Ino] = []
        self.forgotten: list[Ino] = []

    def tick(self) -> int:
        self.now += 1
        return self.now

    # -- the world outside

    def perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Scrub):
                for pfn, count in effect.runs:
                    for frame in range(pfn, pfn + count):
                        self.memory.pop((effect.window, frame), None)
                self.service.scrubbed(effect)
            elif isinstance(effect, Discard):
                while scrubs := self.service.discard(effect):
                    self.perform(scrubs)
            elif isinstance(effect, Quarantine):
                while self.service.quarantine(effect):
                    pass
            elif isinstance(effect, Fill):
                while (following := self.service.fill(effect)) == [effect]:
                    pass
                self.perform(following)
                if effect.refused is not None:
                    raise effect.refused
            elif isinstance(effect, ZeroBytes):
                self._store(effect.offset, bytes(effect.length))
            elif isinstance(effect, DropWindow):
                self.memory = {key: page for key, page in self.memory.items() if key[0] != effect.window}
                self.dropped.append(effect.window)
            else:
                assert isinstance(effect, ForgetCache)
                self.forgotten.append(effect.ino)

    def _store(self, offset: int, data: bytes) -> None:
        frame, at = divmod(offset, PAGE_SIZE)
        while data:
            part, data = data[: PAGE_SIZE - at], data[PAGE_SIZE - at :]
            page = self.memory.setdefault((None, frame), bytearray(PAGE_SIZE))
            page[at : at + len(part)] = part
            frame, at = frame + 1, 0

    def _load(self, offset: int, length: int) -> bytes:
        first, last = offset // PAGE_SIZE, -(-(offset + length) // PAGE_SIZE)
        pages = b"".join(self.memory.get((None, frame), bytes(PAGE_SIZE)) for frame in range(first, last))
        return pages[offset - first * PAGE_SIZE :][:length]

    def first_written(self, pfn: int, count: int) -> int | None:
        """With `first_unwritten`: core.ordinary.Contents."""
        return next((n for n in range(count) if (None, pfn + n) in self.memory), None)

    def first_unwritten(self, pfn: int, count: int) -> int:
        return next((n for n in range(count) if (None, pfn + n) not in self.memory), count)

    # -- files

    def make(self, name: str, mode: int = 0o644, parent: int = ROOT_INO) -> Regular:
        """A new regular file that nobody has open."""
        file = self.service.mknod(parent, name.encode(), stat.S_IFREG | mode, 0, ME, self.tick())
        assert isinstance(file, Regular)
        return file

    def open(self, file: Regular, flags: int = RDWR, uid: int = ME.uid) -> int:
        _, handle, effects = self.service.open(file.ino, flags, uid, self.tick())
        self.perform(effects)
        return handle

    def close(self, handle: int) -> None:
        self.perform(self.service.release(handle))

    def unlink(self, name: str, parent: int = ROOT_INO) -> None:
        self.perform(self.service.unlink(parent, name.encode(), self.tick()))

    def mkdir(self, name: str, mode: int = 0o755, parent: int = ROOT_INO) -> Ino:
        return self.service.mkdir(parent, name.encode(), mode, ME, self.tick()).ino

    def forget_all(self) -> None:
        """The kernel drops all its cached lookups."""
        for inode in list(self.service.inodes):
            self.perform(self.service.forget(inode.ino, inode.lookups))

    def write(self, handle: int, offset: int, data: bytes) -> int:
        """How many bytes found room."""
        done = 0
        for at, length in self.service.write(handle, offset, len(data), self.tick()):
            assert at >= 0, "a write plan has no holes"
            self._store(at, data[done : done + length])
            done += length
        return done

    def read(self, handle: int, offset: int, size: int) -> bytes:
        plan = self.service.read(handle, offset, size, self.tick())
        return b"".join(bytes(length) if at < 0 else self._load(at, length) for at, length in plan)

    def resize(self, file: Regular, size: int) -> None:
        effects, taken = self.service.resize(file.ino, size, self.tick())
        self.perform(effects)
        if taken is not None:
            self.invalidate(file, *taken, Reason.TRUNCATE, finish=lambda: self.gmem.set_size(file, size))

    def fallocate(self, file: Regular, mode: int, offset: int, length: int) -> None:
        effects, taken = self.service.fallocate(file.ino, mode, offset, length, self.tick())
        self.perform(effects)
        if taken is not None:
            self.invalidate(file, *taken, Reason.PUNCH)

    def seek(self, file: Regular, offset: int, whence: int) -> int:
        seek = self.service.seek(file.ino, offset, whence)
        while not seek.step(self):
            pass
        return seek.answer()

    def seal(self, file: Regular, seals: Seal = Seal.GUEST, **how: bool | int) -> None:
        self.perform(self.service.add_seals(file.ino, seals, self.tick(), **how))  # type: ignore[arg-type]

    def getfattr(self, file: Regular, name: str) -> str:
        return self.service.getxattr(file.ino, f"user.memfsd.{name}".encode(), lambda: bytes(16)).decode("latin1")

    def setfattr(self, file: Regular, name: str, value: str) -> None:
        attribute = f"user.memfsd.{name}".encode()
        self.perform(self.service.setxattr(file.ino, attribute, value.encode(), 0, self.tick()))

    # -- guest private memory

    def guest_file(self, name: str, pages: int = 0) -> Regular:
        """A sealed file; with pages, its size is set."""
        file = self.make(name)
        if file.guest is None:
            self.seal(file)
        if pages:
            self.resize(file, pages * PAGE_SIZE)
        return file

    def pair(self, file: Regular, vm: str = "vm0") -> Guest:
        self.gmem.pair(file, Pairing(vm, 4242, ME.uid, frozenset(KVM_OPERATIONS)))
        return guest_of(file)

    def bound_file(self, name: str, pages: int, gfn: int = 0x100) -> tuple[Regular, Guest]:
        """Sealed, sized, paired, and bound whole to slot 1."""
        file = self.guest_file(name, pages)
        guest = self.pair(file)
        self.gmem.bind(file, 1, gfn, 0, pages)
        return file, guest

    def fault(self, file: Regular, pgoff: int, max_pages: int = 1, *, touch: bool = True) -> GetPfnReply:
        """GET_PFN, and the guest stores a byte in the page that it faulted on."""
        reply = self.gmem.get_pfn(file, pgoff, max_pages)
        if touch:
            self.touch(file, reply.pfn)
        return reply

    def touch(self, file: Regular, pfn: int) -> None:
        self.memory[file.ino, pfn] = bytearray(b"\1" * PAGE_SIZE)

    def invalidate(
        self,
        file: Regular,
        start: int,
        end: int,
        reason: Reason,
        kept: list[PageRange] = _NO_KEPT,
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        """A whole bracket: begin, acknowledged, unmap, scrub, end."""
        self.gmem.invalidate_begin(file, start, end, reason)
        while (scrub := self.gmem.unmap(file, kept)) is not None:
            self.perform([scrub])
        finish()
        self.gmem.invalidate_end(file)

    def release_guest(self, file: Regular) -> None:
        self.perform(self.service.release_guest(file.ino))

    # -- the whole

    def facts(self) -> Facts:
        """What an adapter sees of the memory."""
        facts = Facts()
        for (window, frame), _ in sorted(self.memory.items(), key=lambda item: item[0][1]):
            ranges = facts.populated if window is None else facts.windows.setdefault(window, [])
            if ranges and ranges[-1][1] == frame:
                ranges[-1] = ranges[-1][0], frame + 1
            else:
                ranges.append((frame, frame + 1))
        return facts

    def audit(self, reports: dict[Ino, PeerReport] | None = None) -> list[Finding]:
        facts = self.facts()
        facts.reports = reports or {}
        return audit(self.service, facts)

    def leaks(self) -> dict[str, int]:
        """Counts that must be zero once every name, handle, lookup and VM is gone."""
        held = self.service.counts()
        return {
            "frames": self.pool.frame_count - self.pool.free_count,
            "inodes": held["inodes"] - 1,
            "handles": held["handles"],
            "lookups": held["lookups"],
            "memory": len(self.memory),
        }


NO_LEAKS = {"frames": 0, "inodes": 0, "handles": 0, "lookups": 0, "memory": 0}


def errno_of(call: Callable[[], object]) -> str | None:
    """The name of the errno a call is refused with; None when it is not."""
    try:
        call()
    except Refused as no:
        return errno_name(no.errno)
    return None
