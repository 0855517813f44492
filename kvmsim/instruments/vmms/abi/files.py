"""Situations: files, and the slots that show them. A function each: its name is the situation's, its docstring says
what is asked."""

from kvmsim.kvm.region import GPA_END, MemoryRegion, SlotFlag
from kvmsim.vmm.policies import POLICIES
from memfsd.uapi.abi import ABIS, GmemFlag
from memfsd.uapi.units import PAGE_SIZE

from .bench import GPA, SIZE, Bench


def create_ioctl(b: Bench) -> None:
    """KVM_CREATE_GUEST_MEMFD of 8 pages."""
    b.ask("create", lambda: b.store.create_guest_memfd(b.new(), SIZE, 0))


def create_mappable(b: Bench) -> None:
    """KVM_CREATE_GUEST_MEMFD with the flags MMAP, INIT_SHARED, and both."""
    for name, flags in (("MMAP", 1), ("INIT_SHARED", 2), ("both", 3)):
        b.ask(name, lambda flags=flags: b.store.create_guest_memfd(b.new(), SIZE, flags))  # type: ignore[misc]


def create_unknown_flag(b: Bench) -> None:
    """KVM_CREATE_GUEST_MEMFD with flag 4."""
    b.ask("create", lambda: b.store.create_guest_memfd(b.new(), SIZE, 4))


def create_size_0(b: Bench) -> None:
    """KVM_CREATE_GUEST_MEMFD of no bytes, and of 2^63."""
    b.ask("0", lambda: b.store.create_guest_memfd(b.new(), 0, 0))
    b.ask("2^63", lambda: b.store.create_guest_memfd(b.new(), 1 << 63, 0))


def create_twice(b: Bench) -> None:
    """KVM_CREATE_GUEST_MEMFD on a file that is one."""
    with b.beginning():
        file = b.make()
    b.ask("again", lambda: b.store.create_guest_memfd(file, SIZE, 0))


def seal(b: Bench) -> None:
    """An empty file is sealed for a guest, and gets its size."""
    file = b.new()
    b.ask("seal", lambda: b.store.seal(file))
    b.ask("size", lambda: b.store.truncate(file, SIZE))


