"""Conversions of a guest_memfd: attributes of the VM, and of the file. A slot has both memories, and stays."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmsim.kvm.exits import MemoryFaultExit
from kvmsim.kvm.region import ATTRIBUTE_PRIVATE, AttributesRange, GmemFd, Region2, SlotFlag, Userspace
from kvmsim.memory.memory import AnonymousMemory
from kvmsim.store.link import StoreLink
from kvmsim.vmm.policies import NEEDED, check_policy
from memfsd.uapi.abi import ABIS, GMEM_7_2, GMEM_INPLACE, THREAD, Abi, GmemFlag
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import PAGE_SIZE, Gfn
from tests.support.both_sides import LocalStore, LocalVm, opened_store, page

Call = Callable[..., object]
PAGES = 16
SLOT_PAGES = PAGES // 2
POLICY_OF = {GMEM_7_2: "attributes", GMEM_INPLACE: "inplace"}
BOTH = pytest.mark.parametrize("abi", POLICY_OF, ids=lambda abi: abi.name)


class World:
    """PAGES private pages from GPA 0 in two slots of one file; page N begins with the byte N + 1."""

    def __init__(self, store: LocalStore, abi: Abi) -> None:
        self.store = store
        file: GmemFd = store.create_memfd("g", PAGES, GmemFlag.MMAP if abi is GMEM_INPLACE else 0)
        self.vm: LocalVm = store.vm()
        self.vm.kvm.guest_memfds.own(GmemFd(file.fd, store.path("g")))
        self.mapped = [AnonymousMemory(page(SLOT_PAGES)) for _ in range(2)]
        for slot, memory in enumerate(self.mapped):
            at = page(slot * SLOT_PAGES)
            asked = Region2(slot, SlotFlag.GUEST_MEMFD, at, page(SLOT_PAGES), offset=at)
            with self.vm.vmm.memory.lock:
                self.vm.vmm.memory.set_region2(asked, Userspace(memory, 0, "(anonymous)", owned=True), file)
        if abi is GMEM_7_2:
            self.vm.kvm.attributes.set(AttributesRange(0, page(PAGES), ATTRIBUTE_PRIVATE))
        self.vm.vmm.set_policy(POLICY_OF[abi])
        for number in range(PAGES):
            assert self.vm.write(page(number), bytes([number + 1])) is None

    def map(self, first: int, pages: int, *, private: bool) -> object:
        vm = self.vm
        return vm.vmm.run(vm.vcpu, lambda: vm.guest.map(vm.vcpu, page(first), page(pages), private=private))

    def touch(self, number: int, *, shared: bool, data: bytes | None = None) -> object:
        vm, gpa = self.vm, page(number)
        if data is None:
            return vm.vmm.run(vm.vcpu, lambda: vm.read(gpa, 1, shared=shared))
        return vm.vmm.run(vm.vcpu, lambda: vm.write(gpa, data, shared=shared))

    def private_pages(self) -> list[int]:
        return [number for number in range(PAGES) if isinstance(self.vm.read(page(number), 1), bytes)]

    @property
    def held(self) -> list[int]:
        return [memory.populated_count() for memory in self.mapped]


@contextmanager
def world_of(place: Path, abi: Abi) -> Iterator[World]:
    with opened_store(place, 64, abi=abi) as store:
        yield World(store, abi)


@BOTH
def test_an_implicit_request_converts_its_page_and_no_other(tmp_path: Path, abi: Abi) -> None:
    with world_of(tmp_path, abi) as world:
        assert world.touch(3, shared=True, data=b"public") is None
        assert world.touch(3, shared=True) == b"p"
        assert world.private_pages() == [number for number in range(PAGES) if number != 3]
        tally = world.vm.vmm.tally
        assert (tally.to_shared_pages, tally.lost_pages) == (1, 0)
        assert isinstance(world.touch(3, shared=False), bytes)
        assert world.private_pages() == list(range(PAGES))
        assert isinstance(world.vm.read(page(3), 1, shared=True), MemoryFaultExit)


@BOTH
def test_a_request_over_two_slots_and_what_is_so_already(tmp_path: Path, abi: Abi) -> None:
    with world_of(tmp_path, abi) as world:
        assert world.map(6, 4, private=False) is None
        assert world.map(7, 1, private=True) is None
        assert world.map(6, 4, private=False) is None
        assert world.private_pages() == [*range(6), *range(10, PAGES)]
        assert world.map(0, PAGES, private=True) is None
        assert world.private_pages() == list(range(PAGES))
        assert world.vm.read(page(5), 1) == bytes([6]), "what is around survives"


def test_with_attributes_of_the_vm_nothing_is_held_twice(tmp_path: Path) -> None:
    """The private side is punched, the shared one discarded; what comes is zero."""
    with world_of(tmp_path, GMEM_7_2) as world:
        frames = world.store.free_count
        world.map(2, 4, private=False)
        assert world.store.free_count == frames + 4
        for number in range(2, 6):
            assert world.touch(number, shared=True) == b"\0"
            world.touch(number, shared=True, data=b"x")
        assert world.held == [4, 0]
        world.map(2, 4, private=True)
        assert world.held == [0, 0]
        assert world.touch(3, shared=False) == b"\0"
        assert world.vm.vmm.doubled_pages() == 0


def test_in_place_the_same_frames_stay(tmp_path: Path) -> None:
    with world_of(tmp_path, GMEM_INPLACE) as world:
        frames = world.store.free_count
        world.map(2, 4, private=False)
        world.map(2, 4, private=True)
        assert world.store.free_count == frames
        assert [world.touch(number, shared=False) for number in range(2, 6)] == [bytes([n + 1]) for n in range(2, 6)]


def test_a_punch_that_the_store_refuses_takes_the_attributes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world_of(tmp_path, GMEM_7_2) as world:
        monkeypatch.setattr(StoreLink, "punch", refusing(errno.EIO))
        with pytest.raises(Refused, match="injected"):
            world.map(2, 4, private=False)
        assert world.vm.vcpu.run.hypercall.ret == (1 << 64) - errno.EIO
        assert [world.vm.read(page(number), 1) for number in range(PAGES)] == [bytes([n + 1]) for n in range(PAGES)]
        assert world.vm.vmm.tally.rolled_back == 1


@BOTH
def test_what_is_refused_later_is_taken_back_or_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abi: Abi
) -> None:
    """The second of two slots fails: in place the first is as it was, page for page. Frames that have gone are gone."""
    with world_of(tmp_path, abi) as world:
        world.map(7, 1, private=False)
        name = "punch" if abi is GMEM_7_2 else "convert"
        monkeypatch.setattr(StoreLink, name, refused_at(getattr(StoreLink, name), 2, errno.EIO))
        if abi is GMEM_7_2:
            assert world.map(6, 4, private=False) is None
            assert world.vm.vmm.tally.unreturned_pages == 2
            assert world.private_pages() == [*range(6), *range(10, PAGES)]
        else:
            with pytest.raises(Refused, match="injected"):
                world.map(6, 4, private=False)
            assert world.private_pages() == [*range(7), *range(8, PAGES)]


def test_eagain_is_the_guests_to_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody holds a page at the first try: the guest asks again, as MapGPA says, and gets it."""
    with world_of(tmp_path, GMEM_INPLACE) as world:
        monkeypatch.setattr(StoreLink, "convert", refused_at(StoreLink.convert, 1, errno.EAGAIN))
        assert world.map(2, 1, private=False) is None
        assert 2 not in world.private_pages()
        assert world.vm.vmm.tally.rolled_back == 1


