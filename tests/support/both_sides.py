"""A store and its VMs in one process: everything of both but FUSE, over real sockets.

A file of the store is stood for by an ordinary file of the test's directory: VMs open that, as they would open
the one on a mount, and `LocalStore.pair` knows by its inode which file of the store is meant.
"""

import contextlib
import itertools
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvmsim.cpu.accesses import Guest
from kvmsim.kvm.exits import Exit
from kvmsim.kvm.hypercalls import SHARED_BIT
from kvmsim.kvm.kvm import Kvm
from kvmsim.kvm.region import GmemFd, MemoryRegion
from kvmsim.kvm.vcpu import Vcpu
from kvmsim.kvm.vm import Vm
from kvmsim.memory.memory import AnonymousMemory, OpenWindow, WindowMemory
from kvmsim.store.link import Callbacks, FileId, StoreLink
from kvmsim.vmm.vmm import Vmm
from memfsd.core.audit import Finding
from memfsd.core.files.inodes import ROOT_INO, Regular
from memfsd.core.files.namespace import Creds
from memfsd.core.options import StoreOptions, SwapOptions
from memfsd.core.private.gmem_file import GmemFile
from memfsd.host.swapfile import open_swap
from memfsd.peers.server import GuestServer
from memfsd.peers.upchannel import set_deadline
from memfsd.store.deadlines import Deadlines
from memfsd.store.store import build_store
from memfsd.uapi.abi import THREAD, Abi
from memfsd.uapi.errors import Refused, errno_name
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.gmem_ioctls import ATTRIBUTE_PRIVATE, CreateGuestMemfd, MemoryAttributes2
from memfsd.uapi.limits import MAX_SLOTS
from memfsd.uapi.messages import KVM_OPERATIONS, Kind
from memfsd.uapi.names import XATTR_PAGE_SIZE, XATTR_TOKEN
from memfsd.uapi.proof import Token, split_token
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SIZE, Ino, Pgoff

from .lock_order import recorded
from .threads import DEADLINE_S, until

if TYPE_CHECKING:
    from kvmsim.cpu.x86.cpus import Cpus

ALTERED = b"somebody of the host"
"""For a page of ciphertext, which never holds it: one byte might be the one that is there."""

_clock = itertools.count(1)


