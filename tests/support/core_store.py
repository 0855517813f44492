"""A store with a dict for its memory: what a mount does, without FUSE, sockets and memfds."""

import errno
import functools
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from memfsd.core.audit import Facts, Finding, FrameRange, PeerReport, audit
from memfsd.core.effects import Effect, Runs
from memfsd.core.files.inodes import ROOT_INO, Regular
from memfsd.core.files.namespace import Creds
from memfsd.core.files.ordinary import IoVec
from memfsd.core.gmem import guest_of
from memfsd.core.moment import moment_of
from memfsd.core.options import StoreOptions
from memfsd.core.private.gmem_file import GmemFile, Pairing
from memfsd.core.private.strategies import Strategy
from memfsd.host.windows import Windows
from memfsd.store.invalidator import InvalidateRange
from memfsd.store.pairings import PairedFile
from memfsd.store.peer import Peer, PeerGone, PeerRefused, PeerSilent
from memfsd.store.store import build_store
from memfsd.uapi.abi import Abi, GmemFlag
from memfsd.uapi.errors import Refused, errno_name
from memfsd.uapi.gmem_ioctls import CreateGuestMemfd
from memfsd.uapi.messages import KVM_OPERATIONS, Body, Empty, GetPfnReply, InvalidateBeginReply, Kind, Move, MoveReply
from memfsd.uapi.names import XATTR_TOKEN
from memfsd.uapi.proof import split_token
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SIZE, Ino, Pfn, Pgoff, PgoffRange

ME = Creds(1000, 1000)
_ROOT = Creds(0, 0)
RDWR, RDONLY, WRONLY = os.O_RDWR, os.O_RDONLY, os.O_WRONLY
KEEP_SIZE, PUNCH = 1, 3
_NO_KEPT: list[PgoffRange] = []


@contextmanager
def refused(name: str, match: str | None = None) -> Iterator[None]:
    """The block is refused with this errno, and for a reason that matches."""
    with pytest.raises(Refused, match=match) as caught:
        yield
    assert errno_name(caught.value.errno) == name, caught.value
    assert caught.value.reason


