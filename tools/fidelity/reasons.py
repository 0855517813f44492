"""Where a guest_memfd on a mount answers otherwise than the kernel's, and why: the one list of it.

A reason is for a kind of answer, not for a case: whatever is recorded later is held to it, too. What no reason explains
is a fault.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .outcomes import Outcome, same

Matches = Callable[["Difference"], bool]

_F_SETFL, _F_SETLEASE, _O_DIRECT = 4, 1024, 0o40000
_FIONREAD, _FIBMAP = 0x541B, 1
_MAP_PRIVATE, _MAP_TYPE = 2, 0xF


@dataclass(frozen=True)
class Difference:
    """One op, the at-th of its case: what the kernel answered, and what we did. before: the ops
    before it."""

    case: str
    at: int
    op: str
    args: dict[str, Any]
    kvm: Outcome
    ours: Outcome
    before: tuple[dict[str, Any], ...] = ()

    def is_flag_set(self, key: str, bit: int) -> bool:
        return bool(self.args.get(key, 0) & bit)


@dataclass(frozen=True)
class Reason:
    """title: a line; why: who decides it, and what can be relied on all the same."""

    title: str
    why: str
    matches: Matches


def _only(*keys: str) -> Matches:
    """Nothing but these fields of the result differs."""

    def matches(found: Difference) -> bool:
        recorded, ours = found.kvm.get("result"), found.ours.get("result")
        if not isinstance(recorded, dict) or not isinstance(ours, dict):
            return False
        rest = recorded.keys() - set(keys)
        return rest <= ours.keys() and all(same(recorded[key], ours[key]) for key in rest)

    return matches


def _of(op: str, matches: Matches) -> Matches:
    return lambda found: found.op == op and matches(found)


def _spliced(found: Difference) -> bool:
    """The kernel's page cache was read by a splice(2) before."""
    return any(op["op"] in ("splice", "sendfile") for op in found.before)


def _is_private_mapping(found: Difference) -> bool:
    return found.op == "mmap" and found.args["flags"] & _MAP_TYPE == _MAP_PRIVATE and found.ours == {"result": "map"}


def _reaches_private_mapping(found: Difference) -> bool:
    """The kernel's has no such mapping, and so skipped what ours answers."""
    made = [op for op in found.before if op["op"] == "mmap" and op.get("as") == found.args.get("m")]
    return "skipped" in found.kvm and any(op["args"]["flags"] & _MAP_TYPE == _MAP_PRIVATE for op in made)


_GPA_END = 1 << 48
_OFFSET_END = 1 << 62
_MAX_VCPUS = 256
_SLOTS = ("set_region", "set_region2")


def _set(found: Difference, matches: Callable[[dict[str, Any]], bool]) -> bool:
    """This op, or one of its case before it, sets such a slot."""
    asked = [op["args"] for op in found.before if op["op"] in _SLOTS]
    return any(matches(args) for args in (*asked, *([found.args] if found.op in _SLOTS else [])))


def _has_decoy(found: Difference) -> bool:
    """A slot's userspace_addr is other memory than its guest_memfd."""
    files = {op.get("as"): op["args"]["fd"] for op in found.before if op["op"] == "mmap"}

    def is_other(args: dict[str, Any]) -> bool:
        named = args["uaddr"]
        return bool(args["flags"] & 4) and isinstance(named, list) and files.get(named[0]) != args.get("gmem")

    return found.op in ("guest", "mem_read", "cachestat") and _set(found, is_other)


_FRONT = "The kernel in front of a FUSE server decides this, and does not ask."

