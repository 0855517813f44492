"""Situations: pages, attributes, conversions and exits. A function each: its name is the situation's, its docstring
says what is asked."""

from kvmsim.kvm.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED
from kvmsim.kvm.region import ATTRIBUTE_PRIVATE as PRIVATE
from memfsd.uapi.abi import GmemFlag
from memfsd.uapi.units import PAGE_SIZE

from .bench import GPA, SIZE, Bench
from .bench import PAGES as PAGE_COUNT

_U64_END = 1 << 64


def touch_other_alias(b: Bench) -> None:
    """The guest writes to a private page by the shared alias: an implicit request."""
    b.guest()
    b.ask("write", lambda: b.write(b"x", shared=True))


def touch_other_alias_then_convert(b: Bench) -> None:
    """As before; user space converts the page, and runs the vCPU again."""
    file = b.guest()
    b.ask("write", lambda: b.write(b"shared", shared=True))
    b.ask("convert", lambda: b.convert(file, private=False, count=1))
    b.ask("KVM_RUN", b.again)
    b.ask("read", lambda: b.read(shared=True))


def touch_no_slot(b: Bench) -> None:
    """The guest reads where no slot is, by each alias."""
    b.guest()
    b.ask("private", lambda: b.read(2 * PAGE_COUNT))
    b.ask("shared", lambda: b.read(2 * PAGE_COUNT, shared=True))


def touch_a_hole(b: Bench) -> None:
    """The guest reads a private page that was never written."""
    b.guest()
    b.ask("read", b.read)


def touch_and_no_room(b: Bench) -> None:
    """The guest writes to a private page, and the pool has no frame."""
    b.guest()
    with b.beginning():
        other = b.make(64 * PAGE_SIZE)
        b.store.fallocate(other, 0, 64 * PAGE_SIZE)
    b.ask("write", lambda: b.write(b"x"))


def punch_mapped(b: Bench) -> None:
    """fallocate(PUNCH_HOLE) of a private page that the guest has written; then it reads."""
    file = b.guest()
    b.written(b"data")
    b.ask("punch", lambda: b.store.punch_file(file, 0, PAGE_SIZE))
    b.ask("read", b.read)


def punch_shared(b: Bench) -> None:
    """fallocate(PUNCH_HOLE) of the file where the page is shared, and written; then the guest reads."""
    file = b.guest()
    with b.beginning():
        b.convert(file, private=False)
    b.written(b"shared", shared=True)
    b.ask("punch", lambda: b.store.punch_file(file, 0, PAGE_SIZE))
    b.ask("read", lambda: b.read(shared=True))


def punch_born_shared(b: Bench) -> None:
    """fallocate(PUNCH_HOLE) of a page of a file that is born shared, and that the guest has written; then it reads."""
    with b.beginning():
        file = b.make(flags=b.abi.create_flags & (GmemFlag.MMAP | GmemFlag.INIT_SHARED))
        b.bind(file)
    b.ask("write", lambda: b.write(b"shared", shared=True))
    b.ask("punch", lambda: b.store.punch_file(file, 0, PAGE_SIZE))
    b.ask("read", lambda: b.read(shared=True))


def punch_odd_ranges(b: Bench) -> None:
    """fallocate(PUNCH_HOLE) of half a page, of nothing, and past the end; then the guest reads what it wrote."""
    file = b.guest()
    b.written(b"data")
    for name, offset, size in (("half", 0, 0x800), ("nothing", 0, 0), ("past the end", SIZE, PAGE_SIZE)):
        b.ask(name, lambda offset=offset, size=size: b.store.punch_file(file, offset, size))  # type: ignore[misc]
    b.ask("read", b.read)


def convert_unallocated(b: Bench) -> None:
    """Private pages without memory are converted to shared; the guest reads."""
    file = b.guest()
    b.ask("convert", lambda: b.convert(file, private=False))
    b.ask("shared read", lambda: b.read(shared=True))
    b.ask("private read", b.read)


def convert_to_shared(b: Bench) -> None:
    """Private pages that the guest has written are converted to shared; it reads."""
    file = b.guest()
    b.written(b"private")
    b.ask("convert", lambda: b.convert(file, private=False))
    b.ask("shared read", lambda: b.read(shared=True))
    b.ask("private read", b.read)


def convert_to_private(b: Bench) -> None:
    """Shared pages that the guest has written are converted to private; it reads."""
    file = b.guest()
    with b.beginning():
        b.convert(file, private=False)
    b.written(b"shared", shared=True)
    b.ask("convert", lambda: b.convert(file, private=True))
    b.ask("private read", b.read)
    b.ask("shared read", lambda: b.read(shared=True))


def convert_and_back(b: Bench) -> None:
    """Private pages that the guest has written become shared, and private again."""
    file = b.guest()
    b.written(b"private")
    b.ask("to shared", lambda: b.convert(file, private=False))
    b.ask("to private", lambda: b.convert(file, private=True))
    b.ask("read", b.read)


