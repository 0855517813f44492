"""A VM with guest_memfds as plain dictionaries: what each alias of a page reads, or which exit must come; and the VM.

A page at a time, no page tables, no brackets, no page cache. It knows both places that attributes are kept in.

    files[name].bytes[pgoff]     contents, of both aliases where the file keeps the attributes
    slots[id].user[page]         contents at the slot's userspace_addr
    private                      GFNs that KVM_SET_MEMORY_ATTRIBUTES has made private
    files[name].shared           pages that KVM_SET_MEMORY_ATTRIBUTES2 has made shared
"""

import errno
import os
from dataclasses import dataclass, field

from kvmsim.instruments.vmms.abi.store import AbiStore, File
from kvmsim.kvm.exits import Exit, FailedExit, MemoryFaultExit, MmioExit
from kvmsim.kvm.mmu.eptentry import MAX_GFN_EPT
from kvmsim.kvm.region import ATTRIBUTE_PRIVATE, AttributesRange, Region2, SlotFlag, Userspace
from kvmsim.machine import VirtualMachine
from kvmsim.memory.memory import AnonymousMemory
from kvmsim.store.link import FileId, StoreLink
from memfsd.uapi.abi import Abi, Attributes, GmemFlag
from memfsd.uapi.errors import Refused
from memfsd.uapi.gmem_ioctls import MemoryAttributes2
from memfsd.uapi.units import PAGE_SIZE, Gfn, Pgoff

from .both_sides import page

GFNS = 24
FRAMES = 64
LENGTH = 8
"""Bytes of an access, at the beginning of its page."""

Place = tuple[dict[int, bytes], int]
"""Where the bytes of an access are."""


@dataclass(eq=False)
class FileModel:
    page_count: int
    shared: set[int]
    bytes: dict[int, bytes] = field(default_factory=dict)
    is_open: bool = True


@dataclass(eq=False)
class SlotModel:
    gfn: int
    page_count: int
    file: FileModel | None
    pgoff: int
    user: dict[int, bytes] = field(default_factory=dict)


class GmemModel:
    def __init__(self, abi: Abi) -> None:
        self._abi = abi
        self.of_file = abi.attributes is Attributes.FILE
        self.files: dict[str, FileModel] = {}
        self.slots: dict[int, SlotModel] = {}
        self.private: set[int] = set()

    def reached(self, gfn: int, *, private: bool) -> Place | str:
        """An access of this alias: its bytes, or the exit's name."""
        slot = self._slot_at(gfn)
        if not self.of_file and (gfn in self.private) != private:
            return "MEMORY_FAULT"
        if slot is None:
            return "MEMORY_FAULT" if private else "MMIO"
        file, pgoff = slot.file, slot.pgoff + gfn - slot.gfn
        if file is None or not (private or self.of_file):
            return "MEMORY_FAULT" if private else (slot.user, gfn - slot.gfn)
        if not file.is_open or (self.of_file and (pgoff in file.shared) == private):
            return "MEMORY_FAULT"
        return file.bytes, pgoff

    def _slot_at(self, gfn: int) -> SlotModel | None:
        return next((slot for slot in self.slots.values() if slot.gfn <= gfn < slot.gfn + slot.page_count), None)

    def set_slot(self, id_: int, gfn: int, count: int, name: str | None, pgoff: int) -> int:
        """The errno; 0 is success. A count of 0 deletes."""
        slot, file = self.slots.get(id_), self.files[name] if name else None
        if not count:
            return 0 if self.slots.pop(id_, None) else errno.EINVAL
        if slot is not None and (slot.file or file or slot.page_count != count):
            return errno.EINVAL
        if self._overlaps(gfn, count, besides=slot):
            return errno.EEXIST
        if slot is not None:
            slot.gfn = gfn
            return 0
        if file is not None:
            if not file.is_open:
                return errno.EBADF
            if pgoff + count > file.page_count:
                return errno.EINVAL
            if any(
                s.file is file and s.pgoff < pgoff + count and pgoff < s.pgoff + s.page_count
                for s in self.slots.values()
            ):
                return self._abi.bound_twice
        self.slots[id_] = SlotModel(gfn, count, file, pgoff)
        return 0

    def _overlaps(self, gfn: int, count: int, *, besides: SlotModel | None) -> bool:
        others = [slot for slot in self.slots.values() if slot is not besides]
        return any(slot.gfn < gfn + count and gfn < slot.gfn + slot.page_count for slot in others)

    def set_attributes(self, gfn: int, count: int, *, private: bool) -> int:
        if self.of_file:
            return errno.ENOTTY
        if not count:
            return errno.EINVAL
        pages = range(gfn, gfn + count)
        self.private = self.private.union(pages) if private else self.private.difference(pages)
        return 0

    def convert(self, name: str, start: int, count: int, *, private: bool) -> int:
        file = self.files[name]
        if not self.of_file:
            return errno.ENOTTY
        if not count or start + count > file.page_count:
            return errno.EINVAL
        pages = range(start, start + count)
        file.shared = file.shared.difference(pages) if private else file.shared.union(pages)
        return 0

    def punch(self, name: str, start: int, count: int) -> int:
        if not count:
            return errno.EINVAL
        for pgoff in range(start, start + count):
            self.files[name].bytes.pop(pgoff, None)
        return 0


