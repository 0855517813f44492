"""Both sides in one process: everything of memfsd but FUSE, and VMs of kvmsim, over real sockets.

A file of the store is stood for by a memfd: VMs open that, as they would open the one on a mount, and `pair` knows
by its inode which file of the store is meant. What FUSE would do on a thread of memfsd is done by a task of the
store's process, so that a VM which dies in a system call leaves the store whole.
"""

import collections
import contextlib
import errno
import hashlib
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from kvmsim.cpu.accesses import Guest
from kvmsim.kvm.kvm import Kvm
from kvmsim.kvm.mmu.ept import Ept
from kvmsim.kvm.vm import Vm
from kvmsim.memory.memory import Memory, OpenWindow, WindowMemory
from kvmsim.store.link import Callbacks, StoreLink
from kvmsim.vmm.vmm import Vmm
from memfsd.core.files.inodes import ROOT_INO
from memfsd.core.files.namespace import Creds
from memfsd.core.options import StoreOptions
from memfsd.peers.session import Session
from memfsd.peers.upchannel import set_deadline
from memfsd.store.deadlines import Deadlines
from memfsd.store.store import build_store
from memfsd.uapi.abi import Abi, Attributes, GmemFlag
from memfsd.uapi.errors import Refused
from memfsd.uapi.gmem_ioctls import CreateGuestMemfd
from memfsd.uapi.limits import ANSWER_DEADLINE_S
from memfsd.uapi.messages import KVM_OPERATIONS
from memfsd.uapi.messages import Kind as MessageKind
from memfsd.uapi.names import XATTR_PAGE_SIZE, XATTR_TOKEN
from memfsd.uapi.proof import Token, split_token
from memfsd.uapi.seals import Seal
from memfsd.uapi.units import PAGE_SIZE, Ino

from . import points
from .accesses import Kind
from .page_cache import CachedMapping, PageCache
from .primitives import LIVES, Connections, ProcessHandle
from .scenario import Scenario
from .scheduler import Scheduler, Task

R = TypeVar("R")
_POLICY = "punch"


class SimulatedVm:
    """A process of kvmsim with one VM."""

    def __init__(
        self,
        world: "World",
        name: str,
        vcpu_count: int,
        pid: int,
        *,
        abi: Abi,
        encrypted: bool,
        tables: int | None,
        page_map: bool,
    ) -> None:
        self.name = name
        self.life = ProcessHandle(name, pid)
        self.is_dead = False
        self.said_bye = False
        self.is_disconnected = False
        self.vm = Vm(name, abi=abi)
        if tables is not None:
            self.vm.mmu.epts = (Ept(tables + 1), Ept(tables + 1))
        for index in range(1, vcpu_count):
            self.vm.create_vcpu(index)
        for index, vcpu in self.vm.vcpus.items():
            points.labels[id(vcpu.tlb)] = points.labels[id(vcpu)] = f"{name}.vcpu{index}"
        self.kvm = Kvm(
            self.vm,
            lambda fd, vm, callbacks: world.pair(self, fd, vm, callbacks),
            _encrypted_windows() if encrypted else WindowMemory,
            KVM_OPERATIONS if page_map else KVM_OPERATIONS - {MessageKind.PAGE_MAP},
            world.map_file,
        )
        self.guest = Guest(self.kvm)
        self.vmm = Vmm(self.kvm)
        if not abi.has_one_space:
            self.vmm.set_policy(_POLICY)
        self.links: list[StoreLink] = []
        self.handles: list[tuple[Ino, int]] = []
        """Open files of the mount: as long as there is one, the kernel keeps the inode."""


def _encrypted_windows() -> OpenWindow:
    from kvmsim.memory.encrypted import MemoryKey  # for the scenarios that ask for it

    return MemoryKey().open_window


class MemorySwap:
    """In the place of the swap file: no disk of this machine is part of a schedule."""

    def __init__(self, slot_count: int) -> None:
        self.slot_count = slot_count
        self._blobs: dict[int, bytes] = {}

    def write(self, slot: int, blob: bytes) -> None:
        self._blobs[slot] = blob

    def read(self, slot: int) -> bytes:
        return self._blobs[slot]

    def close(self) -> None: ...


