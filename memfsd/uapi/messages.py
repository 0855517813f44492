"""Wire messages: kinds, operations, bodies and their bounds.

Two channels join a file and its VM. On the *down* channel kvmsim asks and memfsd answers; on the *up*
channel memfsd calls back and kvmsim acknowledges. Every request has exactly one reply with the same id;
a reply with an errno carries `Failure`. Ranges are half-open and count 4 KiB pages.
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from memfsd.uapi.units import PGOFF_END

from .abi import THREAD
from .limits import (
    MAX_FILES_PER_LIST,
    MAX_FINDINGS,
    MAX_GFN,
    MAX_LINE_CHARS,
    MAX_MOVE_PAGES,
    MAX_NAME_BYTES,
    MAX_RUN_PAGES,
    MAX_RUNS_PER_REPORT,
    MAX_SLOTS,
    MAX_SWAP_PAGES,
    NAME_MAX,
    SWAP_BLOB_BYTES,
)
from .proof import ID_BYTES, NONCE_BYTES, PROOF_BYTES, SECRET_BYTES

PROTOCOL_VERSION = 5


class Kind(IntEnum):
    """The request's kind; a reply carries the kind of its request with REPLY set."""

    HELLO = 1
    PAIR = 2
    BIND = 3
    UNBIND = 4
    GET_PFN = 5
    STAT = 6
    PING = 7
    BYE = 8
    ATTRIBUTES = 9
    CHECK = 16
    MAP = 17
    LIST = 18
    KCORE = 19
    MEMORY_FAILURE = 20
    DEVICE_ADD = 21
    DEVICE_REMOVE = 22
    PAGE_OUT = 24
    SWAP_OFF = 25
    SET_NODE = 26
    COMPACT = 27
    INVALIDATE_BEGIN = 32
    INVALIDATE_END = 33
    MOVE = 34
    SWAP_OUT = 35
    SWAP_IN = 36
    POISON = 37
    REVOKE = 38
    REPORT = 39
    PAGE_MAP = 48


def operation_name(kind: Kind) -> str:
    """As commands have it: swap-out."""
    return kind.name.lower().replace("_", "-")


def operation_named(name: str, operations: Iterable[Kind]) -> Kind | None:
    """Of these operations the one that operation_name() calls so."""
    return next((kind for kind in operations if operation_name(kind) == name), None)


REPLY = 0x8000

RESERVED_KINDS = frozenset({Kind.POISON})
"""Named in the operation tables, not implemented yet: never sent, refused with EOPNOTSUPP."""

STORE_OPERATIONS = frozenset(
    {
        *(Kind.PAIR, Kind.BIND, Kind.UNBIND, Kind.GET_PFN, Kind.STAT, Kind.PING, Kind.BYE),
        *(Kind.PAGE_MAP, Kind.ATTRIBUTES),
    }
)
"""What memfsd implements on the down channel: its half of the "function pointers"."""
KVM_OPERATIONS = frozenset(
    {
        *(Kind.INVALIDATE_BEGIN, Kind.INVALIDATE_END, Kind.MOVE, Kind.SWAP_OUT, Kind.SWAP_IN, Kind.REVOKE),
        *(Kind.REPORT, Kind.PAGE_MAP),
    }
)
"""What kvmsim implements on the up channel, and that it reads page maps."""
WITHOUT_MESSAGE = frozenset({Kind.PAGE_MAP})
"""Operations that both sides name when they have them, and that no message asks for: uapi.page_map."""
REQUIRED_KVM_OPERATIONS = frozenset({Kind.INVALIDATE_BEGIN, Kind.INVALIDATE_END})
"""Without these a store can never take memory back: PAIR is refused with EOPNOTSUPP."""
OPTIONAL_STORE_OPERATIONS = frozenset({Kind.PAGE_MAP})
"""What a store may lack: then a VM does without."""
OPTIONAL_KVM_OPERATIONS = KVM_OPERATIONS - REQUIRED_KVM_OPERATIONS
"""What a KVM may lack, as HELLO says: then the store does without."""


class Role(IntEnum):
    """What a client of the down channel is."""

    GUEST = 0
    OBSERVER = 1
    """A tool that asks the store about itself (memfs check, memfs map); it cannot pair."""


