"""What actors do with guest_memfds: slots show them, pages are converted, the host touches them, they are closed."""

import os

from kvmsim.kvm.region import AttributesRange, GmemFd, Region2, SlotFlag, Userspace
from kvmsim.memory.memory import AnonymousMemory
from kvmsim.store.link import FileId
from memfsd.core.files.inodes import Regular
from memfsd.uapi.errors import Refused, errno_name
from memfsd.uapi.gmem_ioctls import ATTRIBUTE_PRIVATE, MemoryAttributes2
from memfsd.uapi.units import PAGE_SHIFT

from .aliases import Aliases
from .history import History
from .scenario import MAX_TEXT
from .scheduler import Scheduler
from .shown import SlotHistory
from .world import SimulatedVm, World


class Conversions:
    """Each returns what came of it, "" for nothing to report."""

    def __init__(
        self, world: World, scheduler: Scheduler, history: History, shown: SlotHistory, aliases: Aliases
    ) -> None:
        self._world = world
        self._scheduler = scheduler
        self._history = history
        self._shown = shown
        self._aliases = aliases

    # -- user space of a VM

    def set_slot(self, vm: SimulatedVm, id_: int, name: str, gfn: int, pgoff: int, pages: int) -> None:
        """KVM_SET_USER_MEMORY_REGION2, with its own memory at userspace_addr."""
        region = Region2(id_, SlotFlag.GUEST_MEMFD, gfn << PAGE_SHIFT, pages << PAGE_SHIFT, offset=pgoff << PAGE_SHIFT)
        space = Userspace(AnonymousMemory(pages << PAGE_SHIFT), 0, "user space", owned=True)
        vm.vmm.memory.set_region2(region, space, GmemFd(self._world.stand_ins[name], name))

    def delete_slot(self, vm: SimulatedVm, id_: int) -> None:
        vm.vmm.memory.set_region2(Region2(id_, SlotFlag.GUEST_MEMFD, 0, 0), Userspace())

    def set_vm_attributes(self, vm: SimulatedVm, gfn: int, pages: int, *, private: bool) -> str:
        asked = AttributesRange(gfn << PAGE_SHIFT, pages << PAGE_SHIFT, ATTRIBUTE_PRIVATE if private else 0)
        with self._aliases.converting(self._aliases.of_vm(vm.name, gfn, pages), private=private):
            vm.kvm.attributes.set(asked)
        return ""

    def release(self, vm: SimulatedVm, name: str) -> str:
        status = os.fstat(self._world.stand_ins[name])
        vm.kvm.guest_memfds.release(FileId(status.st_dev, status.st_ino))
        self._shown.released(vm.name, name)
        return ""

    # -- the host

    def set_file_attributes(self, name: str, pgoff: int, pages: int, *, private: bool) -> str:
        asked = MemoryAttributes2(pgoff << PAGE_SHIFT, pages << PAGE_SHIFT, ATTRIBUTE_PRIVATE if private else 0)
        with self._aliases.converting(self._aliases.of_file(name, pgoff, pages), private=private):
            self._world.store.guest_memfds.set_attributes(self._world.inos[name], asked)
        return ""

    def load(self, name: str, pgoff: int) -> str:
        start = self._history.tick()
        try:
            value = self._world.cache.read(self._world.inos[name], pgoff << PAGE_SHIFT, MAX_TEXT)
        except Refused as refused:
            return self._sigbus(name, pgoff, start, refused)
        self._reached(name, pgoff, start)
        wrong = self._history.check((name, pgoff), value, start)
        if wrong:
            self._scheduler.fail(f"R8: the host: {wrong}")
        return f"read {value.rstrip(bytes(1)).decode(errors='replace')!r}"

    def store(self, name: str, pgoff: int, text: str) -> str:
        value = text.encode().ljust(MAX_TEXT, b"\0")
        changes = self._history.begin([(name, pgoff)], value)
        start = self._history.clock
        try:
            self._world.cache.write(self._world.inos[name], pgoff << PAGE_SHIFT, value)
        except Refused as refused:
            self._history.end(changes, happened=False)
            return self._sigbus(name, pgoff, start, refused)
        self._history.end(changes)
        self._reached(name, pgoff, start)
        return ""

    def _reached(self, name: str, pgoff: int, start: int) -> None:
        if not self._aliases.may_be(self._aliases.of_file(name, pgoff, 1), start, private=False):
            self._scheduler.fail(f"R2: the host reaches page {pgoff:#x} of {name}, which is private")

    def _sigbus(self, name: str, pgoff: int, start: int, refused: Refused) -> str:
        private = self._aliases.may_be(self._aliases.of_file(name, pgoff, 1), start, private=True)
        if not private and not self._world.store_is_dead:
            self._scheduler.fail(f"the host gets SIGBUS in page {pgoff:#x} of {name}, which is shared: {refused}")
        return f"SIGBUS ({errno_name(refused.errno)})"

    # -- the end

    def at_end(self) -> None:
        """Each page of a file is what the last conversion that was done has made it."""
        world = self._world
        if world.store_is_dead:
            return
        now = self._history.tick()
        for name, ino in world.inos.items():
            with world.store.service.lock:
                file = world.store.service.inodes.find(ino)
                if not isinstance(file, Regular) or file.guest is None:  # it has lost its last name, or is not private
                    continue
                memfd = file.guest.memfd
                shared = [] if memfd is None else [memfd.is_shared(at, at + 1) for at in range(file.size >> PAGE_SHIFT)]
            for pgoff, is_shared in enumerate(shared):
                pages = self._aliases.of_file(name, pgoff, 1)
                if self._aliases.keeps_file and not self._aliases.may_be(pages, now, private=not is_shared):
                    state = "shared" if is_shared else "private"
                    self._scheduler.fail(f"page {pgoff:#x} of {name} is {state}, and nobody has made it so")
