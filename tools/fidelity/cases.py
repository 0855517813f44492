"""The cases: what is asked of KVM_SET_USER_MEMORY_REGION (v1) and KVM_SET_USER_MEMORY_REGION2 (v2).

Each case begins with one VM, "vm", and 64 KiB of anonymous memory, "a". An op is a dict:

    {"op": "set_region", "slot", "flags", "gpa", "size", "uaddr"}                           v1
    {"op": "set_region2", "slot", "flags", "gpa", "size", "uaddr", "gmem", "off"}           v2
    {"op": "anon", "as"}    {"op": "create_vm", "as"}    {"op": "create_vcpu", "id"}
    {"op": "create_gmem", "vm", "size", "as"}    a guest_memfd of that VM
    {"op": "plain_file", "as"}                   a memfd: a file that is no guest_memfd
    {"op": "dup", "of", "as"}    {"op": "close", "of"}

uaddr is [memory, offset] or an address; gmem is a file's name or an fd number; a region's "vm" is "vm" unless
given. Slots carry the address space in bits 31:16, as in the ABI. Sizes and addresses are in bytes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

Op = dict[str, object]

PAGE = 4096
A_BYTES = 16 * PAGE
LOG_DIRTY, READONLY, GUEST_MEMFD = 1, 2, 4
NO_FD = 999
"""An fd that is never open."""

WIDTH = "the CPU's physical address width"
SPACES = "the number of address spaces: 2 where KVM has SMM"
KERNEL = "the kernel: EEXIST from Linux 7.2 on"


@dataclass(frozen=True)
class Case:
    """varies: what the answers depend on besides the rules, so that another machine may answer otherwise."""

    name: str
    ops: tuple[Op, ...]
    varies: str = ""


def region(
    slot: int, gpa: int, size: int, flags: int = 0, uaddr: int | tuple[str, int] = ("a", 0), **other: object
) -> Op:
    return {
        "op": "set_region",
        "slot": slot,
        "flags": flags,
        "gpa": gpa,
        "size": size,
        "uaddr": list(uaddr) if isinstance(uaddr, tuple) else uaddr,
        **other,
    }


def region2(
    slot: int, gpa: int, size: int, flags: int = 0, uaddr: int | tuple[str, int] = ("a", 0), **other: object
) -> Op:
    return {"gmem": 0, "off": 0, **region(slot, gpa, size, flags, uaddr), "op": "set_region2", **other}


def bind(slot: int, gpa: int, size: int, off: int = 0, gmem: str | int = "g", **other: object) -> Op:
    """A private slot."""
    return region2(slot, gpa, size, **{"flags": GUEST_MEMFD, "uaddr": 0, "gmem": gmem, "off": off, **other})  # type: ignore[arg-type]


def gmem(size: int = A_BYTES, name: str = "g", vm: str = "vm") -> Op:
    return {"op": "create_gmem", "vm": vm, "size": size, "as": name}


def _plain(version: str, set_: Callable[..., Op]) -> Iterator[Case]:
    """What both ioctls answer about ordinary slots."""

    def case(name: str, *ops: Op, varies: str = "") -> Case:
        return Case(f"slot/{version}/{name}", ops, varies)

    four = 4 * PAGE
    yield case("add_delete", set_(0, 0, A_BYTES), set_(0, 0, 0), set_(0, 0, 0), set_(0, 0, A_BYTES))
    yield case("delete_nonexistent", set_(5, 0, 0))
    yield case("zero_size_add", set_(0, PAGE, 0))
    yield case("delete_at_another_gpa", set_(0, 0, four), set_(0, 0x1234000, 0), set_(0, 0, 0))
    yield case("delete_elsewhere_in_memory", set_(0, 0, four), set_(0, 0, 0, 0, ("a", four)))
    yield case(
        "delete_is_checked_too",
        set_(0, 0, four),
        set_(0, 1, 0),
        set_(0, 0, 0, 0, ("a", 1)),
        set_(0, 0, 0, 8),
        set_(0, 1 << 51, 0),
    )
    yield case("delete_with_flags", set_(0, 0, four, LOG_DIRTY), set_(0, 0, 0, READONLY))
    yield case("delete_with_all_flags", set_(0, 0, four), set_(0, 0, 0, LOG_DIRTY | READONLY))
    yield case("delete_with_gmem_flag", set_(0, 0, four), set_(0, 0, 0, GUEST_MEMFD))

    yield case("unaligned_gpa", *(set_(0, gpa, PAGE) for gpa in (1, 0x800, 0xFFF)))
    yield case("unaligned_size", *(set_(0, 0, size) for size in (1, 0x800, 0xFFF, 0x1001)))
    yield case("unaligned_uaddr", *(set_(0, 0, PAGE, 0, ("a", off)) for off in (1, 0x800, 0xFFF)))
    yield case(
        "gpa_overflow",
        set_(0, 2**64 - PAGE, PAGE),
        set_(0, 2**64 - PAGE, 2 * PAGE),
        set_(0, 2**64 - 2 * PAGE, PAGE),
        set_(0, 1 << 63, PAGE),
    )
    for bit in (32, 36, 39, 44, 47, 48, 51, 52, 53):
        edge = 1 << bit
        yield case(
            f"gpa_bit{bit}",
            set_(0, edge, PAGE),
            set_(1, edge - PAGE, PAGE),
            set_(2, edge - 8 * PAGE, four),
            varies=WIDTH if 32 < bit <= 52 else "",
        )
    yield case("size_too_many_pages", *(set_(0, 0, size) for size in (1 << 43, (1 << 43) + PAGE, 1 << 60, 1 << 63)))
    yield case("apic_gpa", set_(0, 0xFEE00000, PAGE), set_(1, 0xFEC00000, PAGE))

    ids = (32763, 32764, 32765, 32766, 32767, 32768, 65535)
    yield case("slot_id_limit", *(set_(id_, at * PAGE, PAGE) for at, id_ in enumerate(ids)))
    yield case("slot_id_limit_delete", *(set_(id_, 0, 0) for id_ in ids))
    yield case("address_space", *(set_(space << 16, 0, PAGE) for space in (2, 3, 0x7FFF, 0xFFFF)))
    yield case("address_space_delete", *(set_(space << 16, 0, 0) for space in (1, 2, 0xFFFF)))

    yield case(
        "overlap",
        set_(0, 0, four),
        set_(1, 0, four),
        set_(1, 3 * PAGE, PAGE),
        set_(1, 3 * PAGE, four),
        set_(1, four, PAGE),
        set_(2, 2 * PAGE, PAGE),
    )
    yield case(
        "overlap_enclosing",
        set_(0, four, PAGE),
        set_(1, 0, A_BYTES),
        set_(1, 0, four),
        set_(2, 5 * PAGE, PAGE),
    )
    yield case("overlap_is_gone_with_its_slot", set_(0, 0, four), set_(0, 0, 0), set_(1, 0, four), set_(0, 0, four))
    yield case(
        "move",
        set_(0, 0, four),
        set_(0, 1 << 20, four),
        set_(1, 0, four),
        set_(0, 2 * PAGE, four),
        set_(0, 0, four),
        set_(0, four, four),
    )
    yield case("move_overlapping_self", set_(0, 0x10000, four), set_(0, 0x11000, four), set_(0, 0xF000, four))
    yield case("move_and_flags", set_(0, 0, four), set_(0, 1 << 20, four, LOG_DIRTY), set_(0, 0, four))
    yield case("resize", set_(0, 0, four), set_(0, 0, PAGE), set_(0, 0, A_BYTES), set_(0, 0, four))
    yield case(
        "other_memory",
        {"op": "anon", "as": "b"},
        set_(0, 0, four),
        set_(0, 0, four, 0, ("a", PAGE)),
        set_(0, 0, four, 0, ("b", 0)),
        set_(0, 1 << 20, four, 0, ("b", 0)),
        set_(0, 0, 0, 0, ("b", 0)),
        set_(0, 0, four, 0, ("b", 0)),
    )
    yield case("uaddr_shared_by_slots", set_(0, 0, four), set_(1, four, four))
    yield case("same_again", set_(0, 0, four), set_(0, 0, four))

    yield case("flags_dirty_toggle", *(set_(0, 0, four, flags) for flags in (0, 1, 0, 1)))
    yield case(
        "flags_readonly_change",
        set_(0, 0, four),
        set_(0, 0, four, READONLY),
        set_(0, 0, 0),
        set_(0, 0, four, READONLY),
        set_(0, 0, four),
        set_(0, 0, four, READONLY | LOG_DIRTY),
    )
    yield case("move_readonly_change", set_(0, 0, four), set_(0, 1 << 20, four, READONLY))
    for flags in (1, 2, 3, 5, 6, 7, 8, 0x10, 0x10000, 0x80000000, 0xFFFFFFFF):
        yield case(f"flag_{flags:#x}", set_(0, 0, four, flags))

    # Two things wrong at once: which is looked at first.
    wrong_first = (
        ("flags", {"flags": 8}),
        ("size", {"size": PAGE + 1}),
        ("gpa", {"gpa": 1}),
        ("uaddr", {"uaddr": ("a", 1)}),
        ("id", {"slot": 32764}),
        ("page_count", {"size": 1 << 43}),
    )
    for name, wrong in wrong_first:
        arguments: dict[str, object] = {"slot": 1, "gpa": 0, "size": four, **wrong}
        yield case(f"overlap_bad_{name}_first", set_(0, 0, four), set_(**arguments))
    yield case(
        "overlap_before_the_end_of_gpas",
        set_(0, (1 << 48) - PAGE, PAGE),
        set_(1, (1 << 48) - PAGE, four),
        varies=WIDTH,
    )
    yield case(
        "move_onto_another_with_readonly_change",
        set_(0, 0, four),
        set_(1, 1 << 20, four),
        set_(0, 1 << 20, four, READONLY),
    )
    yield case("move_onto_another_with_resize", set_(0, 0, four), set_(1, 1 << 20, four), set_(0, 1 << 20, PAGE))
    yield case(
        "move_onto_another_before_the_end_of_gpas",
        set_(0, 0, four),
        set_(1, (1 << 48) - PAGE, PAGE),
        set_(0, (1 << 48) - PAGE, four),
        set_(0, 0, four),
        varies=WIDTH,
    )
    yield case("move_past_the_end", set_(0, 0, four), set_(0, 1 << 53, four), set_(0, 0, four))
    yield case(
        "after_vcpu",
        set_(0, 0, four),
        {"op": "create_vcpu", "id": 1},
        set_(1, four, four),
        set_(0, 0, 0),
        set_(0, 1 << 20, four),
    )

    # Addresses of a real process.
    yield case("uaddr_unmapped", set_(0, 0, PAGE, 0, 0x10000000))
    yield case("uaddr_kernel", set_(0, 0, PAGE, 0, 0xFFFF_8000_0000_0000), set_(0, 0, PAGE, 0, 2**64 - PAGE))


def _private() -> Iterator[Case]:
    """Slots with a guest_memfd."""

    def case(name: str, *ops: Op, varies: str = "") -> Case:
        return Case(f"gslot/{name}", ops, varies)

    four, far = 4 * PAGE, 1 << 20
    delete = region2(0, 0, 0)
    yield case("add_delete", gmem(), bind(0, 0, A_BYTES), delete, delete, bind(0, 0, A_BYTES))
    yield case("delete_v2_with_flag", gmem(), bind(0, 0, four), bind(0, 0, 0), bind(0, 0, four))
    yield case("delete_with_a_flag_it_never_had", gmem(), bind(0, 0, four), region2(0, 0, 0, LOG_DIRTY))
    yield case("delete_v1", gmem(), bind(0, 0, four), region(0, 0, 0), region(0, 0, 0))
    yield case("delete_v2_flag_bad_off", gmem(), bind(0, 0, four), bind(0, 0, 0, 1), bind(0, 0, 0, 1 << 40))
    yield case("delete_without_flag_bad_off", gmem(), bind(0, 0, four), region2(0, 0, 0, off=1))
    yield case("delete_by_bad_fd", gmem(), bind(0, 0, four), bind(0, 0, 0, gmem=NO_FD))
    yield case("delete_nonexistent", gmem(), bind(5, 0, 0))

    yield case("unaligned_gpa", gmem(), bind(0, 1, PAGE), bind(0, 0x800, PAGE))
    yield case("unaligned_size", gmem(), bind(0, 0, 1), bind(0, 0, PAGE + 1))
    yield case("unaligned_off", gmem(), *(bind(0, 0, PAGE, off) for off in (1, 0x800, 0xFFF)))
    yield case("unaligned_uaddr", gmem(), bind(0, 0, PAGE, uaddr=("a", 1)))
    yield case("off_wraps", gmem(), bind(0, 0, PAGE, 2**64 - PAGE), bind(0, 0, four, 2**64 - PAGE))
    yield case(
        "off_beyond",
        gmem(),
        bind(0, 0, PAGE, A_BYTES),
        bind(0, 0, PAGE, 2 * A_BYTES),
        bind(0, 0, A_BYTES + PAGE),
        bind(0, 0, 2 * PAGE, A_BYTES - PAGE),
        bind(0, 0, PAGE, A_BYTES - PAGE),
    )
    yield case("page_count_limit", gmem(), bind(0, 0, 1 << 43), bind(0, 0, 1 << 63))
    yield case("big_slot_16g", gmem(1 << 34), bind(0, 0, 1 << 34), delete)

    yield case("fd_bad", bind(0, 0, four, gmem=NO_FD))
    yield case("fd_closed", gmem(), {"op": "close", "of": "g"}, bind(0, 0, four))
    yield case("fd_not_gmem", {"op": "plain_file", "as": "f"}, bind(0, 0, four, gmem="f"))
    yield case(
        "another_vms",
        {"op": "create_vm", "as": "other"},
        gmem(vm="other"),
        bind(0, 0, four, vm="other"),
        bind(0, 0, four),
        bind(0, 0, four, four),
    )

    yield case("overlap_gpa", gmem(), bind(0, 0, four), bind(1, 3 * PAGE, four, four), bind(1, four, four, four))
    yield case("overlap_gpa_and_file", gmem(), bind(0, 0, four), bind(1, 0, four))
    yield case("overlap_gpa_bad_fd", gmem(), bind(0, 0, four), bind(1, 0, four, gmem=NO_FD))
    yield case(
        "overlap_gpa_not_gmem", gmem(), {"op": "plain_file", "as": "f"}, bind(0, 0, four), bind(1, 0, four, 0, "f")
    )
    yield case("overlap_gpa_past_eof", gmem(), bind(0, 0, four), bind(1, 0, four, A_BYTES))
    yield case("overlap_gpa_bad_off_first", gmem(), bind(0, 0, four), bind(1, 0, four, 1))
    yield case(
        "overlap_gpa_before_the_end_of_gpas",
        gmem(),
        bind(0, (1 << 48) - PAGE, PAGE),
        bind(1, (1 << 48) - PAGE, four, four),
        varies=WIDTH,
    )
    yield case("overlap_gpa_vs_plain", gmem(), region(0, 0, four), bind(1, 0, four))
    yield case("overlap_plain_vs_gpa", gmem(), bind(1, 0, four), region(0, 0, four))
    yield case("fd_bad_before_the_end_of_gpas", bind(0, 1 << 53, four, gmem=NO_FD))
    yield case("off_bad_before_fd_bad", bind(0, 0, four, 1, NO_FD))
    yield case("fd_bad_before_past_eof", gmem(), bind(0, 0, four, 1 << 40, NO_FD))
    yield case("failed_gpa_leaves_no_binding", gmem(), bind(0, 1 << 53, four), bind(0, 0, four))

    yield case("overlap_file_exact", gmem(), bind(0, 0, four), bind(1, far, four), varies=KERNEL)
    yield case("overlap_file_partial", gmem(), bind(0, 0, four), bind(1, far, four, 3 * PAGE), varies=KERNEL)
    yield case(
        "overlap_file_via_dup",
        gmem(),
        {"op": "dup", "of": "g", "as": "d"},
        bind(0, 0, four),
        bind(1, far, four, 0, "d"),
        bind(2, far, four, four, "d"),
        varies=KERNEL,
    )
    yield case("adjacent_in_file", gmem(), bind(0, 0, four), bind(1, far, four, four), bind(2, four, four, 2 * four))
    yield case(
        "reversed_ranges",
        gmem(),
        bind(0, 0, four, 3 * four),
        bind(1, four, four, 2 * four),
        bind(2, 2 * four, 2 * four, 0),
    )
    yield case("readd_at_another_gpa", gmem(), bind(0, 0, four), delete, bind(0, far, four))
    yield case("readd_other_part", gmem(), bind(0, 0, four), delete, bind(0, far, four, four), bind(1, 0, four))

    yield case("move", gmem(), bind(0, 0, four), bind(0, far, four))
    yield case("move_onto_another", gmem(), bind(0, 0, four), bind(1, far, four, four), bind(0, far, four))
    yield case("same_again", gmem(), bind(0, 0, four), bind(0, 0, four))
    yield case("resize", gmem(), bind(0, 0, four), bind(0, 0, PAGE), bind(0, 0, A_BYTES))
    yield case("other_off", gmem(), bind(0, 0, four), bind(0, 0, four, four))
    for flags in (5, 6, 7, 12, 0x80000004):
        yield case(f"flags_{flags:#x}", gmem(), bind(0, 0, four, flags=flags))
    yield case("flags_bad_before_overlap", gmem(), bind(0, 0, four), bind(1, 0, four, flags=5))
    yield case(
        "flags_later", gmem(), bind(0, 0, four), *(bind(0, 0, four, flags=flags) for flags in (5, 1, 2, 0)), delete
    )
    yield case("plain_becomes_private", gmem(), region2(0, 0, four), bind(0, 0, four, uaddr=("a", 0)))
    yield case("v1_changes_private", gmem(), bind(0, 0, four), region(0, 0, four), region(0, 0, four, LOG_DIRTY))

    yield case(
        "slot_id_limit",
        gmem(),
        bind(32763, 0, PAGE),
        bind(32764, PAGE, PAGE, PAGE),
        bind(65535, PAGE, PAGE, PAGE),
    )
    yield case("address_space", gmem(), bind(1 << 16, 0, PAGE), varies=SPACES)
    yield case("address_space_beyond", gmem(), bind(2 << 16, 0, PAGE), bind(0xFFFF << 16, 0, PAGE))
    yield case("gpa_bit47", gmem(), bind(0, 1 << 47, PAGE), bind(1, (1 << 47) - PAGE, PAGE, PAGE), varies=WIDTH)
    yield case("gpa_bit48", gmem(), bind(0, 1 << 48, PAGE), bind(1, (1 << 48) - PAGE, PAGE, PAGE), varies=WIDTH)
    yield case("gpa_bit52", gmem(), bind(0, 1 << 52, PAGE))
    yield case("after_vcpu", gmem(), {"op": "create_vcpu", "id": 1}, bind(0, 0, A_BYTES), delete)
    yield case("close_fd_bound", gmem(), bind(0, 0, four), {"op": "close", "of": "g"}, delete, delete)
    yield case(
        "close_fd_bound_new_gmem_same_gpa",
        gmem(),
        bind(0, 0, four),
        {"op": "close", "of": "g"},
        gmem(name="g2"),
        bind(1, 0, four, 0, "g2"),
        delete,
        bind(1, 0, four, 0, "g2"),
    )


def _mixed() -> Iterator[Case]:
    yield Case(
        "slot/mixed_v1_v2",
        (
            region(0, 0, 4 * PAGE),
            region2(0, 0, 4 * PAGE, LOG_DIRTY),
            region(0, 0, 0),
            region2(0, 0, 0),
            region2(1, 0, 4 * PAGE),
            region(1, 0, 0),
        ),
    )
    yield Case("slot/v2/gmem_is_ignored_without_its_flag", (region2(2, 0, PAGE, gmem=NO_FD, off=0x7B),))


CASES: tuple[Case, ...] = (*_plain("v1", region), *_plain("v2", region2), *_mixed(), *_private())
