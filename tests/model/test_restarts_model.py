"""Any access over any mix of memory, devices and pages that are yet to be repaired: each byte goes to its place once.

The shared alias of a few pages: a page is memory, or a device, or is private only (an exit that user space repairs with
a slot). Between exits user space asks the vCPU to leave, or runs it without having repaired anything.
"""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmsim.kvm.exits import MemoryErrorExit, MmioExit
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SIZE
from tests.support.both_sides import LocalStore, LocalVm, opened_store, page

PAGES = 4
MEMORY, DEVICE, PRIVATE = "memory", "device", "private"


class World:
    """User space: what it answers, what it repairs, and a record of all that a device was told."""

    def __init__(self, store: LocalStore, kinds: list[str], seed: int) -> None:
        self.random = random.Random(seed)
        self.kinds = kinds
        self.content = bytearray(self.random.randbytes(page(PAGES)))
        """What each address holds, memory and devices alike."""
        self.report: list[tuple[int, bytes]] = []
        store.create("file", PAGES)
        self.local = LocalVm(store)
        for number, kind in enumerate(kinds):
            if kind == MEMORY:
                self.add_memory(number)
            elif kind == PRIVATE:
                self.local.private_slot(number, page(number), page(1), "file", page(number))

    def add_memory(self, number: int) -> None:
        memory = self.local.shared_slot(number, page(number), page(1))
        memory.write(0, bytes(self.content[page(number) : page(number + 1)]))

    def finish(self, first: object) -> object:
        """From exit to exit to the result."""
        got = first
        while isinstance(got, MmioExit | MemoryErrorExit):
            got = self.again(got)
        return got

    def again(self, exit_: MmioExit | MemoryErrorExit) -> object:
        vcpu = self.local.vcpu
        if isinstance(exit_, MemoryErrorExit):
            number = exit_.gpa // PAGE_SIZE
            assert (exit_.size, exit_.private, self.kinds[number]) == (PAGE_SIZE, False, PRIVATE)
            if self.random.random() < 0.3:
                assert vcpu.kvm_run() == exit_, "not repaired"
            self.add_memory(number)
        else:
            at, end = exit_.phys_addr, exit_.phys_addr + exit_.length
            assert self.kinds[at // PAGE_SIZE] == DEVICE
            assert 0 < exit_.length <= 8 and at // PAGE_SIZE == (end - 1) // PAGE_SIZE
            if exit_.is_write:
                self.report.append((at, exit_.data))
                self.content[at:end] = exit_.data
            else:
                vcpu.run.mmio.data[: exit_.length] = list(self.content[at:end])
        if self.random.random() < 0.3:
            vcpu.request_exit()
        try:
            return vcpu.kvm_run()
        except Refused:
            vcpu.run.immediate_exit = 0
            return vcpu.kvm_run()
        finally:
            vcpu.run.immediate_exit = 0

    def device_bytes(self, start: int, end: int) -> list[int]:
        return [at for at in range(start, end) if self.kinds[at // PAGE_SIZE] == DEVICE]

    def read_back(self, start: int, end: int) -> None:
        """The range and what is around it."""
        low, high = max(0, start - 64), min(page(PAGES), end + 64)
        assert self.finish(self.local.read(low, high - low, shared=True)) == bytes(self.content[low:high])


layouts = st.lists(st.sampled_from([MEMORY, DEVICE, PRIVATE]), min_size=PAGES, max_size=PAGES)
edges = st.one_of(
    st.integers(0, page(PAGES) - 1),
    st.builds(lambda n, d: max(0, page(n) + d), st.integers(1, PAGES - 1), st.integers(-9, 9)),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    kinds=layouts,
    start=edges,
    length=st.one_of(st.integers(1, 40), st.integers(page(1), page(1) + 40)),
    seed=st.integers(0, 99),
)
def test_every_byte_goes_to_its_place_once(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], start: int, length: int, seed: int
) -> None:
    place: Path = tmp_path_factory.mktemp("m")
    with opened_store(place, 16) as store:
        world = World(store, kinds, seed)
        end = min(start + length, page(PAGES))
        before = bytes(world.content[start:end])
        assert world.finish(world.local.read(start, end - start, shared=True)) == before
        assert world.report == []

        data = world.random.randbytes(end - start)
        assert world.finish(world.local.write(start, data, shared=True)) is None
        report = [(at + number, byte) for at, piece in world.report for number, byte in enumerate(piece)]
        assert report == [(at, data[at - start]) for at in world.device_bytes(start, end)], "once, in order"
        world.content[start:end] = data
        world.read_back(start, end)

        world.report.clear()
        assert world.finish(world.local.touch(start, end - start, shared=True)) is None
        firsts = range(start & -PAGE_SIZE, end, PAGE_SIZE)
        assert [at for at, _ in world.report] == [at for at in firsts if kinds[at // PAGE_SIZE] == DEVICE]
        world.read_back(start, end)