class LocalStore:
    """memfsd without FUSE; each connection is a Session on its own thread. Sizes and places in pages."""

    def __init__(
        self,
        place: Path,
        frames: int = 1024,
        *,
        resize_any: bool = False,
        fixed_gfn: bool | None = None,
        encrypted: bool = False,
        swap_pages: int = 0,
        split: bool = False,
        nodes: int = 1,
        abi: Abi = THREAD,
    ) -> None:
        """swap_pages: of the swap file, which is the file `swap` of the place."""
        self._place = place
        self.windows_of_vms: Callable[[], OpenWindow] = _encrypted_windows if encrypted else lambda: WindowMemory
        self._creds = Creds(os.geteuid(), os.getegid())
        store_options = StoreOptions(
            pool_bytes=frames * PAGE_SIZE,
            nodes=nodes,
            resize_any=resize_any,
            fixed_gfn=fixed_gfn,
            split=split,
            abi=abi,
        )
        self.deadlines = Deadlines(proof_s=0.02)
        """A VM in this process is never dead: no long wait for the proof."""
        self.store = build_store(
            store_options,
            root_mode=0o755,
            creds=self._creds,
            socket_path="",
            deadlines=self.deadlines,
            now_ns=lambda: next(_clock),
            swap=open_swap(SwapOptions(self.swap_path, page(swap_pages)), "/mnt") if swap_pages else None,
        )
        self.service = self.store.service
        self.windows = self.store.windows
        self.invalidator = self.store.invalidator
        self.socket_path = str(place / "socket")
        self.server = GuestServer(self.socket_path, self.store)
        self.vms: list[LocalVm] = []
        self.is_broken = False
        """A test that breaks a rule on purpose says so: then the check at its end is left out."""
        self._unmounted = False
        self._inos: dict[str, Ino] = {}
        self.ending = contextlib.ExitStack()
        """What a test leaves to be done once VMs and store are gone."""
        self._by_file: dict[FileId, Ino] = {}
        self.server.start()

    @property
    def swap_path(self) -> str:
        return str(self._place / "swap")

    # -- files

    def create(self, name: str, pages: int, *, sealed: bool = True, page_size: str = "4K") -> Regular:
        files = self.store.files
        opened, shown = files.create(ROOT_INO, name.encode(), 0o600, os.O_WRONLY, self._creds)
        files.release(opened.handle).run()
        self._inos[name] = shown.ino
        if sealed:
            files.add_seals(shown.ino, Seal.GUEST).run()
            self.set_page_size(name, page_size)
        files.truncate(shown.ino, pages * PAGE_SIZE).run()
        with open(self.path(name), "wb") as stand_in:
            os.truncate(stand_in.fileno(), pages * PAGE_SIZE)
            status = os.fstat(stand_in.fileno())
        self._by_file[FileId(status.st_dev, status.st_ino)] = shown.ino
        return self.file(name)

    def create_memfd(self, name: str, pages: int, flags: int = 0) -> GmemFd:
        """A guest_memfd; its stand-in is what a mapping of the host shows. The fd is closed with the store."""
        self.create(name, 0, sealed=False)
        ino = self._inos[name]
        opened, work = self.store.files.open(ino, os.O_WRONLY, os.geteuid())
        work.run()
        self.store.guest_memfds.create(ino, opened.handle, CreateGuestMemfd(pages * PAGE_SIZE, flags))
        self.store.files.release(opened.handle).run()
        os.truncate(self.path(name), pages * PAGE_SIZE)
        fd = os.open(self.path(name), os.O_RDWR | os.O_CLOEXEC)
        self.ending.callback(os.close, fd)
        return GmemFd(fd, name)

    def convert(self, name: str, start: int, pages: int, *, private: bool) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES2 on the file, as somebody on the mount asks."""
        attributes = ATTRIBUTE_PRIVATE if private else 0
        asked = MemoryAttributes2(start * PAGE_SIZE, pages * PAGE_SIZE, attributes)
        self.store.guest_memfds.set_attributes(self._inos[name], asked)

    def set_page_size(self, name: str, page_size: str) -> None:
        self.store.files.setxattr(self._inos[name], XATTR_PAGE_SIZE, page_size.encode()).run()

    def path(self, name: str) -> str:
        return str(self._place / name)

    def file(self, name: str) -> Regular:
        return self.service.inodes.regular(self._inos[name])

    def guest(self, name: str) -> GmemFile:
        guest = self.file(name).guest
        assert guest is not None
        return guest

    def token(self, name: str) -> Token:
        """What fgetxattr(2) on the file's fd answers."""
        return self._token(self._inos[name])

    def _token(self, ino: Ino) -> Token:
        return split_token(self.store.files.getxattr(ino, XATTR_TOKEN))

    def last_sealed(self) -> str | None:
        """The file that was made last."""
        with self.service.lock:
            sealed = {file.ino for file in self.service.inodes.sealed_files()}
        return next((name for name, ino in reversed(self._inos.items()) if ino in sealed), None)

    def allocate(self, name: str, start: int, pages: int) -> None:
        self.store.files.allocate(self._inos[name], start * PAGE_SIZE, pages * PAGE_SIZE).run()

    def punch(self, name: str, start: int, pages: int) -> None:
        self.store.files.punch(self._inos[name], start * PAGE_SIZE, pages * PAGE_SIZE).run()

    def punch_fd(self, fd: int, offset: int, length: int) -> None:
        """What fallocate(2) does on a mount."""
        status = os.fstat(fd)
        self.store.files.punch(self._by_file[FileId(status.st_dev, status.st_ino)], offset, length).run()

    def convert_fd(self, fd: int, asked: MemoryAttributes2) -> None:
        """What KVM_SET_MEMORY_ATTRIBUTES2 does on a mount."""
        status = os.fstat(fd)
        self.store.guest_memfds.set_attributes(self._by_file[FileId(status.st_dev, status.st_ino)], asked)

    def truncate(self, name: str, pages: int) -> None:
        self.store.files.truncate(self._inos[name], pages * PAGE_SIZE).run()

    def unlink(self, name: str) -> None:
        self.store.names.unlink(ROOT_INO, name.encode()).run()

    def page_out(self, name: str, start: int = 0, pages: int = 1 << 20) -> int:
        """memfs swapout, as root: how many pages have left. Refused when none could."""
        done, at = 0, start
        while at >= 0:
            step = self.store.swapper.page_out(self._inos[name], at, start + pages, 0, 0)
            done, at = done + step.page_count, step.next_pgoff
            if step.why is not None and not done:
                raise step.why
        return done

    def reclaim(self) -> bool:
        return self.store.reclaimer.reclaim()

    # -- what a test asks about

    @property
    def free_count(self) -> int:
        with self.service.lock:
            return self.service.pool.free_count

    def count(self, state: FrameState) -> int:
        with self.service.lock:
            return self.service.pool.count(state)

    def findings(self) -> list[Finding]:
        """memfs check."""
        return self.store.checker.check().findings

    # -- connections

    def connect(self) -> socket.socket:
        """The VM's end of a new connection."""
        down = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        set_deadline(down, DEADLINE_S)
        down.connect(self.socket_path)
        return down

    def pair(self, fd: int, vm: str, callbacks: Callbacks) -> StoreLink:
        """For Kvm, in the place of kvmsim.store.link.pair."""
        status = os.fstat(fd)
        token = self._token(self._by_file[FileId(status.st_dev, status.st_ino)])
        return StoreLink(fd, self.connect(), token, vm, callbacks, self.punch_fd, self.convert_fd)

    def move(self, name: str, pages: Iterable[int], node: int) -> list[int]:
        """fmove_pages() of all of them to one node."""
        wanted = [Pgoff(page) for page in pages]
        return self.store.mover.move(self._inos[name], wanted, [node] * len(wanted))

    def vm(
        self, name: str = "vm0", max_slots: int = MAX_SLOTS, operations: frozenset[Kind] = KVM_OPERATIONS
    ) -> "LocalVm":
        return LocalVm(self, name, max_slots, operations)

    def hang_up(self, name: str) -> None:
        """The connection to a file's VM ends, as when memfsd dies; back when the store has settled that.

        Its process lives on (it is this one), so the store cannot but quarantine the frames.
        """
        peer = self.invalidator.peers[self._inos[name]]
        peer.hang_up()
        peer.up.shut()
        until(lambda: not self.invalidator.has_vm(self._inos[name]), "the VM is cut off")

    def unmount(self) -> None:
        """Revoke every pairing, end every session."""
        if not self._unmounted:
            self._unmounted = True
            self.server.stop()

    def close(self) -> None:
        for vm in self.vms:
            vm.close()
        self.unmount()
        until(lambda: self.server.session_count() == 0, "all sessions end")
        self.store.close()
        self.ending.close()


