"""The host address space and its sticky mappings: one test per rule of memfd_encrypted() in the thread."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsim.vmm.hva import TASK_SIZE, HostAddressSpace, Vma
from memfsd.uapi.errors import Refused
from tests.support.both_sides import errno_of, page

SIZE = page(16)
BASE = 1 << 32


@pytest.fixture
def space() -> HostAddressSpace:
    return HostAddressSpace("vmm", {})


def encrypted(space: HostAddressSpace, file: object = "file", at: int | None = BASE, **changes: object) -> Vma:
    asked = {"length": SIZE, "offset": 0, "shared": True, "at": at, **changes}
    return space.map_encrypted(file, "vm.mem", SIZE, None, **asked)  # type: ignore[arg-type]


def shape(space: HostAddressSpace) -> list[tuple[int, int, bool]]:
    return [(vma.start, vma.end, vma.file is not None) for vma in space]


def test_a_sealed_file_is_mapped_whole_and_shared(space: HostAddressSpace) -> None:
    vma = encrypted(space)
    assert (vma.start, vma.size) == (BASE, SIZE)
    assert vma.flags == ("VM_SHARED", "VM_DONTCOPY", "VM_DONTDUMP")


@pytest.mark.parametrize(
    "changes", [{"shared": False}, {"length": page(15)}, {"length": page(17)}, {"offset": page(1), "length": page(15)}]
)
def test_private_or_in_part_is_einval(space: HostAddressSpace, changes: dict[str, object]) -> None:
    assert errno_of(encrypted, space, **changes) == "EINVAL"
    assert shape(space) == []


def test_an_empty_file_is_einval(space: HostAddressSpace) -> None:
    assert errno_of(space.map_encrypted, "f", "f", 0, None, length=0, offset=0, shared=True) == "EINVAL"


def test_each_page_is_mapped_exactly_once_in_one_process(space: HostAddressSpace) -> None:
    encrypted(space)
    assert errno_of(encrypted, space, at=None) == "EBUSY"
    child = space.fork("child")
    with pytest.raises(Refused, match="process vmm maps it already"):
        encrypted(child)
    encrypted(child, file="another")


@pytest.mark.parametrize(
    ("start", "length"), [(BASE, SIZE), (BASE, page(1)), (BASE + page(3), page(2)), (BASE - page(1), page(18))]
)
def test_it_can_not_vanish_not_even_in_parts(space: HostAddressSpace, start: int, length: int) -> None:
    encrypted(space)
    space.map_anonymous(page(1), "memory", BASE - page(1))
    before = shape(space)
    assert errno_of(space.unmap, start, length) == "EPERM"
    assert shape(space) == before, "what lies beside it stays, too"


def test_nothing_is_mapped_over_it(space: HostAddressSpace) -> None:
    encrypted(space)
    assert errno_of(space.map_anonymous, page(1), "memory", BASE + page(2)) == "EEXIST"


def test_it_is_skipped_by_fork_and_by_dump(space: HostAddressSpace) -> None:
    encrypted(space)
    space.map_anonymous(page(2), "memory", BASE - page(4))
    assert shape(space.fork("child")) == [(BASE - page(4), BASE - page(2), False)]
    assert [vma.start for vma in space.dump()] == [BASE - page(4)]


def test_accesses_fault_like_swap_markers(space: HostAddressSpace) -> None:
    encrypted(space)
    space.map_anonymous(page(1), "memory", BASE - page(1))
    for start, length in ((BASE, 1), (BASE + SIZE - 1, 1), (BASE - 1, 2)):
        with pytest.raises(Refused, match="SIGBUS") as refused:
            space.backing(start, length)
        assert refused.value.errno == errno.EFAULT
    with pytest.raises(Refused, match="SIGSEGV"):
        space.backing(BASE + SIZE, 1)
    assert space.backing(BASE - page(1), page(1)).memory == "memory"


def test_a_private_slot_covers_it_whole(space: HostAddressSpace) -> None:
    vma = encrypted(space)
    assert space.encrypted(BASE, SIZE) == vma
    for start, length in ((BASE, page(8)), (BASE + page(8), page(8)), (BASE - page(1), SIZE + page(1))):
        assert errno_of(space.encrypted, start, length) == "EINVAL"
    assert errno_of(space.encrypted, BASE + 2 * SIZE, SIZE) == "EINVAL"


def test_it_goes_with_its_process_and_may_be_mapped_again_then(space: HostAddressSpace) -> None:
    child = space.fork("child")
    encrypted(child)
    child.exit()
    assert encrypted(space).start == BASE


def test_places_are_found_below_what_is_there_and_refused_where_nothing_fits(space: HostAddressSpace) -> None:
    first = space.map_anonymous(page(2), "a")
    second = space.map_anonymous(page(2), "b")
    assert second.end == first.start
    space.unmap(first.start, page(2))
    assert space.map_anonymous(page(1), "c").end == first.end, "the gap is used again"
    assert errno_of(space.map_anonymous, 1 << 47, "d") == "ENOMEM"
    for at in (0, 1, BASE + 1, TASK_SIZE):
        assert errno_of(space.map_anonymous, page(1), "e", at) == "EINVAL"


PAGES = 24
spans = st.tuples(st.integers(0, PAGES - 1), st.integers(1, 8))


@given(steps=st.lists(st.tuples(st.booleans(), spans), max_size=30))
def test_anonymous_mappings_against_a_plain_dict(steps: list[tuple[bool, tuple[int, int]]]) -> None:
    """The model: which memory, and which page of it, each page of the address space shows."""
    space, model = HostAddressSpace("vmm", {}), dict[int, tuple[int, int]]()
    for memory, (maps, (first, count)) in enumerate(steps):
        start, span = BASE + page(first), range(first, first + count)
        if maps:
            taken = any(at in model for at in span)
            if taken:
                assert errno_of(space.map_anonymous, page(count), memory, start) == "EEXIST"
            else:
                space.map_anonymous(page(count), memory, start)
                model |= {at: (memory, at - first) for at in span}
        else:
            removed = {at: model.pop(at) for at in span if at in model}
            assert _pages(space.unmap(start, page(count))) == removed
        assert _pages(list(space)) == model


def _pages(vmas: list[Vma]) -> dict[int, tuple[object, int]]:
    return {
        (at - BASE) // page(1): (vma.memory, (vma.memory_offset + at - vma.start) // page(1))
        for vma in vmas
        for at in range(vma.start, vma.end, page(1))
    }