class Reason(IntEnum):
    """Why an invalidation happens."""

    PUNCH = 0
    TRUNCATE = 1
    RECLAIM = 2
    """Take back granted pages that the guest never touched; touched ones are kept and named."""
    MOVE = 3
    SWAP_OUT = 4
    """The pages may be asked for by SWAP_OUT while the bracket is open; what KVM cannot give is kept."""
    POISON = 5
    """The frames failed: whoever touches the pages again gets EHWPOISON."""
    REVOKE = 6
    """A device is removed: nothing comes back to these pages."""
    EVICT = 7
    """As SWAP_OUT, of pages that no vCPU has used since the last time; those that are used are kept, and it is
    forgotten that they were."""
    CONVERT = 8
    """The pages of a guest_memfd become private, or shared, where they are."""


class MemoryType(IntEnum):
    """How a window is to be mapped: the memory types of the hardware's page tables."""

    UC = 0
    WB = 6


U16 = Annotated[int, Meta(ge=0, lt=1 << 16)]
Flag = Annotated[int, Meta(ge=0, le=1)]
U32 = Annotated[int, Meta(ge=0, lt=1 << 32)]
U63 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
PfnField = Annotated[int, Meta(ge=0, lt=1 << 32)]
GfnField = Annotated[int, Meta(ge=0, lt=MAX_GFN)]
PgoffField = Annotated[int, Meta(ge=0, lt=PGOFF_END)]
NodeOrNone = Annotated[int, Meta(ge=-1, lt=1 << 16)]
GfnOrNone = Annotated[int, Meta(ge=-1, lt=MAX_GFN)]
PgoffOrNone = Annotated[int, Meta(ge=-1, lt=PGOFF_END)]
PfnOrNone = Annotated[int, Meta(ge=-1, lt=1 << 32)]
PageCount = Annotated[int, Meta(ge=1, lt=PGOFF_END)]
RunLength = Annotated[int, Meta(ge=1, le=MAX_RUN_PAGES)]
Slot = Annotated[int, Meta(ge=0, lt=MAX_SLOTS)]
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_BYTES)]
Text = Annotated[str, Meta(max_length=4096)]
Line = Annotated[str, Meta(max_length=MAX_LINE_CHARS)]
FileName = Annotated[bytes, Meta(min_length=0, max_length=NAME_MAX)]
Word = Annotated[str, Meta(max_length=16)]
TokenId = Annotated[bytes, Meta(min_length=0, max_length=ID_BYTES)]
Nonce = Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
Proof = Annotated[bytes, Meta(min_length=PROOF_BYTES, max_length=PROOF_BYTES)]
ProofOrNone = Annotated[bytes, Meta(min_length=0, max_length=PROOF_BYTES)]
Blobs = Annotated[
    list[Annotated[bytes, Meta(min_length=SWAP_BLOB_BYTES, max_length=SWAP_BLOB_BYTES)]],
    Meta(min_length=1, max_length=MAX_SWAP_PAGES),
]
Secret = Annotated[bytes, Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
Operations = Annotated[list[U16], Meta(max_length=64)]
PageRange = tuple[PgoffField, PgoffField]
Ranges = Annotated[list[PageRange], Meta(max_length=MAX_RUNS_PER_REPORT)]
Moves = Annotated[list[tuple[PgoffField, PfnField, PfnField, RunLength]], Meta(max_length=MAX_MOVE_PAGES)]
Moved = Annotated[list[PageRange], Meta(max_length=MAX_MOVE_PAGES)]


class Body(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of all bodies: a msgpack array of the fields in order."""


class Empty(Body):
    """No fields."""


class Failure(Body):
    """Reply to a refused request; the errno is in the header."""

    reason: Text


class Hello(Body):
    """First message of a connection: version, role and the operations kvmsim implements.

    token: the id of the token that a guest read with fgetxattr from the fd of a sealed file, 16 bytes; an observer has
    none. nonce: 16 bytes that kvmsim uses once. abi: the name of the VM's ABI (uapi/abi.py), which must be the mount's
    (EINVAL); an observer's is not looked at.
    """

    version: U32
    role: Role
    vm: Name
    operations: Operations
    token: TokenId
    nonce: Nonce
    abi: Word = THREAD.name


class HelloReply(Body):
    """The store's version and operations, and its proof that it made the token.

    proof: HMAC-SHA-256 with the token's key of "memfsd store", the token's id, kvmsim's nonce and this one; empty for
    an observer, which has no token. abi: the name of the mount's ABI.
    """

    version: U32
    operations: Operations
    nonce: Nonce
    proof: ProofOrNone
    abi: Word = THREAD.name


class Pair(Body):
    """Prove possession of the fd: the HMAC of HELLO's answer, with "memfsd kvm" instead of "memfsd store".

    secret: 16 bytes that the VM makes once. After BYE the process that said them may pair with the file again by saying
    them again.
    """

    proof: Proof
    secret: Secret


class PairReply(Body):
    """Carries two fds: the window (a sparse memfd, frame N at N * 4096) and the up channel; and a third if there is a
    page map.

    window_frames: size of the window. Frames are named by their place in it: for memory of the pool, its frame numbers.
    punch_order: of the smallest part of the file that can be given back: `order` unless the mount splits pages. flags:
    of KVM_CREATE_GUEST_MEMFD, 0 for a file that was sealed.
    map_pages: pages of the file that the page map has entries for, from the first on; 0: there is none.
    """

    ino: U63
    size_bytes: U63
    order: U16
    seq: U63
    window_frames: U63
    memory_type: MemoryType
    punch_order: U16
    map_pages: U63
    flags: U32


class Bind(Body):
    """Bind page_count pages of the file from pgoff to the GFNs from gfn, for a memslot."""

    slot: Slot
    gfn: GfnField
    pgoff: PgoffField
    page_count: PageCount


class Unbind(Body):
    """End the binding of these pages: kvmsim has zapped and flushed them already."""

    pgoff: PgoffField
    page_count: PageCount


class GetPfn(Body):
    """Ask for the frame of one bound page; up to max_pages contiguous ones may be granted.

    order: of the leaf that they are for, and that begins there. ENOENT where a large page is split: ask without.
    """

    pgoff: PgoffField
    max_pages: RunLength
    order: U16


class GetPfnReply(Body):
    """A run: page_count pages from the asked one live in the frames from pfn.

    order is that of the large page that the first frame is in, 0 where that is split; seq is the file's invalidation
    sequence number when the grant was made.
    """

    pfn: PfnField
    page_count: RunLength
    order: U16
    seq: U63


class Attributes(Body):
    """Whether this page of a guest_memfd is private: where attributes are the file's, a fault asks before GET_PFN."""

    pgoff: PgoffField


class AttributesReply(Body):
    """And so are page_count pages from it on. EINVAL for a file that was sealed."""

    private: Flag
    page_count: PageCount


class StatReply(Body):
    """The store's view of the pairing: size, frames held, granted-but-untouched, sequence."""

    size_bytes: U63
    frames: U63
    pending: U63
    seq: U63


class CheckReply(Body):
    """memfs check: broken rules (rule id, what was found), and how much was looked at."""

    findings: Annotated[list[tuple[Word, Line]], Meta(max_length=MAX_FINDINGS)]
    file_count: U63
    pairing_count: U63
    frame_count: U63


class Map(Body):
    """memfs map: page runs of one file from pgoff on."""

    ino: U63
    pgoff: PgoffField


class MapReply(Body):
    """Runs (pgoff, pfn, pages, gfn or -1, state, NUMA node, order of whole pages), and where to go on (-1: done).

    Pages that are absent for a reason have no frame: pfn and node -1, and the state SWAPPED (256) or POISONED.
    """

    runs: Annotated[
        list[tuple[PgoffField, PfnOrNone, PageCount, GfnOrNone, U16, NodeOrNone, U16]],
        Meta(max_length=MAX_RUNS_PER_REPORT),
    ]
    next_pgoff: PgoffOrNone


class FileReport(Body):
    """One sealed file: counts of pages are frames held, the rest are totals since it was sealed.

    populated: pages of its window for which the kernel has memory. punched: pages that punches have taken out of it.
    leaked: frames of its window that could not be erased.
    """

    ino: U63
    name: FileName
    owner: Line
    size_bytes: U63
    frames: U63
    pending: U63
    quarantined: U63
    populated: U63
    punched: U63
    leaked: U63
    swapped: U63
    grants: U63
    invalidations: U63
    splits: U63
    merges: U63


class ListReply(Body):
    """memfs top: the pool's frames by state, pages in the swap file, and the sealed files, those of VMs first (at most
    MAX_FILES_PER_LIST)."""

    states: Annotated[dict[Word, U63], Meta(max_length=16)]
    swap_used: U63
    swap_total: U63
    files: Annotated[list[FileReport], Meta(max_length=MAX_FILES_PER_LIST)]
    file_count: U63


class Kcore(Body):
    """memfs kcore: the states of the pool's frames from pfn on. 0 begins a dump: all later parts are of that moment."""

    pfn: PfnField


class KcoreReply(Body):
    """Runs (pfn, frames, state) without a gap, and where to go on (-1: done).

    The first part carries an fd, open for reading only: the memory of ordinary files, frame N at N * 4096. It is live.
    """

    pool_frames: U63
    runs: Annotated[list[tuple[PfnField, PageCount, U16]], Meta(max_length=MAX_RUNS_PER_REPORT)]
    next_pfn: PfnOrNone


class MemoryFailure(Body):
    """memfs poison: the frame of this page of a file fails, as the kernel's memory_failure()."""

    ino: U63
    pgoff: PgoffField


class MemoryFailureReply(Body):
    """The frames that are out of service: more than one in a file of large pages."""

    pfn: PfnField
    page_count: PageCount


class DeviceFile(Body):
    """memfs device: a new sealed file that has a size becomes a device; or a device is revoked, and dead."""

    ino: U63


class SetNode(Body):
    """memfs offline and online: a NUMA node gives no more frames, and pages leave it; or it gives frames again."""

    node: U16
    online: Flag


class SetNodeReply(Body):
    """Pages that have moved, frames of the node that are in use, by state, and whether another step may move more."""

    page_count: U63
    states: Annotated[dict[Word, U63], Meta(max_length=16)]
    goes_on: Flag


class CompactReply(Body):
    """Pages that have moved; free blocks of 2 MiB and of 1 GiB, before and after; whether another step may do more."""

    page_count: U63
    blocks_2m_before: U63
    blocks_1g_before: U63
    blocks_2m_after: U63
    blocks_1g_after: U63
    goes_on: Flag


class InvalidateBegin(Body):
    """Take file pages [start, end) out of every EPT and TLB and get every vCPU out once.

    ENOMEM, and nothing was done, when that takes splitting the leaf of a large page, and there is no room for tables.
    """

    start: PgoffField
    end: PgoffField
    seq: U63
    reason: Reason


class InvalidateBeginReply(Body):
    """The acknowledgement. kept: with RECLAIM, sub-ranges that the guest has touched."""

    kept: Ranges


class Move(Body):
    """Move pages to other frames. It opens a bracket on file pages [start, end), as INVALIDATE_BEGIN does.

    moves: (first page, its frame, the frame that it moves to, pages), in the order of pages, within the range. Every
    vCPU has left the guest once the pages are blocked; then KVM copies, and answers. What it showed it shows again at
    INVALIDATE_END, in the new frames. A KVM that refuses has done nothing, and no bracket is open.
    """

    start: PgoffField
    end: PgoffField
    seq: U63
    moves: Moves


class MoveReply(Body):
    """The acknowledgement. kept: ranges that stay in their old frames, since they could not be copied."""

    kept: Moved


class InvalidateEnd(Body):
    """Closes the bracket of the same range; seq is the file's new sequence number."""

    start: PgoffField
    end: PgoffField
    seq: U63


class SwapOut(Body):
    """Within a bracket of reason SWAP_OUT or EVICT: give these pages, each in its frame, which is empty then."""

    pages: Annotated[list[tuple[PgoffField, PfnField]], Meta(min_length=1, max_length=MAX_SWAP_PAGES)]


class SwapOutReply(Body):
    """A blob for each page, in order: what it is made of is KVM's affair. An empty one: the page stays where it is, or
    is among the holes: nobody has written it, and it reads as zeros in any frame."""

    blobs: Annotated[
        list[Annotated[bytes, Meta(min_length=0, max_length=SWAP_BLOB_BYTES)]], Meta(max_length=MAX_SWAP_PAGES)
    ]
    holes: Annotated[list[PgoffField], Meta(max_length=MAX_SWAP_PAGES)]


class SwapIn(Body):
    """The pages from pgoff on come back: decrypt their blobs into the frames from pfn on. All of them or none: EBADMSG
    when one is not what left last."""

    pgoff: PgoffField
    pfn: PfnField
    blobs: Blobs


class PageOut(Body):
    """memfs swapout: pages [start, end) of a file, as far as one request may take; end is cut to the file's."""

    ino: U63
    start: PgoffField
    end: PgoffField


class PageOutReply(Body):
    """How many pages have left, and where to go on (-1: done); how many could not leave, and why the first could not
    (errno 0: all could)."""

    page_count: U63
    next_pgoff: PgoffOrNone
    stayed: U63
    errno: U16
    reason: Text


class SwapOff(Body):
    """memfs swapoff: what is out from this page of this file on, in the order of inodes, as far as one step goes."""

    ino: U63
    pgoff: PgoffField


class SwapOffReply(Body):
    """Pages of one file that came back; pages of it that cannot, and why the first cannot (errno 0: none); its name and
    its VM. How many pages of all files are still out, and where to go on (-1: none is out from there on)."""

    page_count: U63
    stayed: U63
    errno: U16
    reason: Text
    name: FileName
    vm: Annotated[str, Meta(max_length=MAX_NAME_BYTES)]
    left: U63
    next_ino: U63
    next_pgoff: PgoffOrNone


class Revoke(Body):
    """The store ends the pairing (unmount): drop all mappings, then close."""

    reason: Text


class Report(Body):
    """Ask for slots and mappings of this file; cursor is a GFN to go on from."""

    cursor: GfnField


class ReportReply(Body):
    """Slots (id, gfn, pgoff, pages) and mapping runs (gfn, pfn, pages) from the cursor on, cut off where it lies.

    changing: the file pages [start, end) of a slot that is being made or deleted, (0, 0) when none is: until BIND or
    UNBIND has been answered, and kvmsim has acted on it, only one side may know them.
    next_cursor is where to go on (-1: done); it grows, and an answer with one is not empty.
    """

    slots: Annotated[list[tuple[Slot, GfnField, PgoffField, PageCount]], Meta(max_length=MAX_RUNS_PER_REPORT)]
    mappings: Annotated[list[tuple[GfnField, PfnField, PageCount]], Meta(max_length=MAX_RUNS_PER_REPORT)]
    seq: U63
    changing: PageRange
    next_cursor: GfnOrNone


REQUESTS: dict[Kind, type[Body]] = {
    Kind.HELLO: Hello,
    Kind.PAIR: Pair,
    Kind.BIND: Bind,
    Kind.UNBIND: Unbind,
    Kind.GET_PFN: GetPfn,
    Kind.STAT: Empty,
    Kind.PING: Empty,
    Kind.BYE: Empty,
    Kind.ATTRIBUTES: Attributes,
    Kind.CHECK: Empty,
    Kind.MAP: Map,
    Kind.LIST: Empty,
    Kind.KCORE: Kcore,
    Kind.MEMORY_FAILURE: MemoryFailure,
    Kind.DEVICE_ADD: DeviceFile,
    Kind.DEVICE_REMOVE: DeviceFile,
    Kind.PAGE_OUT: PageOut,
    Kind.SWAP_OFF: SwapOff,
    Kind.SET_NODE: SetNode,
    Kind.COMPACT: Empty,
    Kind.INVALIDATE_BEGIN: InvalidateBegin,
    Kind.INVALIDATE_END: InvalidateEnd,
    Kind.MOVE: Move,
    Kind.SWAP_OUT: SwapOut,
    Kind.SWAP_IN: SwapIn,
    Kind.REVOKE: Revoke,
    Kind.REPORT: Report,
}

REPLIES: dict[Kind, type[Body]] = {
    Kind.HELLO: HelloReply,
    Kind.PAIR: PairReply,
    Kind.BIND: Empty,
    Kind.UNBIND: Empty,
    Kind.GET_PFN: GetPfnReply,
    Kind.STAT: StatReply,
    Kind.PING: Empty,
    Kind.BYE: Empty,
    Kind.ATTRIBUTES: AttributesReply,
    Kind.CHECK: CheckReply,
    Kind.MAP: MapReply,
    Kind.LIST: ListReply,
    Kind.KCORE: KcoreReply,
    Kind.MEMORY_FAILURE: MemoryFailureReply,
    Kind.DEVICE_ADD: Empty,
    Kind.DEVICE_REMOVE: Empty,
    Kind.PAGE_OUT: PageOutReply,
    Kind.SWAP_OFF: SwapOffReply,
    Kind.SET_NODE: SetNodeReply,
    Kind.COMPACT: CompactReply,
    Kind.INVALIDATE_BEGIN: InvalidateBeginReply,
    Kind.INVALIDATE_END: Empty,
    Kind.MOVE: MoveReply,
    Kind.SWAP_OUT: SwapOutReply,
    Kind.SWAP_IN: Empty,
    Kind.REVOKE: Empty,
    Kind.REPORT: ReportReply,
}