def _encrypted_windows() -> OpenWindow:
    from kvmsim.memory.encrypted import MemoryKey

    return MemoryKey().open_window


class LocalVm:
    """A VM of kvmsim above its core. Addresses and sizes in bytes, as in scripts."""

    def __init__(
        self,
        store: LocalStore | None = None,
        name: str = "vm0",
        max_slots: int = MAX_SLOTS,
        operations: frozenset[Kind] = KVM_OPERATIONS,
    ) -> None:
        vm = Vm(name, max_slots, store.service.options.abi if store else THREAD)
        self.kvm = Kvm(vm, store.pair, store.windows_of_vms(), operations) if store else Kvm(vm)
        self.vm = self.kvm.vm
        self.guest = Guest(self.kvm)
        self.vmm = Vmm(self.kvm)
        self._store = store
        self._cpus: Cpus | None = None
        self._closed = False
        if store:
            store.vms.append(self)

    @property
    def cpus(self) -> "Cpus":
        if self._cpus is None:
            from kvmsim.cpu.x86.cpus import Cpus  # whose libraries are an extra

            self._cpus = Cpus(self.kvm, self.guest)
        return self._cpus

    @property
    def vcpu(self) -> Vcpu:
        return self.vm.vcpu(0)

    def private_slot(self, id_: int, gpa: int, size: int, name: str, offset: int = 0, flags: int = 0) -> None:
        assert self._store is not None
        self.vmm.memory.set_private_slot(
            MemoryRegion.private(id_, gpa, size, flags=flags, offset=offset), self._store.path(name)
        )

    def shared_slot(self, id_: int, gpa: int, size: int, flags: int = 0) -> AnonymousMemory:
        memory = AnonymousMemory(size)
        self.vmm.memory.set_shared_slot(MemoryRegion.shared(id_, gpa, size, flags=flags), memory, owned=True)
        return memory

    def delete(self, id_: int, *, private: bool) -> None:
        self.vmm.memory.delete_slot(id_, private=private)

    def read(self, gpa: int, length: int, *, shared: bool = False) -> bytes | Exit:
        return self.guest.read(self.vcpu, gpa, length, shared=shared)

    def write(self, gpa: int, data: bytes, *, shared: bool = False) -> Exit | None:
        return self.guest.write(self.vcpu, gpa, data, shared=shared)

    def touch(self, gpa: int, size: int, *, shared: bool = False) -> Exit | None:
        return self.guest.touch(self.vcpu, gpa, size, shared=shared)

    def link(self) -> StoreLink:
        (link,) = self.kvm.pairings.links.values()
        return link

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.kvm.close()
            self.vmm.close()