def convert_one_of_two(b: Bench) -> None:
    """One of two written pages is converted to shared; the guest reads the other one."""
    file = b.guest()
    b.written(b"first")
    b.written(b"second", 1)
    b.ask("convert", lambda: b.convert(file, private=False, count=1))
    b.ask("read", lambda: b.read(1))


def convert_twice(b: Bench) -> None:
    """What is private is converted to private: nothing changes."""
    file = b.guest()
    b.written(b"private")
    b.ask("convert", lambda: b.convert(file, private=True))
    b.ask("read", b.read)


def vm_attributes(b: Bench) -> None:
    """KVM_SET_MEMORY_ATTRIBUTES: to shared, to private."""
    b.guest()
    b.ask("shared", lambda: b.vm_attributes(GPA, SIZE, 0))
    b.ask("private", lambda: b.vm_attributes(GPA, SIZE, PRIVATE))


def vm_attributes_beside_shared_memory(b: Bench) -> None:
    """A file that is born shared, then KVM_SET_MEMORY_ATTRIBUTES to private; the other way round in another VM."""
    both = GmemFlag.MMAP | GmemFlag.INIT_SHARED
    b.ask("born shared", lambda: b.make(flags=both) and None)
    b.ask("private", lambda: b.vm_attributes(GPA, SIZE, PRIVATE))
    other = b.vm()
    b.ask("private first", lambda: b.vm_attributes(GPA, SIZE, PRIVATE, vm=other))
    b.ask("then born shared", lambda: b.make(flags=both, vm=other) and None)


def vm_attributes_without_slot(b: Bench) -> None:
    """KVM_SET_MEMORY_ATTRIBUTES where no slot is; then the guest reads there by the shared alias."""
    b.guest()
    b.ask("private", lambda: b.vm_attributes(GPA + 2 * SIZE, SIZE, PRIVATE))
    b.ask("read", lambda: b.read(2 * PAGE_COUNT, shared=True))


def vm_attributes_that_are_none(b: Bench) -> None:
    """KVM_SET_MEMORY_ATTRIBUTES with an attribute that is none, a flag, no bytes, half a page, a range that wraps."""
    b.guest()
    b.ask("attribute 1", lambda: b.vm_attributes(GPA, SIZE, 1))
    b.ask("flag 1", lambda: b.vm_attributes(GPA, SIZE, PRIVATE, 1))
    b.ask("size 0", lambda: b.vm_attributes(GPA, 0, PRIVATE))
    b.ask("unaligned", lambda: b.vm_attributes(GPA + 0x800, PAGE_SIZE, PRIVATE))
    b.ask("wraps", lambda: b.vm_attributes(_U64_END - PAGE_SIZE, 2 * PAGE_SIZE, PRIVATE))


def file_attributes(b: Bench) -> None:
    """KVM_SET_MEMORY_ATTRIBUTES2 of the file: to shared, to private."""
    file = b.guest()
    b.ask("shared", lambda: b.file_attributes(file, 0, SIZE, 0))
    b.ask("private", lambda: b.file_attributes(file, 0, SIZE, PRIVATE))


def file_attributes_without_slot(b: Bench) -> None:
    """KVM_SET_MEMORY_ATTRIBUTES2 of a file that no slot shows."""
    with b.beginning():
        file = b.make()
    b.ask("shared", lambda: b.file_attributes(file, 0, SIZE, 0))


def file_attributes_that_are_none(b: Bench) -> None:
    """KVM_SET_MEMORY_ATTRIBUTES2 with an attribute that is none, a flag, no bytes, half a page, past the end, a range
    that wraps."""
    file = b.guest()
    b.ask("attribute 1", lambda: b.file_attributes(file, 0, SIZE, 1))
    b.ask("flag 1", lambda: b.file_attributes(file, 0, SIZE, PRIVATE, 1))
    b.ask("size 0", lambda: b.file_attributes(file, 0, 0, PRIVATE))
    b.ask("unaligned", lambda: b.file_attributes(file, 0x800, PAGE_SIZE, PRIVATE))
    b.ask("past the end", lambda: b.file_attributes(file, SIZE, PAGE_SIZE, PRIVATE))
    b.ask("wraps", lambda: b.file_attributes(file, _U64_END - PAGE_SIZE, 2 * PAGE_SIZE, PRIVATE))


def map_gpa(b: Bench) -> None:
    """The guest asks by TDG.VP.VMCALL<MapGPA> for what is private: private, then shared."""
    b.guest()
    b.ask("private", lambda: b.map_gpa(private=True))
    b.ask("shared", lambda: b.map_gpa(private=False))


def map_gpa_without_slot(b: Bench) -> None:
    """MapGPA where no slot is."""
    b.guest()
    b.ask("private", lambda: b.map_gpa(private=True, gpa=GPA + 2 * SIZE))
    b.ask("shared", lambda: b.map_gpa(private=False, gpa=GPA + 2 * SIZE))