class _Store(AbiStore):
    def findings(self) -> list[tuple[str, str]]:
        """memfs check: R1 to R8."""
        return list(self._store.checker.check().findings)

    def frame_of(self, link: StoreLink, pgoff: int) -> int | None:
        with self._store.service.lock:
            return self._store.service.inodes.regular(link.ino).pages.lookup(Pgoff(pgoff))


class ModelledGmemVm:
    """A step is done by both, and must come to the same. Close it."""

    def __init__(self, abi: Abi, files: dict[str, tuple[int, bool]]) -> None:
        """files: how many pages each has, and whether it is born shared."""
        self.model = GmemModel(abi)
        self._store = _Store(FRAMES, abi)
        self._machine = VirtualMachine("vm", 8, pair=self._store.pair, abi=abi)
        self._kvm, self._vcpu = self._machine.kvm, self._machine.vm.vcpu(0)
        self._files: dict[str, File] = {}
        for name, (count, is_shared) in files.items():
            file = self._files[name] = self._store.new(name)
            is_shared = is_shared and self.model.of_file  # else it would keep its VM from private memory
            flags = GmemFlag.MMAP if self.model.of_file else GmemFlag(0)
            self._store.create_guest_memfd(file, page(count), flags | GmemFlag.INIT_SHARED * is_shared)
            self._kvm.guest_memfds.own(file.gmem)
            self.model.files[name] = FileModel(count, set(range(count)) if is_shared else set())

    def close(self) -> None:
        self._machine.close()
        self._store.close()

    # -- steps: each is a method of its name

    def step(self, line: str) -> None:
        what, *words = line.split()
        getattr(self, f"_{what}")(*words)

    def _slot(self, id_: str, gfn: str, count: str, name: str, pgoff: str) -> None:
        file = None if name == "-" else name
        expected = self.model.set_slot(int(id_), int(gfn), int(count), file, int(pgoff))
        flags = SlotFlag.GUEST_MEMFD if file else SlotFlag(0)
        region = Region2(int(id_), flags, page(int(gfn)), page(int(count)), offset=page(int(pgoff)) if file else 0)
        space = Userspace(AnonymousMemory(page(int(count))), 0, "a", owned=True) if int(count) else Userspace()
        gmem = self._files[file].gmem if file and self.model.files[file].is_open else None
        assert self._errno(lambda: self._kvm.guest_memfds.set_region2(region, space, gmem)) == expected

    def _attributes(self, gfn: str, count: str, private: str) -> None:
        expected = self.model.set_attributes(int(gfn), int(count), private=private == "private")
        asked = AttributesRange(page(int(gfn)), page(int(count)), ATTRIBUTE_PRIVATE * (private == "private"))
        assert self._errno(lambda: self._kvm.attributes.set(asked)) == expected

    def _convert(self, name: str, start: str, count: str, private: str) -> None:
        expected = self.model.convert(name, int(start), int(count), private=private == "private")
        asked = MemoryAttributes2(page(int(start)), page(int(count)), ATTRIBUTE_PRIVATE * (private == "private"))
        assert self._errno(lambda: self._store.set_attributes(self._files[name], asked)) == expected

    def _punch(self, name: str, start: str, count: str) -> None:
        expected = self.model.punch(name, int(start), int(count))
        assert (
            self._errno(lambda: self._store.punch_file(self._files[name], page(int(start)), page(int(count))))
            == expected
        )

    def _allocate(self, name: str, start: str, count: str) -> None:
        fits = int(count) and int(start) + int(count) <= self.model.files[name].page_count
        answer = self._errno(lambda: self._store.fallocate(self._files[name], page(int(start)), page(int(count))))
        assert answer == (0 if fits else errno.EINVAL)

    def _release(self, name: str) -> None:
        if self.model.files[name].is_open:
            self.model.files[name].is_open = False
            status = os.fstat(self._files[name].fd)
            self._kvm.guest_memfds.release(FileId(status.st_dev, status.st_ino))

    def _write(self, gfn: str, alias: str, text: str) -> None:
        data, private = text.encode().ljust(LENGTH, b"."), alias == "private"
        place = self.model.reached(int(gfn), private=private)
        self._touch(place, private)
        exit_ = self._machine.guest.write(self._vcpu, page(int(gfn)), data, shared=not private)
        if isinstance(place, str):
            self._is_exit(exit_, place, int(gfn), private)
            return
        assert exit_ is None, exit_
        place[0][place[1]] = data

    def _touch(self, place: Place | str, private: bool) -> None:
        """The kernel asks memfsd for a shared page before a mapping stores to it, which gives it its frame."""
        for name, model in self.model.files.items():
            if not isinstance(place, str) and place[0] is model.bytes and not private:
                self._store.read(self._files[name], page(place[1]), PAGE_SIZE)

    def _read(self, gfn: str, alias: str) -> None:
        private = alias == "private"
        place = self.model.reached(int(gfn), private=private)
        got = self._machine.guest.read(self._vcpu, page(int(gfn)), LENGTH, shared=not private)
        if isinstance(place, str):
            self._is_exit(got, place, int(gfn), private)
        else:
            assert got == place[0].get(place[1], bytes(LENGTH))

    def _host(self, name: str, pgoff: str) -> None:
        """A mapping of the file: the page cache where it is shared, else what memfsd answers."""
        file, model = self._files[name], self.model.files[name]
        if not self.model.of_file:
            return
        if int(pgoff) in model.shared:
            assert os.pread(file.fd, LENGTH, page(int(pgoff))) == model.bytes.get(int(pgoff), bytes(LENGTH))
        else:
            assert self._errno(lambda: self._store.read(file, page(int(pgoff)), PAGE_SIZE)) == errno.EIO

    @staticmethod
    def _errno(call: object) -> int:
        assert callable(call)
        try:
            call()
        except Refused as refused:
            return refused.errno
        return 0

    @staticmethod
    def _is_exit(exit_: Exit | bytes | None, name: str, gfn: int, private: bool) -> None:
        if name == "MMIO":
            assert isinstance(exit_, MmioExit)
            return
        assert isinstance(exit_, MemoryFaultExit), exit_
        assert not isinstance(exit_, FailedExit)
        assert (exit_.gpa, exit_.size, exit_.private, exit_.errno) == (page(gfn), PAGE_SIZE, private, errno.EFAULT)

    # -- after each step

    def check(self) -> None:
        """R1 to R8 hold, and nothing is mapped that an access could not reach."""
        assert self._store.findings() == []
        vm = self._machine.vm
        assert vm.mmu.in_progress == 0
        if not self.model.of_file:
            known = {gfn for low, high in vm.attributes.ranges() for gfn in range(low, high)}
            assert known == self.model.private
        for private in (False, True):
            for first, pfn, count in vm.mmu.epts[private].runs(Gfn(0), MAX_GFN_EPT):
                for index in range(count):
                    self._is_right(first + index, pfn + index, private)

    def _is_right(self, gfn: int, pfn: int, private: bool) -> None:
        assert not isinstance(self.model.reached(gfn, private=private), str), f"{gfn:#x} is mapped, private: {private}"
        if not private:
            return
        slot = next(slot for slot in self._machine.vm.slots[True] if slot.gfn <= gfn < slot.gfn + slot.page_count)
        link = slot.gmem
        assert isinstance(link, StoreLink)
        assert self._store.frame_of(link, slot.pgoff + gfn - slot.gfn) == pfn - link.base

    def read_everything(self) -> None:
        for gfn in range(GFNS + 2):
            self.step(f"read {gfn} private")
            self.step(f"read {gfn} shared")
        for name, file in self.model.files.items():
            for pgoff in range(file.page_count):
                self.step(f"host {name} {pgoff}")
        self.check()