class World:
    """One store and its VMs."""

    def __init__(self, scenario: Scenario, scheduler: Scheduler, connections: Connections) -> None:
        self._scheduler = scheduler
        self.connections = connections
        self._creds = Creds(os.geteuid(), os.getegid())
        self._now_ns = itertools.count(1).__next__
        tokens = itertools.count(1)
        self._random_bytes = lambda: next(tokens).to_bytes(16, "little")
        options = StoreOptions(
            pool_bytes=scenario.frames * PAGE_SIZE,
            resize_any=scenario.resize_any,
            split=scenario.split,
            abi=scenario.abi,
        )
        scheduler.main.process = "store"
        patience = scenario.patience_s
        self.store = build_store(
            options,
            root_mode=0o755,
            creds=self._creds,
            socket_path="",
            deadlines=Deadlines() if patience is None else Deadlines(invalidate_lock_s=patience),
            now_ns=self._now_ns,
            random_bytes=self._random_bytes,
            swap=MemorySwap(scenario.swap_slots) if scenario.swap_slots else None,
        )
        self.store_is_dead = False
        self.cache = PageCache(scheduler, self.store, self.fuse)
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)
        self.stand_ins: dict[str, int] = {}
        self._by_inode: dict[tuple[int, int], Ino] = {}
        """Files by device and inode of what stands in for them: a socket may have the same inode number."""
        self.inos: dict[str, Ino] = {}
        self._opened: list[int] = []
        self._unlinked: set[Ino] = set()
        self._calls: dict[str, list[Task]] = {}
        """System calls on the mount, by the process that made them."""
        self.sockets: list[socket.socket] = []
        """Who is killed or ended half-way does not close its own."""
        for name, pages in scenario.files.items():
            if scenario.abi.is_sized_at_creation:
                self._create_guest_memfd(scenario, name, pages)
            else:
                self._create(name, pages, scenario.page_sizes.get(name))
            if name in scenario.devices:
                self.store.devices.add(self.inos[name])
        self.vms: dict[str, SimulatedVm] = {}
        for index, (name, vcpus) in enumerate(scenario.vms.items()):
            scheduler.main.process = name
            self.vms[name] = SimulatedVm(
                self,
                name,
                vcpus,
                1000 + index,
                abi=scenario.abi,
                encrypted=name in scenario.encrypted,
                tables=scenario.tables.get(name),
                page_map=name in scenario.page_maps,
            )
        scheduler.main.process = "nobody"

    # -- the store's files

    def _create(self, name: str, pages: int, page_size: str | None) -> None:
        files = self.store.files
        opened, shown = files.create(ROOT_INO, name.encode(), 0o600, os.O_WRONLY, self._creds)
        files.release(opened.handle).run()
        files.add_seals(shown.ino, Seal.GUEST).run()
        if page_size is not None:
            files.setxattr(shown.ino, XATTR_PAGE_SIZE, page_size.encode()).run()
        files.truncate(shown.ino, pages * PAGE_SIZE).run()
        self._stand_in(name, shown.ino, pages)

    def _create_guest_memfd(self, scenario: Scenario, name: str, pages: int) -> None:
        """One that can be mapped where the file knows what is private, or the scenario says so; else the guest's shared
        memory is elsewhere."""
        files, keeps_file = self.store.files, scenario.abi.attributes is Attributes.FILE
        opened, shown = files.create(ROOT_INO, name.encode(), 0o600, os.O_WRONLY, self._creds)
        flags = GmemFlag.MMAP if keeps_file or name in scenario.mappable else GmemFlag(0)
        if name in scenario.born_shared:
            flags |= GmemFlag.INIT_SHARED
        asked = CreateGuestMemfd(pages * PAGE_SIZE, flags)
        self.store.guest_memfds.create(shown.ino, opened.handle, asked)
        files.release(opened.handle).run()
        self._stand_in(name, shown.ino, pages)
        if keeps_file:
            self.cache.open(shown.ino)

    def _stand_in(self, name: str, ino: Ino, pages: int) -> None:
        stand_in = os.memfd_create(f"race-{name}", os.MFD_CLOEXEC)
        os.truncate(stand_in, pages * PAGE_SIZE)
        self.stand_ins[name] = stand_in
        self.inos[name] = ino
        self._by_inode[_identity(stand_in)] = ino

    def path(self, name: str) -> str:
        return f"/proc/self/fd/{self.stand_ins[name]}"

    def map_file(self, fd: int, size: int) -> Memory:
        """In the place of mmap(2) on the mount."""
        ino = self._by_inode[_identity(fd)]
        os.close(fd)
        return CachedMapping(self.cache, ino, size)

    def fuse(self, call: Callable[[], R]) -> R:
        """A system call on the mount: memfsd does it, on its own thread. ENOTCONN when it is dead."""
        scheduler = self._scheduler
        if self.store_is_dead:
            raise Refused(errno.ENOTCONN, "the store is dead")
        box: list[R | Refused] = []

        def run() -> None:
            try:
                box.append(call())
            except Refused as refused:
                box.append(refused)
            scheduler.is_seen()

        task = scheduler.add("fuse", "store")
        self._calls.setdefault(scheduler.me().process, []).append(task)
        scheduler.start(task, run)
        scheduler.reach("system call returns", lambda: task.done or task.dead, None, (("end", task.name), Kind.RECEIVE))
        if task.error is not None:
            raise task.error
        if not box:
            raise Refused(errno.ENOTCONN, "the store died")
        if isinstance(box[0], Refused):
            raise box[0]
        return box[0]

    def punch_fd(self, fd: int, offset: int, length: int) -> None:
        """In the place of fallocate(2) on the mount."""
        ino = self._by_inode[_identity(fd)]
        self.fuse(lambda: self.store.files.punch(ino, offset, length).run())

    def unlink(self, name: str) -> None:
        """In the store."""
        ino = self.inos[name]
        self.store.names.unlink(ROOT_INO, name.encode()).run()
        self._unlinked.add(ino)
        self._forget(ino)

    def _forget(self, ino: Ino) -> None:
        """The kernel drops an inode that has no name and no open file."""
        if ino in self._unlinked and not any(opened == ino for vm in self.vms.values() for opened, _ in vm.handles):
            self._unlinked.remove(ino)
            self.store.names.forget(ino, 1).run()

    def _release(self, vm: SimulatedVm) -> None:
        """FUSE's RELEASE of all that a VM's process had open. In the store."""
        while vm.handles:
            ino, handle = vm.handles.pop()
            self.store.files.release(handle).run()
            self._forget(ino)

    # -- pairing

    def pair(self, vm: SimulatedVm, fd: int, name: str, callbacks: Callbacks) -> StoreLink:
        """In the place of kvmsim.store.link.pair: a token through the fd, then a connection."""
        self._opened.append(fd)
        ino = self._by_inode[_identity(fd)]

        def token_of() -> Token:
            service = self.store.service
            with service.lock:  # both in one step: two would make four times as many schedules, and no other errors
                _, handle, _ = service.open(ino, os.O_WRONLY, self._creds.uid, self._now_ns())
                vm.handles.append((ino, handle))
                return split_token(service.getxattr(ino, XATTR_TOKEN, self._random_bytes))

        token = self.fuse(token_of)
        ours, theirs = self.connections.connect(vm.life)
        set_deadline(theirs, ANSWER_DEADLINE_S)
        scheduler = self._scheduler
        task = scheduler.add("session", "store")
        task.serves = True

        scheduler.start(task, lambda: Session(ours, os.getuid(), self.store, self._stop_read).run())
        link = StoreLink(fd, theirs, token, name, callbacks, self.punch_fd)
        vm.links.append(link)
        points.labels[id(link.memory)] = str(ino)
        points.labels[id(link)] = f"{vm.name} inode {ino}"
        points.labels[id(link.page_map)] = str(ino)
        return link

    # -- what happens to processes

    def kill(self, process: str) -> None:
        """SIGKILL: its threads stop where they are, its sockets close; then, once memfsd has answered its system
        calls, its end can be proven."""
        scheduler = self._scheduler
        scheduler.reach(f"{process} killed", None, None, (("process", process), Kind.WRITE))
        if process == "store":
            self.store_is_dead = True
        else:
            self.vms[process].is_dead = True
        scheduler.frozen.discard(process)
        scheduler.kill(process)
        self.connections.kill(process)
        if process != "store":
            calls = self._calls.get(process, [])
            scheduler.reach(
                f"{process} has ended", lambda: all(c.done or c.dead for c in calls), None, (LIVES, Kind.SEND)
            )
            for call in calls:
                scheduler.touch(("end", call.name), Kind.RECEIVE)
            self.vms[process].life.end()
            if not self.store_is_dead:
                self.fuse(lambda: self._release(self.vms[process]))

    def stop(self, process: str, seconds: float) -> None:
        """SIGSTOP, and SIGCONT when nobody else has anything to do until then."""
        scheduler = self._scheduler
        scheduler.reach(f"{process} stopped", None, None, (("process", process), Kind.WRITE))
        if self.vms[process].is_dead:
            return
        scheduler.frozen.add(process)
        scheduler.reach(f"{process} continued", lambda: False, seconds)
        scheduler.frozen.discard(process)
        scheduler.touch(("process", process), Kind.WRITE)

    def cut(self, process: str) -> None:
        """Its connections end, as if something had shut them; it lives."""
        self._scheduler.reach(f"connections of {process} cut", None, None, (("process", process), Kind.WRITE))
        self.vms[process].is_disconnected = True
        self.connections.cut(process)

    # -- the end

    def close(self) -> None:
        """In good order, by the main task, while the other tasks still run: BYE, then every session ends."""
        scheduler = self._scheduler
        for vm in self.vms.values():
            if not vm.is_dead and not vm.said_bye:
                scheduler.main.process = vm.name
                vm.kvm.close()
                scheduler.main.process = "nobody"
            vm.life.end()
            if not self.store_is_dead:
                self.fuse(lambda vm=vm: self._release(vm))  # type: ignore[misc]
        if self.store.service.options.abi.is_sized_at_creation and not self.store_is_dead:
            self.fuse(self._drop_guest_memfds)
        scheduler.settle()
        os.close(self._stop_write)
        self._stop_write = -1
        scheduler.settle()

    def _drop_guest_memfds(self) -> None:
        """Their memory lives as long as they do. In the store."""
        self.cache.close()
        for name, ino in self.inos.items():
            if ino not in self._unlinked:
                self.unlink(name)

    def open_sockets(self) -> int:
        return sum(sock.fileno() >= 0 for sock in self.sockets)

    def discard(self) -> None:
        """After all tasks have ended: whatever is still open."""
        for vm in self.vms.values():
            for link in vm.links:
                _close_once(link)
            vm.vmm.close()
            vm.life.close()
        for fd in self._opened:
            try:
                if _identity(fd) in self._by_inode and fd not in self.stand_ins.values():
                    os.close(fd)
            except OSError:
                continue
        for fd in self.stand_ins.values():
            os.close(fd)
        self.connections.close()
        for sock in self.sockets:
            sock.close()
        self.store.close()
        os.close(self._stop_read)
        if self._stop_write >= 0:
            os.close(self._stop_write)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _close_once(link: StoreLink) -> None:
    """Unmap the window of a VM that could not do it itself."""
    try:
        is_open = os.readlink(f"/proc/self/fd/{link.memory.fd}").startswith("/memfd:memfsd-window")
    except OSError:
        return
    if is_open and link.lost != "closed":
        link.memory.close()


@contextlib.contextmanager
def repeatable(scheduler: Scheduler) -> Iterator[None]:
    """os.urandom(3) answers each task with its own bytes, the same in every run: packets carry nonces and secrets,
    and what a packet says is part of what distinguishes two schedules. Other threads of this process are not asked."""
    urandom, asked = os.urandom, collections.Counter[str]()

    def bytes_of(size: int) -> bytes:
        if not scheduler.runs_this_thread():
            return urandom(size)
        me = scheduler.me()
        who = f"{me.process}/{me.name}"
        asked[who] += 1
        return hashlib.shake_128(f"{who} {asked[who]}".encode()).digest(size)

    vars(os)["urandom"] = bytes_of
    try:
        yield
    finally:
        vars(os)["urandom"] = urandom


@contextlib.contextmanager
def standing_in(world: World) -> Iterator[None]:
    """The world knows each socket that is made."""
    pair = socket.socketpair

    def remembered(*arguments: Any) -> tuple[socket.socket, socket.socket]:
        ends = pair(*arguments)
        if world._scheduler.runs_this_thread():
            world.sockets += ends
        return ends

    vars(socket)["socketpair"] = remembered
    try:
        yield
    finally:
        vars(socket)["socketpair"] = pair
