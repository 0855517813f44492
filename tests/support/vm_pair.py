"""A store with VMs, and a model of each in step: every step is done by both, and everything is compared after it.

A step is a line: "A read 0x3000 5" is a command of kvmsim's script language for VM A, "store punch a 3 2" is what
someone does to file `a` on the mount. So a sequence that fails can be read, and done by hand. Some words are our own:
"0badcafe*9000" is 9000 bytes of data, "answer 0 ff" a resume of vCPU 0 with as many bytes ff as the exit asks for, and
"slot delete-at GFN" deletes the private slot that shows a page, "populate 0 0x3000 2 ff" adds 2 pages of ff at a GPA by
vCPU 0.
"""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from kvmsim.kvm.alias import PRIVATE, SHARED
from kvmsim.kvm.exits import ExitReason
from kvmsim.kvm.mmu.ept import MAX_GFN_EPT, entry_pfn, entry_writable
from kvmsim.shell.execute import Executor
from kvmsim.shell.script import commands as c
from kvmsim.shell.script.grammar import parse_line
from kvmsim.shell.script.outcome import Outcome
from memfsd.uapi.errors import Refused, errno_name
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.limits import MAX_MOVE_PAGES
from memfsd.uapi.units import PAGE_SIZE, Gfn, Pgoff

from .both_sides import LocalStore, errno_of
from .ram import in_step
from .swapped import absent_pages
from .threads import until
from .vm_model import Home, Stopped, VmModel, runs_of

FULL = "ENOSPC"
SMALL_RUN = 32
"""Pages of a run that are looked at one by one; else the two at its ends."""