class DictWindows(Windows):
    """In the place of memfds: (window or None, frame) -> its 4096 bytes."""

    def __init__(self) -> None:
        self.memory: dict[tuple[Ino | None, int], bytearray] = {}
        self.adopted: set[Ino] = set()
        self.dropped: list[Ino] = []
        self.devices: set[Ino] = set()

    def read(self, plan: IoVec, window: Ino | None = None) -> bytes:
        return b"".join(bytes(length) if at < 0 else self._load(at, length, window) for at, length in plan)

    def write_window(self, window: Ino, plan: IoVec, data: bytes) -> int:
        done = 0
        for at, length in plan:
            if at >= 0:
                self._store(at, data[done : done + length], window)
            done += length
        return done

    def write(self, plan: IoVec, data: bytes | memoryview) -> int:
        done = 0
        for at, length in plan:
            assert at >= 0, "a write plan has no holes"
            self._store(at, bytes(data[done : done + length]))
            done += length
        return done

    def zero(self, offset: int, length: int) -> None:
        self._store(offset, bytes(length))

    def _store(self, offset: int, data: bytes, window: Ino | None = None) -> None:
        frame, at = divmod(offset, PAGE_SIZE)
        while data:
            part, data = data[: PAGE_SIZE - at], data[PAGE_SIZE - at :]
            page = self.memory.setdefault((window, frame), bytearray(PAGE_SIZE))
            page[at : at + len(part)] = part
            frame, at = frame + 1, 0

    def _load(self, offset: int, length: int, window: Ino | None = None) -> bytes:
        first, last = offset // PAGE_SIZE, -(-(offset + length) // PAGE_SIZE)
        pages = b"".join(self.memory.get((window, frame), bytes(PAGE_SIZE)) for frame in range(first, last))
        return pages[offset - first * PAGE_SIZE :][:length]

    def first_written(self, pfn: Pfn, count: int) -> int | None:
        return next((n for n in range(count) if (None, pfn + n) in self.memory), None)

    def first_unwritten(self, pfn: Pfn, count: int) -> int:
        return next((n for n in range(count) if (None, pfn + n) not in self.memory), count)

    def make_window(self, ino: Ino) -> int:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def adopt_window(self, ino: Ino, fd: int) -> None:
        os.close(fd)
        self.adopted.add(ino)

    def window_of(self, ino: Ino) -> int:
        assert ino in self.adopted
        return -1

    def drop_window(self, ino: Ino) -> None:
        self.memory = {key: page for key, page in self.memory.items() if key[0] != ino}
        self.adopted.discard(ino)
        self.dropped.append(ino)

    def punch(self, window: Ino | None, runs: Runs) -> None:
        for pfn, count in runs:
            for frame in range(pfn, pfn + count):
                self.memory.pop((window, frame), None)

    def window_count(self) -> int:
        return len(self.adopted)

    def make_device(self, ino: Ino, size: int) -> int:
        return -1

    def close_device(self, fd: int) -> None:
        pass

    def adopt_device(self, ino: Ino, fd: int) -> None:
        self.devices.add(ino)

    def device_window(self, ino: Ino) -> int:
        assert ino in self.devices
        return self.make_window(ino)

    def drop_device(self, ino: Ino) -> None:
        self.devices.discard(ino)

    def device_count(self) -> int:
        return len(self.devices)

    def files(self) -> list[Ino]:
        return list(self.adopted)

    def populated_count(self, window: Ino) -> int:
        return sum(key[0] == window for key in self.memory)

    def populated(self, window: Ino | None) -> list[FrameRange]:
        ranges: list[FrameRange] = []
        for frame in sorted(frame for of, frame in self.memory if of == window):
            if ranges and ranges[-1][1] == frame:
                ranges[-1] = ranges[-1][0], frame + 1
            else:
                ranges.append((frame, frame + 1))
        return ranges

    def close(self) -> None:
        pass


class ScriptedVm:
    """In the place of a VM's channel and process: it acknowledges at once, and is dead when asked."""

    def __init__(self, pid: int = 4242, uid: int = ME.uid) -> None:
        self.pid, self.uid = pid, uid
        self.last_call_s = 0.0
        self.kept: list[PgoffRange] = []
        """What it says it has touched, of each range that is reclaimed."""
        self.calls: list[Kind] = []
        self.refuses: set[Kind] = set()
        self.refusal = errno.EBUSY
        self.is_silent = False
        self.on_move: Callable[[Move], list[tuple[int, int]]] = lambda move: []
        """Copies, and says what it keeps."""
        self.is_dead = True

    def call(self, kind: Kind, body: Body, reply: type[Any]) -> Any:
        self.calls.append(kind)
        if self.is_silent:
            raise (PeerGone if self.is_dead else PeerSilent)(f"no answer to {kind.name}")
        if isinstance(body, Move) and kind not in self.refuses:
            return MoveReply(self.on_move(body))
        if kind in self.refuses:
            raise PeerRefused(self.refusal, f"{kind.name} refused")
        return InvalidateBeginReply(list(self.kept)) if kind is Kind.INVALIDATE_BEGIN else Empty()

    def shut(self) -> None:
        pass

    def close(self) -> None:
        pass

    def wait_dead(self, timeout_s: float | None, stop_fd: int | None = None) -> bool:
        return self.is_dead