def page(number: int) -> int:
    """Bytes of so many pages; the GPA of a page."""
    return number * PAGE_SIZE


def alias(gpa: int) -> int:
    """The shared alias of a GPA."""
    return gpa | SHARED_BIT


def errno_of(call: object, *arguments: object, **named: object) -> str:
    """The name of the errno that a call is refused with."""
    assert callable(call)
    with pytest.raises(Refused) as refused:
        call(*arguments, **named)
    assert refused.value.reason, "a refusal says why"
    assert "\n" not in refused.value.reason, "in one line"
    return errno_name(refused.value.errno)


def assert_maps_follow(store: LocalStore) -> None:
    """What each VM reads is what the page table of its file has."""
    for file in store.service.inodes.sealed_files():
        guest = file.guest
        if guest is None or guest.page_map is None or guest.active is None:
            continue
        for pgoffs, pfns in file.pages.frames():
            step = max(len(pgoffs) // 256, 1)
            for pgoff, pfn in zip(pgoffs[::step].tolist(), pfns[::step].tolist(), strict=True):
                assert guest.page_map.lookup(pgoff) == pfn, f"inode {file.ino}, page {pgoff:#x}"
        for low, _ in itertools.islice(file.pages.holes(0, file.size // PAGE_SIZE), 256):
            assert guest.page_map.lookup(low) is None, f"inode {file.ino}, page {low:#x} is a hole"


@contextlib.contextmanager
def opened_store(
    place: Path,
    frames: int,
    *,
    resize_any: bool = False,
    fixed_gfn: bool | None = None,
    encrypted: bool = False,
    swap_pages: int = 0,
    split: bool = False,
    nodes: int = 1,
    abi: Abi = THREAD,
) -> Iterator[LocalStore]:
    """A store; what ends with it is true: R1 to R8 hold, and no thread is left."""
    with recorded():
        store = LocalStore(
            place,
            frames,
            resize_any=resize_any,
            fixed_gfn=fixed_gfn,
            encrypted=encrypted,
            swap_pages=swap_pages,
            split=split,
            nodes=nodes,
            abi=abi,
        )
        try:
            yield store
            assert_maps_follow(store)
            if not store.is_broken:
                assert store.findings() == []
        finally:
            store.close()


@pytest.fixture
def encrypted() -> bool:
    """The VMs of the stores below have memory encryption. Rooms whose tests run both ways have their own fixture."""
    return False


@pytest.fixture
def store(tmp_path: Path, encrypted: bool) -> Iterator[LocalStore]:
    """1024 frames, strict options."""
    with opened_store(tmp_path, 1024, encrypted=encrypted) as opened:
        yield opened


@pytest.fixture
def small_store(tmp_path: Path, encrypted: bool) -> Iterator[LocalStore]:
    """32 frames."""
    with opened_store(tmp_path, 32, encrypted=encrypted) as opened:
        yield opened


@pytest.fixture
def swapping_store(tmp_path: Path, encrypted: bool) -> Iterator[LocalStore]:
    """32 frames, and a swap file of 64 pages."""
    with opened_store(tmp_path, 32, encrypted=encrypted, swap_pages=64) as opened:
        yield opened


@pytest.fixture
def resizable_store(tmp_path: Path, encrypted: bool) -> Iterator[LocalStore]:
    """1024 frames, resize=any."""
    with opened_store(tmp_path, 1024, resize_any=True, encrypted=encrypted) as opened:
        yield opened


@pytest.fixture
def vm() -> Iterator[LocalVm]:
    """A VM without a store: shared slots and MMIO need none."""
    local = LocalVm()
    yield local
    local.close()