class ModelledVm:
    """A run of kvmsim with one VM, and its model."""

    def __init__(
        self, store: LocalStore, name: str, homes: list[Home], others: list[Home], max_slots: int, page: int
    ) -> None:
        """page: pages of 4 KiB in one of the files."""
        self._store, self._page = store, page
        self.name = name
        self.model = VmModel(homes, max_slots, others)
        self.executor = Executor(max_slots, pair=store.pair, windows=store.windows_of_vms)
        kvm = self.executor.current
        self.vm, self.kvm, self.vmm = kvm.vm, kvm.kvm, kvm.vmm

    # -- a step

    def step(self, line: str) -> None:
        words = line.split()
        if "*" in line:
            line = " ".join(map(_repeated, words))
        if words[0] == "together":
            self._together(line.removeprefix("together ").split(" ; "))
            return
        if words[0] == "answer":
            line = self._answer(int(words[1]), words[2])
        elif words[:2] == ["slot", "delete-at"]:
            self._delete_at(int(words[2], 16))
            return
        elif words[0] == "populate":
            self._populate(int(words[1]), int(words[2], 16), int(words[3]), bytes.fromhex(words[4]))
            return
        command = parse_line(line, 1)
        assert command is not None
        if isinstance(command, c.PreFault):
            self._pre_fault(command)
        elif isinstance(command, c.SlotSet) and command.file is not None:
            line = line.replace(f"file={command.file}", f"file={self._store.path(command.file)}")
            real = parse_line(line, 1)
            assert real is not None
            self._compare(lambda: self.executor(real), command)
        else:
            self._compare(lambda: self.executor(command), command)

    def _answer(self, vcpu: int, value: str) -> str:
        """A resume with the answer that the exit asks for."""
        run = self.vm.vcpu(vcpu).run
        if run.exit_reason == ExitReason.MMIO and not run.mmio.is_write:
            return f"resume vcpu={vcpu} data={value[-2:] * run.mmio.len}"
        if run.exit_reason == ExitReason.HYPERCALL:
            return f"resume vcpu={vcpu} ret={int(value, 16)}"
        return f"resume vcpu={vcpu}"

    def _delete_at(self, gfn: int) -> None:
        """The private slot that shows a page, whoever made it."""
        slot = self.vm.slots[PRIVATE].lookup(Gfn(gfn))
        modelled = self.model.private.get(gfn)
        assert (slot is None) == (modelled is None)
        if slot is not None and modelled is not None:
            assert self.executor(c.SlotDelete(id=slot.id, private=True)).ok
            self.model.delete_private(modelled)

    def _pre_fault(self, command: c.PreFault) -> None:
        """It ends at the first page that nothing shows, or where the pool is full."""
        model, vcpu = self.model, self.model.vcpus[command.vcpu]
        end = command.gpa + command.size
        try:
            info = self.executor(command).info
            assert isinstance(info, dict)
            stop, refused = info["gpa"], None
            assert stop > command.gpa, "a success that did nothing"
        except Refused as refusal:
            stop, refused = command.gpa, errno_name(refusal.errno)
        if refused == "EINTR":
            assert vcpu.kicked
            vcpu.kicked = False
            return
        assert not vcpu.kicked
        show = model.is_shared if command.shared else model.shows_private
        shown = next((gpa for gpa in range(command.gpa, end, PAGE_SIZE) if not show(gpa // PAGE_SIZE)), end)
        if stop == shown:
            assert refused in (None, "ENOENT")
        else:
            assert stop < shown
            assert refused in (None, FULL)
            self._assert_full(stop)

    def _populate(self, vcpu: int, gpa: int, page_count: int, byte: bytes) -> None:
        """All of it or nothing, and only where nobody has been."""
        model, start, path = self.model, gpa // PAGE_SIZE, Path(self._store.path("image"))
        path.write_bytes(byte * PAGE_SIZE * page_count)
        pages = range(start, start + page_count)
        try:
            self.executor(c.Populate(vcpu=vcpu, gpa=gpa, path=str(path)))
            refused = None
        except Refused as refusal:
            refused = errno_name(refusal.errno)
        if not model.covers(start, start + page_count, private=True):
            slot = model.private.get(start)
            is_whole = all(model.private.get(gfn) is slot for gfn in pages)
            assert refused == ("EINVAL" if slot is None or is_whole else "EFBIG")
        elif model.vcpus[vcpu].kicked:
            assert refused == "EINTR"
            model.vcpus[vcpu].kicked = False
        elif refused == FULL:
            assert self._is_full()
        elif refused == "EEXIST":
            assert model.touched & set(pages)
        else:
            assert refused is None
            assert not model.touched & set(pages)
            model.touched |= set(pages)
            model.secret |= {gfn: bytearray(byte * PAGE_SIZE) for gfn in pages}

    def _together(self, lines: list[str]) -> None:
        """Commands of several vCPUs for different pages, each on its own thread: their order must not matter.

        For policy `recreate` it does: it destroys what is around a page."""
        if self.model.policy == "recreate":
            for line in lines:
                self.step(line)
            return
        for line in lines:
            started = parse_line(f"start {line}", 1)
            assert isinstance(started, c.Start)
            assert self.executor(started).ok
        for line in lines:
            command = parse_line(line, 1)
            assert isinstance(command, c.GuestCommand)
            self._compare(partial(self.executor, c.Join(vcpu=command.vcpu)), command, alone=False)

    def _compare(self, real: Callable[[], Outcome], command: c.Command, *, alone: bool = True) -> None:
        try:
            got: Any = real()
        except Refused as refused:
            got = errno_name(refused.errno)
        if isinstance(got, Outcome) and got.exit_fields.get("errno") == 28:
            gpa = got.exit_fields["gpa"]
            assert isinstance(gpa, int)
            if alone:  # else another vCPU may have given frames back since
                self._assert_full(gpa)
            self.model.full, self.model.full_explicit = gpa, bool(got.exit_fields["explicit"])
        try:
            expected = self._modelled(command)
        except Refused as refused:
            expected = errno_name(refused.errno)
        assert shown(got) == shown(expected), f"{brief(shown(got))} came, and {brief(shown(expected))} was expected"
        assert self.model.full is None, "a full pool that nothing wanted"

    def _assert_full(self, gpa: int) -> None:
        gfn = gpa // PAGE_SIZE
        home = self._home(gfn)
        assert self._store.file(home.file).pages.lookup(Pgoff(gfn - home.gfn)) is None, "it has a frame"
        assert self._is_full(), "the pool is not full"
        assert self._store.count(FrameState.PENDING) == 0, "what is pending could be taken back"

    def _is_full(self) -> bool:
        """For a page of the files' size: what is free may be in parts."""
        pool, order = self._store.service.pool, self._page.bit_length() - 1
        return sum(buddy.available(order) for buddy in pool._buddies) < self._page

    def _modelled(self, command: c.Command) -> Any:
        model = self.model
        match command:
            case c.Resume():
                vcpu = model.vcpus[command.vcpu]
                return model.run(vcpu, model.resume(command))
            case c.GuestCommand():
                program = model.begin(command)
                vcpu = model.vcpus[command.vcpu]
                vcpu.program, vcpu.at = program, None
                return model.run(vcpu)
            case c.Kick():
                model.vcpus[command.vcpu].kicked = True
            case c.SlotSet():
                model.set_slot(command, command.file)
            case c.SlotDelete():
                model.delete_slot(command.id, command.private)
            case c.SlotPunch():
                model.punch_slot(command.id, command.gpa, command.size)
            case c.SetPolicy():
                model.policy, model.under = command.policy, command.under
            case c.CapExitHypercall():
                model.exit_hypercalls = command.mask
            case c.CreateVcpu():
                if command.vcpu in model.vcpus:
                    raise Refused(17, "exists")
                model.vcpus[command.vcpu] = type(model.vcpus[0])()
            case c.HostRead():
                return host(model.host(command.gpa, command.length, None))
            case c.HostWrite():
                done = model.host(command.gpa, len(command.data), command.data)
                return None if isinstance(done, bytes) else host(done)
            case _:
                raise AssertionError(command)
        return None

    # -- compared after every step

    def check(self) -> None:
        self._slots_agree()
        self._page_tables_agree()
        self._tlbs_agree()
        assert self.vm.mmu.in_progress == 0, "a bracket leaks"
        low, high = self._doubled()
        doubled = self.vmm.memory_use().doubled
        assert low <= sum(start <= gfn < end for gfn in self.model.copy for start, end in doubled) <= high
        assert self.vmm.shared_pages() == len(self.model.copy)
        for id_, vcpu in self.model.vcpus.items():
            assert (self.vm.vcpu(id_).program is None) == (vcpu.program is None)
            assert not self.vm.vcpu(id_).is_running

    def _slots_agree(self) -> None:
        model, copied, own = self.model, set[tuple[int, int]](), {}
        assert in_step(self.vmm.memory.ram, self.vm)
        for slot in self.vm.slots[SHARED]:
            if slot.backing.path == "(vmm)":
                copied.add((slot.gfn, slot.end))
            else:
                own[slot.id] = slot.gfn, slot.page_count, int(slot.flags)
        assert copied == set(runs_of(model.copied)), "user space's slots"
        assert own == {id_: (slot.gfn, slot.count, slot.flags) for id_, slot in model.own_ids.items()}
        shown: dict[int, list[int]] = {}
        for gfn, private in sorted(model.private.items()):
            shown.setdefault(id(private), []).append(gfn)
        named, others = {}, set[tuple[tuple[int, int], ...]]()
        for slot in self.vm.slots[PRIVATE]:
            if slot.id in model.private_ids:
                named[slot.id] = tuple(slot.segments)
            else:
                others.add(tuple(slot.segments))
        assert named == {id_: tuple(runs_of(shown.get(id(slot), []))) for id_, slot in model.private_ids.items()}
        assert others == {tuple(runs_of(shown[id(slot)])) for slot in model.pieces if id(slot) in shown} | {
            () for slot in model.pieces if id(slot) not in shown
        }

    def _page_tables_agree(self) -> None:
        for private in (False, True):
            ept, slots = self.vm.mmu.epts[private], self.vm.slots[private]
            for first, base, count in ept.runs(Gfn(0), MAX_GFN_EPT):
                at = first
                for slot, low, high in slots.visible(first, first + count):
                    assert low == at, f"no slot shows {at:#x}"
                    at, pfn = high, base + low - first - slot.backing.base
                    if private:
                        shaded = [gfn for gfn in self.model.shared_pages() if low <= gfn < high]
                        assert not shaded or self.model.policy != "overlay", f"{shaded} are under an overlay"
                        assert self._frames(low, slot.pgoff_of(low), high - low) == pfn
                    else:
                        assert pfn == slot.pgoff_of(low)
                    for gfn in range(low, high) if count <= SMALL_RUN else (low, high - 1):
                        writable = entry_writable(ept.walk(Gfn(gfn)))
                        assert writable == slot.writable or (slot.writable and slot.dirty is not None), f"{gfn:#x}"
                assert at == first + count, f"no slot shows {at:#x}"

    def _frames(self, gfn: int, pgoff: int, count: int) -> int | None:
        """The store's frame of the first page, when those of the others follow it."""
        home = self._home(gfn)
        assert home.gfn + pgoff == gfn
        extents = list(self._store.file(home.file).pages.extents(Pgoff(pgoff), Pgoff(pgoff + count)))
        assert sum(pages for _, _, pages in extents) == count, "mapped, and not the file's any more"
        (first,) = {frame - page for page, frame, _ in extents}
        return first + pgoff

    def _home(self, gfn: int) -> Home:
        return next(home for home in self.model.homes.values() if home.gfn <= gfn < home.gfn + home.count)

    def _tlbs_agree(self) -> None:
        mmu = self.vm.mmu
        for vcpu in self.vm.vcpus.values():
            for key, (memory, offset, writable) in vcpu.tlb._entries.items():
                leaf = mmu.epts[key < 0].walk(Gfn(~key if key < 0 else key))
                assert leaf, f"vCPU {vcpu.id} has a translation that is not in the page table: {key:#x}"
                found, frame = self.vm.physmap.find(entry_pfn(leaf))
                assert (memory, offset) == (found, frame * PAGE_SIZE)
                assert not writable or entry_writable(leaf), "it may write what the page table says it may not"

    def _doubled(self) -> tuple[int, int]:
        """At least what the guest has used in both; at most what the store has a frame for."""
        copy = self.model.copy
        homes = [(gfn, self._home(gfn)) for gfn in copy]
        held = sum(self._store.file(home.file).pages.lookup(Pgoff(gfn - home.gfn)) is not None for gfn, home in homes)
        out = sum(gfn - home.gfn in absent_pages(self._store.guest(home.file).absent) for gfn, home in homes)
        return len(self.model.touched & copy.keys()) - out, held

    def read_everything(self) -> None:
        self.step("policy none")
        for home in self.model.homes.values():
            for gfn in range(home.gfn - 2, min(home.gfn + home.count + 2, MAX_GFN_EPT)):
                self.step(f"read {gfn * PAGE_SIZE:#x} 4K")
                self.step(f"read {gfn * PAGE_SIZE:#x} 4K shared")


@dataclass(frozen=True)
class Shape:
    """By VM: its files. A pool of so many frames is full at times."""

    homes: dict[str, list[Home]]
    frames: int
    order: int = 0
    """Of the page size of the files, which is 4096 << order."""
    swap_pages: int = 0
    split: bool = False
    """Parts of these pages are punched, too."""


SMALL = Shape(
    {
        "A": [Home("a", 2, 12), Home("d", 14, 6), Home("b", (1 << 36) - 8, 8)],
        "B": [Home("e", (1 << 18) - 9, 4), Home("c", (1 << 18) - 5, 14)],
    },
    24,
)
"""At the corners of the page tables; two pairs of files lie side by side."""
LARGE = Shape(
    {
        "A": [Home("a", 512, 1024), Home("d", 1536, 512), Home("b", 2053, 512)],
        "B": [Home("c", (1 << 18) - 512, 1024)],
    },
    3 * 512,
    9,
)
"""In leaves of 2 MiB, but for file b, whose GFNs do not lie as its frames do; files a and d lie side by side."""
SPLIT = replace(LARGE, frames=5 * 512, split=True, swap_pages=3 * 512)


_MOST_FAILED = 4
"""Frames that fail in one world, which has them no more."""


SWAPPING = Shape(SMALL.homes, 12, swap_pages=64)
"""With half as many frames, and room for the rest on a disk."""


class World:
    """Two VMs on one store that has too few frames for both."""

    def __init__(self, store: LocalStore, shape: Shape) -> None:
        self._before = set(threading.enumerate())
        self.store, self._page, self._split = store, 1 << shape.order, shape.split
        self.homes = {home.file: home for mine in shape.homes.values() for home in mine}
        for home in self.homes.values():
            store.create(home.file, home.count, page_size="2M" if shape.order else "4K")
        self.vms = {
            name: ModelledVm(
                store,
                name,
                mine,
                [home for other, theirs in shape.homes.items() if other != name for home in theirs],
                64,
                self._page,
            )
            for name, mine in shape.homes.items()
        }
        for name, mine in shape.homes.items():
            for id_, home in enumerate(mine):
                self.vms[name].step(
                    f"slot set {id_} private gpa={home.gfn * PAGE_SIZE:#x} size={home.count * 4}K file={home.file}"
                )
            for id_ in (1, 2):
                self.vms[name].step(f"vcpu {id_}")
        self._threads = self._other_threads()

    def _other_threads(self) -> int:
        """Those of this world, without the two that each pairing has."""
        pairings = sum(len(vm.kvm.pairings.links) for vm in self.vms.values())
        return len(set(threading.enumerate()) - self._before) - 2 * pairings

    def step(self, line: str) -> None:
        who, _, rest = line.partition(" ")
        if who == "store":
            self._store_step(rest.split())
        else:
            self.vms[who].step(rest)

    def _store_step(self, words: list[str]) -> None:
        if words == ["reclaim"]:
            self.store.reclaim()
            return
        what, file, start, count = words[0], words[1], int(words[2]) * self._page, int(words[3]) * self._page
        if what == "cut":
            what, start, count = "punch", int(words[2]), int(words[3])
        if what == "swapout":
            with contextlib.suppress(Refused):  # no slot is of it, and so no VM has it
                self.store.page_out(file, start, count)
            return
        if what == "move":
            held = self.store.file(file)
            for first in range(start, start + count, MAX_MOVE_PAGES):
                wanted_pages = [Pgoff(page) for page in range(first, min(start + count, first + MAX_MOVE_PAGES))]
                self.store.store.mover.relocate(held, wanted_pages, (0,))
            return
        if what == "punch":
            self.store.punch(file, start, count)
            for vm in self.vms.values():
                if file in vm.model.homes:
                    vm.model.file_punched(file, start, count)
            return
        if what == "fail":
            self._fail(file, start, min(start + count, self.homes[file].count))
            return
        pages = self.store.file(file).pages
        out = absent_pages(self.store.guest(file).absent)
        wanted = sum(pages.lookup(Pgoff(page)) is None and page not in out for page in range(start, start + count))
        past_end = start + count > self.homes[file].count
        expected = "EINVAL" if past_end else FULL if wanted > self.store.free_count else None
        try:
            self.store.allocate(file, start, count)
            got = None
        except Refused as refused:
            got = errno_name(refused.errno)
        assert got == expected or (got == FULL and self._split)

    def _fail(self, file: str, start: int, end: int) -> None:
        """Frames of these pages fail, as many as the pool can do without; then the pages are punched."""
        ino, pages = self.store.file(file).ino, self.store.file(file).pages
        for page in range(start, end):
            if self.store.count(FrameState.POISONED) >= _MOST_FAILED or self._page > 1:
                return
            if pages.lookup(Pgoff(page)) is None:
                assert errno_of(self.store.store.failures.poison, ino, Pgoff(page)) == "ENXIO"
                continue
            self.store.store.failures.poison(ino, Pgoff(page))
            assert pages.lookup(Pgoff(page)) is None
            assert self.store.findings() == []
            self._store_step(["punch", file, str(page), "1"])

    def check(self) -> None:
        assert self.store.findings() == []
        for vm in self.vms.values():
            vm.check()
        # The session of a pairing that was refused, or has ended, ends a little after it.
        until(lambda: self._other_threads() == self._threads, "no thread is lost, none left")

    def finish(self) -> None:
        for vm in self.vms.values():
            vm.read_everything()
        self.check()

    def close(self) -> None:
        for vm in self.vms.values():
            vm.executor.close()


def host(done: object) -> object:
    return done if isinstance(done, bytes) else Stopped(*done)  # type: ignore[misc]


def shown(result: Any) -> Any:
    """An outcome of kvmsim and a result of the model, in the same words."""
    if isinstance(result, Outcome):
        if result.exit is not None:
            return result.exit.removeprefix("KVM_EXIT_"), dict(result.exit_fields)
        if isinstance(result.info, dict):
            return tuple(result.info.values())
        return result.data
    if isinstance(result, Stopped):
        return result.reason, result.fields
    if isinstance(result, int):
        return (result,)
    return result


def brief(result: Any) -> str:
    return f"{len(result)} bytes {result[:64].hex()}..." if isinstance(result, bytes) else repr(result)


def _repeated(word: str) -> str:
    data, star, length = word.partition("*")
    return (bytes.fromhex(data) * (int(length) // (len(data) // 2) + 1))[: int(length)].hex() if star else word