REASONS: tuple[Reason, ...] = (
    Reason(
        "st_blocks is truthful, and a file without a name has no link",
        "The kernel's guest_memfd always says 0 blocks and 1 link. Here `st_blocks` counts the pages that are "
        "allocated, and `create_guest_memfd()` returns a file whose name is gone: with a link count of 1 the kernel "
        "would keep its inode after the last close.",
        _of("fstat", _only("blocks", "nlink")),
    ),
    Reason(
        "The file system is FUSE's",
        "statfs(2) and statx(2) are about the mount: its type, the size of its pool, and attributes that a "
        "FUSE mount supports.",
        lambda found: (
            found.op in ("fstatfs", "statx") and _only("f_type", "blocks", "bfree", "attributes_mask", "mask")(found)
        ),
    ),
    Reason(
        "A file has a path",
        "The kernel's is anon_inode:[kvm-gmem]; here it is a file that was made on the mount and unlinked.",
        lambda found: found.op == "readlink" or (found.op == "proc_map_name" and _only("path")(found)),
    ),
    Reason(
        "MAP_PRIVATE exists",
        f"{_FRONT} A private mapping shows shared pages, copied when it is written; private pages are SIGBUS "
        "in it, and so is "
        "all of a file without the flag mmap. (This is case A6 of the selftests.)",
        lambda found: _is_private_mapping(found) or _reaches_private_mapping(found),
    ),
    Reason(
        "The times of a store through a mapping",
        f"{_FRONT} guest_memfd's mtime and ctime are those of the write fault. Here they are those of the write-back, "
        "which comes with the conversion of the page, or when the kernel chooses.",
        lambda found: (
            found.op == "times_changed"
            and _only("mtime", "ctime")(found)
            and found.ours.get("result", {}).get("mtime") is False
            and any(op["op"] == "mem_write" for op in found.before)
        ),
    ),
    Reason(
        "read(2) and write(2) of no bytes",
        f"{_FRONT} Of any bytes they are EINVAL.",
        lambda found: (
            found.op in ("read", "write", "readv", "writev")
            and found.kvm == {"errno": "EINVAL"}
            and not found.args.get("n")
            and not found.args.get("data")
            and found.ours in ({"result": 0}, {"result": ""})
        ),
    ),
    Reason(
        "splice(2) reads shared pages",
        f"{_FRONT} It goes to the page cache: pages that the host may map can be spliced, private ones are "
        "EIO. What was read so "
        "is allocated.",
        lambda found: (
            (found.op in ("splice", "sendfile") and found.kvm == {"errno": "EINVAL"})
            or (found.op == "cachestat" and _spliced(found))
        ),
    ),
    Reason(
        "mlock(2) of private pages does not end",
        f"{_FRONT} To populate a mapping it gives mmap_lock up while it reads, and a fault that has done so is tried "
        "again whatever was read: filemap_fault() minds the error of a second try only, and populating never makes "
        "one. So no errno would end it. Nor do mlockall(2) and MAP_POPULATE end, until a signal kills the process, as "
        "on any file system that cannot read. mlock2(MLOCK_ONFAULT) is the way out, and madvise(MADV_POPULATE_WRITE), "
        "which fails (EFAULT). The tool does not try.",
        lambda found: found.ours == {"hangs": True},
    ),
    Reason(
        "Long-term pins are refused",
        f"{_FRONT} io_uring cannot register a writable mapping of a file whose dirty pages are tracked (EFAULT).",
        lambda found: (
            (found.op == "iouring_register" and found.ours == {"errno": "EFAULT"})
            or (found.op == "cachestat" and any(op["op"] == "iouring_register" for op in found.before))
        ),
    ),
    Reason(
        "An allocation may be done before a signal comes",
        "It only grants frames; memory comes with the first touch. One that waits for room is interrupted by "
        "SIGKILL alone.",
        lambda found: found.op == "fallocate_interrupted" and found.ours == {"result": {"err": None, "partial": False}},
    ),
    Reason(
        "F_SETFL O_DIRECT",
        f"{_FRONT} There is no read(2) that it could change.",
        lambda found: found.op == "fcntl" and found.args["cmd"] == _F_SETFL and found.is_flag_set("arg", _O_DIRECT),
    ),
    Reason(
        "Leases",
        f"{_FRONT} A lease to read is refused while the file is open for writing, as on any file; a "
        "guest_memfd's inode is not "
        "counted there.",
        lambda found: found.op == "fcntl" and found.args["cmd"] == _F_SETLEASE,
    ),
    Reason(
        "epoll",
        f"{_FRONT} It lets every file of a FUSE mount be polled; poll(2) answers the same.",
        lambda found: found.op == "epoll_add" and found.ours == {"result": None},
    ),
    Reason(
        "FIONREAD, FIBMAP and readahead(2)",
        f"{_FRONT} They are for regular files with a page cache. Nothing is read ahead on such a mount.",
        lambda found: (
            (found.op == "ioctl_int" and found.args["req"] in (_FIONREAD, _FIBMAP)) or found.op == "readahead"
        ),
    ),
    Reason(
        "Allocated is not cached",
        "mincore(2), and move_pages(2) without nodes, look at the page cache of the mounted file. A page "
        "that fallocate(2) or the "
        "guest allocated is there only once the host has touched it.",
        lambda found: found.op in ("mincore", "move_pages"),
    ),
    Reason(
        "MADV_HUGEPAGE reads ahead",
        "It makes the kernel read many pages at once; those that were not touched have no frame, and read as "
        "zeros, until they are "
        "stored to.",
        lambda found: (
            found.op == "cachestat"
            and any(op["op"] == "madvise" and op["args"]["advice"] in (14, 3) for op in found.before)
        ),
    ),
)