def map_gpa_odd_ranges(b: Bench) -> None:
    """MapGPA of nothing, and of half a page."""
    b.guest()
    b.ask("size 0", lambda: b.map_gpa(private=False, size=0))
    b.ask("unaligned", lambda: b.map_gpa(private=False, gpa=GPA + 0x800))


def map_gpa_for_user_space(b: Bench) -> None:
    """MapGPA where user space has asked for it by KVM_CAP_EXIT_HYPERCALL; it answers 0."""
    b.guest()
    b.machine.vm.exit_hypercalls = 1 << KVM_HC_MAP_GPA_RANGE
    b.ask("shared", lambda: b.map_gpa(private=False))
    b.ask("KVM_RUN", b.again)


def map_gpa_range(b: Bench) -> None:
    """The hypercall KVM_HC_MAP_GPA_RANGE: not asked for by user space, then asked for; then no page, and unaligned."""
    b.guest()
    b.ask("not asked for", lambda: b.vmcall(KVM_HC_MAP_GPA_RANGE, GPA, 1, MAP_GPA_RANGE_ENCRYPTED))
    b.machine.vm.exit_hypercalls = 1 << KVM_HC_MAP_GPA_RANGE
    b.ask("asked for", lambda: b.vmcall(KVM_HC_MAP_GPA_RANGE, GPA, 1, MAP_GPA_RANGE_ENCRYPTED))
    b.ask("no page", lambda: b.vmcall(KVM_HC_MAP_GPA_RANGE, GPA, 0, 0))
    b.ask("unaligned", lambda: b.vmcall(KVM_HC_MAP_GPA_RANGE, GPA + 0x800, 1, 0))


def poison(b: Bench) -> None:
    """The frame of a private page fails; the guest reads it; user space punches it out, and runs the vCPU again."""
    file = b.guest()
    b.written(b"data")
    b.ask("fail", lambda: b.store.poison(file, 0))
    b.ask("read", b.read)
    b.ask("punch", lambda: b.store.punch_file(file, 0, PAGE_SIZE))
    b.ask("KVM_RUN", b.again)


def poison_a_hole(b: Bench) -> None:
    """The frame of a page fails that has none."""
    file = b.guest()
    b.ask("fail", lambda: b.store.poison(file, 0))


def prefault(b: Bench) -> None:
    """KVM_PRE_FAULT_MEMORY of private pages."""
    b.guest()
    b.ask("prefault", b.prefault)


def prefault_shared(b: Bench) -> None:
    """KVM_PRE_FAULT_MEMORY of the shared alias where pages are private."""
    b.guest()
    b.ask("prefault", lambda: b.prefault(shared=True))


def prefault_partial(b: Bench) -> None:
    """KVM_PRE_FAULT_MEMORY of twice the slot: its second half has no slot."""
    b.guest()
    b.ask("prefault", lambda: b.prefault(size=2 * SIZE))


def prefault_odd_ranges(b: Bench) -> None:
    """KVM_PRE_FAULT_MEMORY of nothing, of half a page, past 2^64, and where no slot is."""
    b.guest()
    b.ask("size 0", lambda: b.prefault(size=0))
    b.ask("unaligned", lambda: b.prefault(GPA + 0x800))
    b.ask("wraps", lambda: b.prefault(_U64_END - PAGE_SIZE, 2 * PAGE_SIZE))
    b.ask("no slot", lambda: b.prefault(GPA + 2 * SIZE))


def prefault_poisoned(b: Bench) -> None:
    """KVM_PRE_FAULT_MEMORY where the frame of the first page, and of the third, has failed."""
    file = b.guest()
    b.written(b"data", 2)
    with b.beginning():
        b.store.poison(file, 2)
    b.ask("from the first", b.prefault)
    b.ask("from the third", lambda: b.prefault(GPA + 2 * PAGE_SIZE, PAGE_SIZE))


def store_dies(b: Bench) -> None:
    """The store is killed; the guest touches a page that it has, and another one."""
    b.guest()
    b.written(b"data")
    b.store.die()
    b.ask("another one", lambda: b.write(b"x", 1))


PAGES = (
    touch_other_alias, touch_other_alias_then_convert, touch_no_slot, touch_a_hole, touch_and_no_room, punch_mapped,
    punch_shared, punch_born_shared, punch_odd_ranges, convert_unallocated, convert_to_shared, convert_to_private,
    convert_and_back, convert_one_of_two, convert_twice, vm_attributes, vm_attributes_beside_shared_memory,
    vm_attributes_without_slot, vm_attributes_that_are_none, file_attributes, file_attributes_without_slot,
    file_attributes_that_are_none, map_gpa,
    map_gpa_without_slot, map_gpa_odd_ranges, map_gpa_for_user_space, map_gpa_range, poison, poison_a_hole, prefault,
    prefault_shared, prefault_partial, prefault_odd_ranges, prefault_poisoned, store_dies,
)  # fmt: skip