class CoreStore:
    """A store whose memory is a dict, and whose VMs acknowledge at once.

    Time is a counter. Files are made in the root unless a parent is named. creds: who mounted.
    """

    def __init__(self, pages: int = 64, creds: Creds = _ROOT, **options: bool | int | Abi) -> None:
        chosen = replace(StoreOptions(pool_bytes=pages * PAGE_SIZE), **options)  # type: ignore[arg-type]
        self.now = 0
        self.windows = DictWindows()
        self.store = build_store(
            chosen,
            root_mode=0o755,
            creds=creds,
            socket_path="/run/s",
            windows=self.windows,
            now_ns=self.tick,
            random_bytes=lambda: bytes(16),
        )
        self.service = self.store.service
        self.pool = self.service.pool
        self.gmem = self.service.gmem
        self.names = self.service.names
        self.forgotten: list[Ino] = []
        self.forgotten_ranges: list[tuple[Ino, int, int]] = []
        self.store.runner.forget_cache = self._forget
        self._vms: dict[Ino, tuple[PairedFile, ScriptedVm]] = {}

    @property
    def memory(self) -> dict[tuple[Ino | None, int], bytearray]:
        return self.windows.memory

    @property
    def dropped(self) -> list[Ino]:
        return self.windows.dropped

    def _forget(self, ino: Ino, offset: int, length: int) -> None:
        self.forgotten.append(ino)
        self.forgotten_ranges.append((ino, offset, length))

    def tick(self) -> int:
        self.now += 1
        return self.now

    def perform(self, effects: Sequence[Effect]) -> None:
        self.store.runner.perform(effects)

    # -- files

    def make(self, name: str, mode: int = 0o644, parent: int = ROOT_INO) -> Regular:
        """A new regular file that nobody has open."""
        shown = self.store.names.mknod(parent, name.encode(), stat.S_IFREG | mode, 0, ME)
        return self.service.inodes.regular(shown.ino)

    def comb(self, page_count: int) -> Regular:
        """Every second page of a new file: as many extents as can be."""
        file = self.make("comb")
        for page in range(0, page_count, 2):
            self.fallocate(file, KEEP_SIZE, page * PAGE_SIZE, PAGE_SIZE)
        file.size = page_count * PAGE_SIZE
        assert len(list(file.pages.extents(0, page_count))) == page_count // 2
        return file

    def open(self, file: Regular, flags: int = RDWR, uid: int = ME.uid) -> int:
        opened, work = self.store.files.open(file.ino, flags, uid)
        work.run()
        return opened.handle

    def close(self, handle: int) -> None:
        self.store.files.release(handle).run()

    def unlink(self, name: str, parent: int = ROOT_INO) -> None:
        self.store.names.unlink(parent, name.encode()).run()

    def mkdir(self, name: str, mode: int = 0o755, parent: int = ROOT_INO) -> Ino:
        return self.store.names.mkdir(parent, name.encode(), mode, ME).ino

    def forget_all(self) -> None:
        """The kernel drops all its cached lookups."""
        for inode in list(self.service.inodes):
            self.store.names.forget(inode.ino, inode.lookups).run()

    def write(self, handle: int, offset: int, data: bytes) -> int:
        """How many bytes found room: fewer than asked when the pool gets full, ENOSPC when none did."""
        written = self.store.files.write(handle, offset, data)
        if data and not written:
            raise Refused(errno.ENOSPC, "no byte found room")
        return written

    def read(self, handle: int, offset: int, size: int) -> bytes:
        return self.store.files.read(handle, offset, size)

    def resize(self, file: Regular, size: int) -> None:
        self.store.files.truncate(file.ino, size).run()

    def fallocate(self, file: Regular, mode: int, offset: int, length: int) -> None:
        self.store.files.fallocate(file.ino, mode, offset, length).run()

    def seek(self, file: Regular, offset: int, whence: int) -> int:
        """As if all that mappings stored were written back."""
        seeking = self.store.files.seek(file.ino, offset, whence)
        while not seeking.step():
            pass
        answer = seeking.answer(written_back_to=sys.maxsize)
        assert isinstance(answer, int)
        return answer

    def seal(self, file: Regular, seals: Seal = Seal.GUEST, **how: bool | int) -> None:
        self.perform(self.service.add_seals(file.ino, seals, self.tick(), **how))  # type: ignore[arg-type]

    def getfattr(self, file: Regular, name: str) -> str:
        return self.store.files.getxattr(file.ino, f"user.memfsd.{name}".encode()).decode("latin1")

    def setfattr(self, file: Regular, name: str, value: str) -> None:
        self.store.files.setxattr(file.ino, f"user.memfsd.{name}".encode(), value.encode()).run()

    # -- guest private memory

    def guest_file(self, name: str, pages: int = 0) -> Regular:
        """A sealed file; with pages, its size is set."""
        file = self.make(name)
        if file.guest is None:
            self.seal(file)
        if pages:
            self.resize(file, pages * PAGE_SIZE)
        return file

    def memfd(self, name: str, flags: GmemFlag, pages: int) -> tuple[Regular, int]:
        """A guest_memfd, and the only handle of it, which reads and writes."""
        file = self.make(name)
        handle = self.open(file, os.O_WRONLY)
        self.store.guest_memfds.create(file.ino, handle, CreateGuestMemfd(pages * PAGE_SIZE, flags))
        self.close(handle)
        return file, self.open(file)

    def pair(self, file: Regular, vm: str = "vm0") -> GmemFile:
        self.paired(file, vm)
        return guest_of(file)

    def paired(self, file: Regular, vm: str = "vm0", operations: frozenset[Kind] = KVM_OPERATIONS) -> PairedFile:
        """The file as its VM sees it; EPERM and the like as for PAIR."""
        scripted = ScriptedVm()
        scripted.on_move = functools.partial(self._copy, file)
        token = split_token(self.service.getxattr(file.ino, XATTR_TOKEN, lambda: bytes(16)))
        pairing = Pairing(vm, scripted.pid, scripted.uid, operations)
        paired = self.store.pairings.pair(
            token.id, pairing, lambda ino: Peer(ino, vm, scripted, scripted, scripted.shut)
        )
        if paired.map_pages:
            os.close(paired.page_map)  # the VM's, which asks by message
        self._vms[file.ino] = paired, scripted
        return paired

    def _copy(self, file: Regular, move: Move) -> list[tuple[int, int]]:
        """What KVM does."""
        for _, source, target, count in move.moves:
            for index in range(count):
                assert (file.ino, target + index) not in self.memory, "it was scrubbed"
                if (file.ino, source + index) in self.memory:
                    self.memory[file.ino, target + index] = bytearray(self.memory[file.ino, source + index])
        return []

    def vm_of(self, file: Regular) -> ScriptedVm:
        return self._vms[file.ino][1]

    def bound_file(self, name: str, pages: int, gfn: int = 0x100) -> tuple[Regular, GmemFile]:
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
        self.windows.memory[file.ino, pfn] = bytearray(b"\1" * PAGE_SIZE)

    def seen_by_vm(self, file: Regular) -> PairedFile:
        return self._vms[file.ino][0]

    def invalidate(
        self, file: Regular, start: int, end: int, strategy: Strategy, kept: list[PgoffRange] = _NO_KEPT
    ) -> None:
        """A whole bracket; its VM, if it has one, keeps these pages."""
        if file.ino in self._vms:
            self.vm_of(file).kept = kept
        self.store.invalidator.invalidate(InvalidateRange(file.ino, Pgoff(start), Pgoff(end), strategy))

    def release_guest(self, file: Regular) -> None:
        """Its VM's process has ended."""
        paired, _ = self._vms.pop(file.ino)
        paired.connection_lost("its process has ended", -1)

    # -- the whole

    def facts(self) -> Facts:
        """What an adapter sees of the memory."""
        facts = Facts()
        facts.populated = self.windows.populated(None)
        windows = {window for window, _ in self.memory if window is not None}
        facts.windows = {window: self.windows.populated(window) for window in windows}
        return facts

    def audit(self, reports: dict[Ino, PeerReport] | None = None) -> list[Finding]:
        facts = self.facts()
        facts.reports = reports or {}
        return audit(moment_of(self.service), facts)

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
