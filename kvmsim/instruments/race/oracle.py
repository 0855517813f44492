"""What must be true: at each frame that is freed, and when a run has come to its end."""

from typing import Any

from kvmsim.kvm.alias import PRIVATE, Alias
from kvmsim.kvm.mmu.ept import entry_pfn
from kvmsim.memory.memory import Memory
from kvmsim.store.link import StoreLink
from memfsd.core.files.inodes import Regular
from memfsd.core.gmem import guest_of
from memfsd.uapi.abi import Attributes
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, Gfn, Ino, Pgoff

from . import points
from .accesses import Kind
from .scheduler import Scheduler, Task
from .world import SimulatedVm, World

_ALL_GFNS = Gfn(1 << 20)


class Oracle:
    """Sees both sides at once, as nobody in the real world can."""

    def __init__(self, world: World, scheduler: Scheduler) -> None:
        self._world = world
        self._scheduler = scheduler
        self.in_access: dict[Task, list[tuple[Memory, int, int]]] = {}
        """Who is in guest mode with translations in hand: memory, first frame, frames."""

    def approach(self, task: Task, name: str, arguments: tuple[Any, ...]) -> None:
        """A task comes to a point; it may have to wait there."""
        self.in_access.pop(task, None)
        if name in ("guest reads", "guest writes"):
            memory, offset, length = arguments
            first = offset >> PAGE_SHIFT
            self.in_access[task] = [(memory, first, max(-(-(offset + length) >> PAGE_SHIFT) - first, 1))]

    def passed(self, name: str, arguments: tuple[Any, ...]) -> None:
        """The step from the point begins."""
        self.in_access.pop(self._scheduler.me(), None)
        if name == "frames freed":
            window, runs = arguments
            for pfn, count in runs:
                self._at_free(pfn, count, window)
        elif name == "pages converted":
            ino, start, end, shared = arguments
            self._at_conversion(ino, Pgoff(start), Pgoff(end), private=shared)
        elif name == "TLB filled":
            self._at_fill(*arguments)
        elif name == "attributes stored":
            vm, start, end, private = arguments
            self._check_lost(self._world.vms[vm], start, end, private=not private)

    def _at_conversion(self, ino: Ino, start: Pgoff, end: Pgoff, *, private: bool) -> None:
        """R5: nobody who lives can reach pages by the alias that they lose now."""
        file = self._world.store.service.inodes.regular(ino)
        if guest_of(file).active is None:
            return
        for vm in self._world.vms.values():
            for link in [] if vm.is_dead else vm.links:
                if link.ino != ino or link not in vm.kvm.pairings.links.values():
                    continue
                for _, low, high in vm.vm.slots[PRIVATE].of_file(link, start, end):
                    self._check_lost(vm, low, high, private=private)
                for _, pfn, count in file.pages.extents(start, end) if private else ():
                    how = self._reaches(vm, link, pfn, pfn + count)
                    if how:
                        self._scheduler.fail(f"R5: frame {pfn:#x}+{count} becomes shared while {how}")

    def _at_fill(self, tlb: object, key: int) -> None:
        """R5: with attributes, a GFN is mapped in one alias."""
        gfn, private = Gfn(~key if key < 0 else key), key < 0
        for vm in self._world.vms.values():
            if vm.vm.abi.attributes is Attributes.NONE or all(vcpu.tlb is not tlb for vcpu in vm.vm.vcpus.values()):
                continue
            if vm.vm.mmu.epts[not private].walk(gfn):
                self._scheduler.fail(f"R5: {vm.name} maps GFN {gfn:#x} in both aliases at once")

    def _check_lost(self, vm: SimulatedVm, start: Gfn, end: Gfn, *, private: bool) -> None:
        """The VM's GFNs [start, end) are not of this alias any more."""
        alias, mmu = "private" if private else "shared", vm.vm.mmu
        self._scheduler.touch(("ept", vm.name), Kind.READ)
        for gfn, _, count in mmu.epts[private].runs(start, end):
            self._scheduler.fail(f"R5: {vm.name} still maps GFN {gfn:#x}+{count} {alias}, which changes now")
        for vcpu in vm.vm.vcpus.values():
            self._scheduler.touch(("tlb", points.labels[id(vcpu.tlb)]), Kind.READ)
            for key in vars_of_tlb(vcpu.tlb):
                gfn = Gfn(~key if key < 0 else key)
                if (key < 0) is private and start <= gfn < end:
                    self._scheduler.fail(f"R5: GFN {gfn:#x} is {alias} in the TLB of {vm.name}.vcpu{vcpu.id}")
        for slot, low, high in vm.vm.slots[private].visible(start, end):
            link, first = slot.backing.gmem, slot.pgoff_of(low)
            runs = [(int(first), high - low)]
            if isinstance(link, StoreLink):
                file = self._world.store.service.inodes.regular(link.ino)
                runs = [(pfn, count) for _, pfn, count in file.pages.extents(first, Pgoff(first + high - low))]
            for frame, count in runs:
                who = self._who_accesses(slot.backing.memory, frame, frame + count)
                if who:
                    self._scheduler.fail(f"R5: {who} accesses {slot} as {alias}, which changes now")

    def _who_accesses(self, memory: Memory, low: int, high: int) -> str:
        for task, held in self.in_access.items():
            for its, first, count in held:
                if its is memory and first < high and low < first + count and not task.dead and not task.done:
                    return task.name
        return ""

    def _at_free(self, pfn: int, count: int, window: int | None) -> None:
        """R6: nobody who lives can reach a frame that becomes free."""
        for vm in self._world.vms.values():
            for link in vm.links:
                if points.labels[id(link.memory)] == str(window):
                    for vcpu in vm.vm.vcpus.values():
                        self._scheduler.touch(("tlb", points.labels[id(vcpu.tlb)]), Kind.READ)
                    self._scheduler.touch(("ept", vm.name), Kind.READ)
                how = "" if vm.is_dead else self._reaches(vm, link, pfn, pfn + count)
                if how:
                    self._scheduler.fail(f"R6: frame {pfn:#x}+{count} is freed while {how}")

    def _reaches(self, vm: SimulatedVm, link: StoreLink, low: int, high: int) -> str:
        if link not in vm.kvm.pairings.links.values():
            return ""
        for alias in Alias:
            for gfn, pfn, count in vm.vm.mmu.epts[alias].runs(Gfn(0), _ALL_GFNS):
                first = pfn - link.base
                if first < high and low < first + count:
                    return f"{vm.name} maps it ({alias.name.lower()} GFN {gfn + max(low - first, 0):#x})"
        for vcpu in vm.vm.vcpus.values():
            for memory, offset, _ in vars_of_tlb(vcpu.tlb).values():
                if memory is link.memory and low <= offset >> PAGE_SHIFT < high:
                    return f"it is in the TLB of {vm.name}.vcpu{vcpu.id}"
        who = self._who_accesses(link.memory, low, high)
        return f"{who} is in guest mode and accesses it" if who else ""

    def at_end(self) -> None:
        """All is quiet. By the main task, between the race and the good end of what lives."""
        self._tasks()
        if self._scheduler.failures:
            return  # what did not end holds locks
        for vm in self._world.vms.values():
            if not vm.is_dead:
                self._vm(vm)
        if not self._world.store_is_dead:
            self._store()

    def _tasks(self) -> None:
        scheduler = self._scheduler
        if scheduler.endless:
            running = ", ".join(f"{task.name} at '{task.point}'" for task in scheduler.tasks[1:] if not task.done)
            scheduler.fail(f"the run does not end: {running}")
            return
        for task in scheduler.tasks:
            if task.error is not None:
                scheduler.fail(f"{task.name}: {type(task.error).__name__}: {task.error}")
        stuck = [task for task in scheduler.tasks if task.is_actor and not task.done and not task.dead]
        if stuck:
            report = ", ".join(f"{task.name} waits at '{task.point}'" for task in stuck)
            scheduler.fail(f"deadlock: {report}")

    def _vm(self, vm: SimulatedVm) -> None:
        fail, mmu = self._scheduler.fail, vm.vm.mmu
        if mmu.in_progress:
            fail(f"R7: {vm.name} has {mmu.in_progress} open invalidations and nothing goes on")
        for gfn, _, count in mmu.epts[PRIVATE].runs(Gfn(0), _ALL_GFNS):
            if sum(high - low for _, low, high in vm.vm.slots[PRIVATE].visible(gfn, gfn + count)) != count:
                fail(f"R3: {vm.name} maps GFN {gfn:#x}+{count}, and no slot shows all of it")
                return
        for vcpu in vm.vm.vcpus.values():
            for key, (memory, offset, _) in vars_of_tlb(vcpu.tlb).items():
                if key >= 0:
                    continue
                entry = mmu.epts[PRIVATE].walk(Gfn(~key))
                found = vm.vm.physmap.find(entry_pfn(entry)) if entry else None
                if found is None or found[0] is not memory or found[1] != offset >> PAGE_SHIFT:
                    fail(f"R3: the TLB of {vm.name}.vcpu{vcpu.id} has GFN {~key:#x}, which the EPT has not")
        if self._world.store_is_dead and mmu.epts[PRIVATE].leaf_count:
            fail(f"{vm.name} still maps {mmu.epts[PRIVATE].leaf_count} pages of a store that is dead")
        for link in vm.links if self._world.store_is_dead else ():
            if how := self._reaches(vm, link, 0, link.frame_count):
                fail(f"a store is dead, and {how}")

    def _store(self) -> None:
        world, fail = self._world, self._scheduler.fail
        self._scheduler.main.process = "store"
        for rule, text in world.store.checker.check().findings:
            fail(f"{rule}: {text}")
        with world.store.service.lock:
            pool = world.store.service.pool
            if pool.count(FrameState.CLOSING):
                fail(f"R6: {pool.count(FrameState.CLOSING)} frames are closing and nothing goes on")
            for file in world.store.service.inodes.sealed_files():
                self._map(file)
            pending = sum(guest_of(file).pending for file in world.store.service.inodes.sealed_files())
            if pending != pool.count(FrameState.PENDING):
                fail(f"files count {pending} pending frames, the pool {pool.count(FrameState.PENDING)}")
        self._scheduler.main.process = "nobody"

    def _map(self, file: Regular) -> None:
        """What the VM would find is what the page table has."""
        guest = guest_of(file)
        if guest.page_map is None or guest.active is None:
            return
        for page in range(file.size // PAGE_SIZE):
            found, has = guest.page_map.lookup(page), file.pages.lookup(page)
            if found != has:
                self._scheduler.fail(
                    f"R3: the page map of inode {file.ino} has page {page:#x} in {found}, not in {has}"
                )

    def at_close(self, poisoned: int) -> None:
        """Every VM has ended: what they had is free but for the frames that failed, and nothing is open."""
        world, fail = self._world, self._scheduler.fail
        for task in self._scheduler.tasks[1:]:
            if not task.done and not task.dead:
                fail(f"{task.name} does not end: it waits at '{task.point}'")
        for task in self._scheduler.tasks:
            if task.error is not None:
                fail(f"{task.name}: {type(task.error).__name__}: {task.error}")
        if world.store_is_dead:
            return
        pool = world.store.service.pool
        for state in (FrameState.CLOSING, FrameState.QUARANTINED, FrameState.PENDING):
            if pool.count(state):
                fail(f"R6: {pool.count(state)} frames are {state.name.lower()} though every VM has ended")
        if pool.count(FrameState.POISONED) != poisoned:
            fail(f"R6: {poisoned} frames have failed, and {pool.count(FrameState.POISONED)} are out of service")
        kept = sum(
            f.pages.page_count for f in world.store.service.inodes.sealed_files() if guest_of(f).pairing is not None
        )
        if kept:
            fail(f"R6: files of ended VMs keep {kept} frames")


def vars_of_tlb(tlb: object) -> dict[int, tuple[Memory, int, bool]]:
    """The entries; the TLB itself answers only one at a time, as hardware does."""
    entries: dict[int, tuple[Memory, int, bool]] = object.__getattribute__(tlb, "_entries")
    return entries
