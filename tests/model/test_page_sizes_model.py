"""A VM with large pages against a dict: holes, fills, punches and accesses in any order; files of 2 MiB, 1 GiB pages.

After every step each page that was written holds what the model says (R5), nothing is mapped that no slot shows, no TLB
has a translation that the page table does not have; at every tenth R1 to R8 hold on both sides.
"""

import random
from pathlib import Path

import pytest

from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.exits import MemoryErrorExit
from kvmsim.kvm.mmu.ept import entry_pfn
from memfsd.uapi.units import Gfn
from tests.support.both_sides import LocalStore, LocalVm, opened_store, page

MIB2 = 512
GIB = 1 << 18


class Pair:
    """Private slot 0 shows a file of large pages at GFN 0; its holes are pages that `shown` says False of."""

    def __init__(self, store: LocalStore, page_size: str, size: int, blocks: int) -> None:
        self.store, self.size, self.pages = store, size, size * blocks
        store.create("file", self.pages, page_size=page_size)
        self.local = LocalVm(store)
        self.local.private_slot(0, 0, page(self.pages), "file")
        self.local.vm.create_vcpu(1)
        self.data: dict[int, int] = {}
        self.holes: list[tuple[int, int]] = []

    def shown(self, gfn: int) -> bool:
        return not any(start <= gfn < end for start, end in self.holes)

    def forget(self, start: int, end: int) -> None:
        self.data = {gfn: value for gfn, value in self.data.items() if not start <= gfn < end}

    def write(self, vcpu: int, gfn: int, value: int) -> None:
        got = self.local.guest.write(self.local.vm.vcpu(vcpu), page(gfn), bytes([value]))
        if self.shown(gfn):
            assert got is None
            self.data[gfn] = value
        else:
            assert got == MemoryErrorExit(page(gfn), page(1), True)

    def read(self, vcpu: int, gfn: int) -> None:
        got = self.local.guest.read(self.local.vm.vcpu(vcpu), page(gfn), 1)
        assert got == (bytes([self.data.get(gfn, 0)]) if self.shown(gfn) else MemoryErrorExit(page(gfn), page(1), True))

    def touch(self, gfn: int, count: int) -> None:
        missing = next((at for at in range(gfn, gfn + count) if not self.shown(at)), None)
        got = self.local.touch(page(gfn), page(count))
        assert (got is None) == (missing is None)

    def hole(self, start: int, end: int) -> None:
        if all(end <= low or high <= start for low, high in self.holes):
            self.local.vmm.memory.punch_slot(0, page(start), page(end - start))
            self.holes.append((start, end))
            self.forget(start, end)

    def fill(self, number: int) -> None:
        if self.holes:
            start, end = self.holes.pop(number % len(self.holes))
            self.local.vmm.memory.fill_slot(0, Gfn(start), Gfn(end))

    def punch(self, block: int) -> None:
        start = block % (self.pages // self.size) * self.size
        self.store.punch("file", start, self.size)
        self.forget(start, start + self.size)

    def punch_part(self, start: int, end: int) -> None:
        """What is given back, is so at once, and all else stays."""
        pages, pool = self.store.file("file").pages, self.store.service.pool
        held, free = pages.count_mapped(start, end), pool.free_count
        self.store.punch("file", start, end - start)
        assert (pages.count_mapped(start, end), pool.free_count) == (0, free + held)
        self.forget(start, end)

    def map(self, start: int, end: int) -> None:
        whole = all(end <= low or high <= start for low, high in self.holes)
        got = self.local.guest.map(self.local.vcpu, page(start), page(end - start), private=True)
        assert (got is None) == whole
        assert not whole or self.local.vm.mmu.epts[PRIVATE].first_missing(Gfn(start), Gfn(end)) == end

    def check(self) -> None:
        vm = self.local.vm
        ept = vm.mmu.epts[PRIVATE]
        for start, end in self.holes:
            assert not list(ept.runs(Gfn(start), Gfn(end)))
        for gfn, value in self.data.items():
            entry = ept.walk(Gfn(gfn))
            if entry:
                memory, frame = vm.physmap.find(entry_pfn(entry))
                assert memory.read(page(frame), 1) == bytes([value]), gfn
        for vcpu in vm.vcpus.values():
            for key, (memory, offset, _) in vcpu.tlb._entries.items():
                assert vm.physmap.find(entry_pfn(ept.walk(Gfn(~key)))) == (memory, offset // page(1))


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize(("page_size", "size", "blocks"), [("2M", MIB2, 3), ("1G", GIB, 2)])
def test_a_vm_with_large_pages_agrees_with_a_dict(
    tmp_path: Path, page_size: str, size: int, blocks: int, split: bool
) -> None:
    chosen = random.Random(page_size)
    with opened_store(tmp_path, size * blocks, split=split) as store:
        pair = Pair(store, page_size, size, blocks)
        places = [at + near for at in (0, MIB2, size, 2 * size - MIB2) for near in (0, 1, 255, 510, 511)]
        for step in range(600):
            gfn = chosen.choice(places)
            end = min(gfn + chosen.choice([1, 1, 1, 2, 300, MIB2, MIB2 + 1]), pair.pages)
            vcpu = chosen.randrange(2)
            match chosen.choice(
                ["write"] * 6 + ["read"] * 4 + ["hole", "hole", "fill", "fill", "fill", "punch", "map", "touch"]
            ):
                case "write":
                    pair.write(vcpu, gfn, chosen.randrange(1, 256))
                case "read":
                    pair.read(vcpu, gfn)
                case "hole":
                    pair.hole(gfn, end)
                case "fill":
                    pair.fill(chosen.randrange(100))
                case "punch" if split and step % 4:
                    pair.punch_part(gfn, end)
                case "punch":
                    pair.punch(chosen.randrange(100))
                case "map":
                    pair.map(gfn, end)
                case "touch":
                    pair.touch(gfn, end - gfn)
            pair.check()
            assert step % 10 or store.findings() == []
        ept, guest = pair.local.vm.mmu.epts[PRIVATE], store.guest("file")
        assert not split or (guest.split_count > 5 and guest.merge_count > 5)
        assert ept.split_count > 20 and ept.merge_count > 10, "it was worth it"
        while pair.holes:
            pair.fill(0)
        pair.map(0, pair.pages)
        for gfn in list(pair.data):
            pair.read(0, gfn)
        assert ept.page_count == pair.pages