SLOT_REASONS: tuple[Reason, ...] = (
    Reason(
        "Guest physical addresses end at 2^48",
        "The EPT has four levels. A real KVM's addresses end where the CPU's do (2^52 on the recorded machine); the "
        "check is made where KVM makes it, last.",
        lambda found: _set(found, lambda args: args["gpa"] + args["size"] > _GPA_END),
    ),
    Reason(
        "Pages of a file end at 2^62",
        "The kernel binds a slot there. One whose end wraps past 2^63 is bound here, too, by gmem-6.18, but what it "
        "shows is not the file's: the kernel makes pages past its end, which punches and cachestat(2) reach.",
        lambda found: _set(found, lambda args: args.get("off", 0) >= _OFFSET_END),
    ),
    Reason(
        "vCPUs are numbered below 256",
        "A real KVM takes ids up to KVM_CAP_MAX_VCPU_ID.",
        lambda found: found.op == "create_vcpu" and found.args.get("id", 0) >= _MAX_VCPUS and "result" in found.kvm,
    ),
    Reason(
        "Faults ahead read the guest_memfd",
        "Where userspace_addr is other memory than the guest_memfd, a real KVM maps pages beside the faulting one from "
        "userspace_addr (prefetch), and later accesses reach them there. It looks like a defect, and is not copied: "
        "every page is the guest_memfd's.",
        _has_decoy,
    ),
    Reason(
        "A guest's access is made by its physical address",
        "The recorded guest has its own page tables and code, which KVM reaches by userspace_addr; accesses here "
        "need neither, and a program of the guest is not run.",
        lambda found: "page_tables" in found.case or any(op["op"] == "guest_start" for op in found.before),
    ),
)
"""Of slots and of what a guest finds in them."""
REASONS += SLOT_REASONS

UNASKED: tuple[tuple[str, str], ...] = (
    (
        "Elevated reference counts (F8)",
        "Linux answers EAGAIN when a page that is to become private is pinned. A FUSE server cannot know of "
        "pins: vmsplice(2) "
        "and direct I/O hold pages of the kernel's page cache, and invalidating them succeeds. The pin keeps the old "
        "page with its old bytes; what the guest stores from then on is in another one, and never gets "
        "there. EAGAIN, with "
        "error_offset, comes for what is known: another invalidation of the file that does not end in time. "
        "A guest access "
        "under way is waited for: KVM acknowledges when its vCPUs have left the range. "
        "[Decision 62](decisions/0062-pins-of-shared-pages.md) has what was tried.",
    ),
    (
        "A write(2) that is refused",
        "On a file with the flag mmap the kernel copies the bytes into cached pages from position 0 on "
        "before it asks the server, "
        "which refuses (EINVAL). Shared pages that are in the cache then show those bytes until they are read again.",
    ),
)


def reason_for(found: Difference) -> Reason | None:
    return next((reason for reason in REASONS if reason.matches(found)), None)