@BOTH
def test_what_no_slot_shows_and_what_has_no_file_cannot_be_private(tmp_path: Path, abi: Abi) -> None:
    with world_of(tmp_path, abi) as world:
        memory = world.vm.vmm.memory
        with memory.lock:
            plain = Userspace(AnonymousMemory(PAGE_SIZE), 0, "(anonymous)", owned=True)
            memory.set_region2(Region2(5, 0, page(PAGES), PAGE_SIZE), plain)
        fault = world.touch(PAGES, shared=False)
        assert isinstance(fault, MemoryFaultExit) and fault.private
        assert world.vm.vmm.convert(Gfn(PAGES), Gfn(PAGES + 1), private=True) is None
        assert world.vm.vmm.convert(Gfn(PAGES + 4), Gfn(PAGES + 5), private=False) is None
        assert isinstance(world.touch(PAGES + 4, shared=False), MemoryFaultExit)


def test_each_abi_has_policies_of_its_own() -> None:
    for abi in ABIS.values():
        for policy, needed in NEEDED.items():
            if needed in (None, abi.attributes):
                check_policy(policy, abi)
            else:
                with pytest.raises(Refused, match=f"policy {policy} .* alone: on abi {abi.name} choose "):
                    check_policy(policy, abi)
    assert [policy for policy in NEEDED if NEEDED[policy] is THREAD.attributes] == ["recreate", "punch", "overlay"]


def refusing(number: int) -> Call:
    def call(*arguments: object, **named: object) -> object:
        raise Refused(number, "injected")

    return call


def refused_at(step: Call, at: int, number: int) -> Call:
    """The `at`-th call is refused, from 1."""
    calls: list[object] = []

    def call(*arguments: object, **named: object) -> object:
        calls.append(arguments)
        if len(calls) == at:
            raise Refused(number, "injected")
        return step(*arguments, **named)

    return call