def size_unaligned(b: Bench) -> None:
    """A file for a guest with a size of half a page."""
    b.ask("make", lambda: b.make(PAGE_SIZE // 2) and None)


def truncate(b: Bench) -> None:
    """ftruncate(2) of a file that has its size: shorter, longer, the same."""
    file = b.guest()
    for name, size in (("shorter", SIZE // 2), ("longer", SIZE * 2), ("the same", SIZE)):
        b.ask(name, lambda size=size: b.store.truncate(file, size))  # type: ignore[misc]


def host_reads(b: Bench) -> None:
    """A mapping of the host reads a private page that the guest has written; write(2) of it."""
    file = b.guest()
    b.written(b"secret")
    b.ask("read", lambda: b.store.read(file, 0, 8))
    b.ask("write", lambda: b.store.write(file, 0, b"host"))


def host_reads_shared(b: Bench) -> None:
    """A mapping of the host reads a page that is born shared; write(2) of it."""
    with b.beginning():
        file = b.make(flags=b.abi.create_flags & (GmemFlag.MMAP | GmemFlag.INIT_SHARED))
    b.ask("read", lambda: b.store.read(file, 0, 8))
    b.ask("write", lambda: b.store.write(file, 0, b"host"))


def fallocate(b: Bench) -> None:
    """fallocate(2): all of the file, half a page, past the end."""
    file = b.guest()
    for name, offset, size in (("all", 0, SIZE), ("half a page", 0, PAGE_SIZE // 2), ("past the end", SIZE, PAGE_SIZE)):
        b.ask(name, lambda offset=offset, size=size: b.store.fallocate(file, offset, size))  # type: ignore[misc]


def fallocate_and_no_room(b: Bench) -> None:
    """fallocate(2) of more pages than the pool has."""
    with b.beginning():
        file = b.make(1024 * PAGE_SIZE)
    b.ask("fallocate", lambda: b.store.fallocate(file, 0, 1024 * PAGE_SIZE))


def bind(b: Bench) -> None:
    """A slot of the file, and the guest touches its first page, as it is born."""
    with b.beginning():
        file = b.make()
    b.ask("slot", lambda: b.bind(file))
    b.ask("private read", b.read)
    b.ask("shared read", lambda: b.read(shared=True))


def bind_by_the_old_ioctl(b: Bench) -> None:
    """KVM_SET_USER_MEMORY_REGION with slots of each alias."""
    with b.beginning():
        file = b.make()
    b.ask(
        "private slot",
        lambda: b.machine.kvm.slots.set_private_slot(MemoryRegion.private(0, GPA, SIZE), file.path) and None,
    )
    b.ask("shared slot", lambda: b.machine.kvm.slots.check_shared_slot(MemoryRegion.shared(1, GPA, SIZE)))


def bind_by_region2(b: Bench) -> None:
    """KVM_SET_USER_MEMORY_REGION2 with a file and memory of user space in one slot."""
    with b.beginning():
        file = b.make()
    b.ask("slot", lambda: b.region2(file))


def bind_twice(b: Bench) -> None:
    """A second slot of the same pages of a file, elsewhere."""
    file = b.guest()
    b.ask("slot", lambda: b.bind(file, GPA + 2 * SIZE, slot=1))


def bind_overlapping(b: Bench) -> None:
    """A second slot of some of the pages, elsewhere."""
    file = b.guest()
    half = SIZE // 2
    b.ask("slot", lambda: b.bind(file, GPA + 2 * SIZE, slot=1, size=half, offset=half))


def bind_over_another_slot(b: Bench) -> None:
    """A slot of another file, where one is."""
    b.guest()
    with b.beginning():
        other = b.make()
    b.ask("slot", lambda: b.bind(other, GPA + PAGE_SIZE, slot=1))


def two_slots_of_a_file(b: Bench) -> None:
    """Two slots, each of half of a file, and the guest writes to both."""
    with b.beginning():
        file, half = b.make(), SIZE // 2
        b.bind(file, size=half)
    b.ask("second slot", lambda: b.bind(file, GPA + half, slot=1, size=half, offset=half))
    for name, page in (("write to the first", 0), ("write to the second", 4)):
        b.ask(name, lambda page=page: b.write(b"x", page, shared=b.is_born_shared))  # type: ignore[misc]


def bind_elsewhere(b: Bench) -> None:
    """The slot is deleted, and the file bound at another GPA."""
    file = b.guest()
    with b.beginning():
        b.delete()
    b.ask("slot", lambda: b.bind(file, GPA + 2 * SIZE))


def bind_unaligned(b: Bench) -> None:
    """A slot whose offset, GPA, or size is no multiple of a page."""
    with b.beginning():
        file = b.make()
    b.ask("offset", lambda: b.bind(file, size=PAGE_SIZE, offset=0x800))
    b.ask("gpa", lambda: b.bind(file, GPA + 0x800, size=PAGE_SIZE))
    b.ask("size", lambda: b.bind(file, size=0x800))


def bind_past_the_end(b: Bench) -> None:
    """A slot that ends one page past the end of the file."""
    with b.beginning():
        file = b.make()
    b.ask("slot", lambda: b.bind(file, offset=PAGE_SIZE))


def bind_huge_offset(b: Bench) -> None:
    """A slot at an offset of 2^63, where a loff_t is below zero, and at the last page that 64 bits can name."""
    with b.beginning():
        file = b.make()
    b.ask("2^63", lambda: b.bind(file, size=PAGE_SIZE, offset=1 << 63))
    b.ask("2^64 - 4096", lambda: b.bind(file, slot=1, gpa=GPA + SIZE, size=PAGE_SIZE, offset=(1 << 64) - PAGE_SIZE))


def bind_over_2_63(b: Bench) -> None:
    """A slot that begins a page before the offset 2^63 and ends behind it; the guest writes there, and reads."""
    with b.beginning():
        file = b.make()
    b.ask("slot", lambda: b.bind(file, size=2 * PAGE_SIZE, offset=(1 << 63) - PAGE_SIZE))
    b.ask("write", lambda: b.write(b"data", shared=True))
    b.ask("read", lambda: b.read(shared=True))


def bind_past_the_last_gpa(b: Bench) -> None:
    """A slot at the end of guest physical addresses."""
    with b.beginning():
        file = b.make()
    b.ask("slot", lambda: b.bind(file, GPA_END - PAGE_SIZE))


def bind_flags(b: Bench) -> None:
    """A slot of a file with KVM_MEM_LOG_DIRTY_PAGES, with READONLY, and with a flag that is none."""
    for name, flags in (("LOG_DIRTY_PAGES", SlotFlag.LOG_DIRTY_PAGES), ("READONLY", SlotFlag.READONLY), ("8", 8)):
        with b.beginning():
            file = b.make()
        b.ask(name, lambda file=file, flags=flags: b.bind(file, flags=flags))  # type: ignore[misc]


def bind_size_0(b: Bench) -> None:
    """A slot of no bytes, where none is."""
    with b.beginning():
        file = b.make()
    b.ask("slot", lambda: b.bind(file, size=0))


def change_a_slot(b: Bench) -> None:
    """A slot that shows a file moves; then another file in its place; then its flags."""
    file = b.guest()
    with b.beginning():
        other = b.make()
    b.ask("move", lambda: b.bind(file, GPA + 2 * SIZE))
    b.ask("another file", lambda: b.bind(other))
    b.ask("LOG_DIRTY_PAGES", lambda: b.bind(file, flags=SlotFlag.LOG_DIRTY_PAGES))


def foreign_vm(b: Bench) -> None:
    """A file that is another VM's."""
    file, other = b.guest(), b.vm()
    b.ask("slot", lambda: b.bind(file, vm=other))


def foreign_vm_after_its_end(b: Bench) -> None:
    """A file that was another VM's, which has ended."""
    file, other = b.guest(), b.vm()
    b.written(b"secret")
    b.machine.close()
    b.ask("slot", lambda: b.bind(file, vm=other))


def foreign_abi(b: Bench) -> None:
    """A VM of each other ABI makes a slot of the file."""
    with b.beginning():
        file = b.make()
    for number, abi in enumerate((abi for abi in ABIS.values() if abi is not b.abi), 1):
        other = b.vm(abi)
        b.ask(f"VM {number}", lambda other=other: b.bind(file, vm=other))  # type: ignore[misc]


def close_while_bound(b: Bench) -> None:
    """close(2) of the file's last descriptor while a slot shows it; then the guest reads what it wrote."""
    file = b.guest()
    b.written(b"data")
    b.ask("close", lambda: b.release(file))
    b.ask("read", b.read)
    b.ask("slot of it", lambda: b.bind(file, GPA + 2 * SIZE, slot=1))


def delete_and_add(b: Bench) -> None:
    """The slot is deleted and made again; the guest reads what it wrote before."""
    file = b.guest()
    b.written(b"data")
    b.ask("delete", b.delete)
    b.ask("read without it", b.read)
    b.ask("add", lambda: b.bind(file))
    b.ask("read", b.read)


def delete_what_is_not(b: Bench) -> None:
    """A slot that does not exist is deleted."""
    b.ask("delete", lambda: b.delete(3))


def punch_a_slot(b: Bench) -> None:
    """The ioctl that the thread proposes: a hole of two pages in a slot, then the guest reads there and beside it."""
    b.guest()
    b.written(b"data")
    b.written(b"beside", 3)
    b.ask("punch", lambda: b.machine.kvm.slots.punch_slot(0, GPA, 2 * PAGE_SIZE) and None)
    b.ask("read", b.read)
    b.ask("read beside", lambda: b.read(3))


def policies(b: Bench) -> None:
    """User space chooses each design of conversion: the thread's, then Linux's."""
    b.guest()
    for name in POLICIES[1:]:
        b.ask(name, lambda name=name: b.machine.vmm.set_policy(name))  # type: ignore[misc]


FILES = (
    create_ioctl, create_mappable, create_unknown_flag, create_size_0, create_twice, seal, size_unaligned, truncate,
    host_reads, host_reads_shared, fallocate, fallocate_and_no_room, bind, bind_by_the_old_ioctl, bind_by_region2,
    bind_twice, bind_overlapping, bind_over_another_slot, two_slots_of_a_file, bind_elsewhere, bind_unaligned,
    bind_past_the_end, bind_huge_offset, bind_over_2_63, bind_past_the_last_gpa, bind_flags, bind_size_0,
    change_a_slot, foreign_vm, foreign_vm_after_its_end, foreign_abi, close_while_bound, delete_and_add,
    delete_what_is_not, punch_a_slot, policies,
)  # fmt: skip
