"""What a sealed file has besides an ordinary one: its pairing, bindings, tokens and open invalidation."""

import hmac
import threading
from dataclasses import dataclass, field
from enum import Enum

from memfsd.common import sync
from memfsd.core.memory.page_table import FilePages
from memfsd.core.memory.published_map import PageMap
from memfsd.core.memory.readahead import Readahead
from memfsd.uapi.messages import Kind
from memfsd.uapi.units import Pgoff, Seq

from .absent import AbsentPages
from .bindings import Bindings
from .device_memory import Device
from .page_attributes import GuestMemfd
from .strategies import Strategy


class PairState(Enum):
    """Of the one VM that a sealed file is paired with."""

    ACTIVE = "paired"
    DISCONNECTED = "cut"
    """Alive but silent or broken: its frames are quarantined until it is proven dead."""
    ENDED = "ended"
    """Dead or said BYE: its frames are free. No other VM can ever pair with the file (R1)."""


@dataclass(slots=True, eq=False)
class Pairing:
    """The one VM of a sealed file, for life.

    secret: what the VM says again to come back after BYE; the empty one is nobody's.
    """

    vm: str
    pid: int
    uid: int
    operations: frozenset[int]
    secret: bytes = b""
    state: PairState = PairState.ACTIVE

    def may_become(self, again: "Pairing") -> bool:
        """It has ended, and `again` is the same VM of the same process. A pid that was taken over knows no secret."""
        return (
            self.state is PairState.ENDED
            and self.secret != b""
            and hmac.compare_digest(self.secret, again.secret)
            and (self.pid, self.uid) == (again.pid, again.uid)
        )

    def implements(self, kind: Kind) -> bool:
        return kind in self.operations


@dataclass(slots=True, eq=False)
class Invalidation:
    """A bracket on file pages [start, end). While it is open nothing in the range is granted (R7).

    upcall: the range is bound in an active VM, so the VM must acknowledge before frames are freed (R6); False again
    when it has refused, and so knows of no bracket.
    cuts: a part of a large page goes, so the VM may have to split a leaf, and may refuse with ENOMEM.
    """

    start: Pgoff
    end: Pgoff
    strategy: Strategy
    upcall: bool
    seq: Seq
    cuts: bool = False
    is_refused: bool = False
    """The VM cannot split its mapping: nothing was taken."""
    taken_to: Pgoff = field(init=False)
    """Up to this page the file has lost what it loses. All of the range stays closed until the bracket does."""

    def __post_init__(self) -> None:
        self.taken_to = self.start


@dataclass(slots=True, eq=False)
class GmemFile:
    """seq counts closed invalidations of bound ranges; size_set: the one resize was used.

    invalidate_lock is the file's: adapters hold it from BEGIN to END, and for pair, bind, unbind and
    release. Lock order: it, then Service.lock; never wait for it with Service.lock held.
    """

    invalidate_lock: threading.Lock = field(default_factory=lambda: sync.lock("GmemFile.invalidate_lock"))

    size_set: bool = False
    pairing: Pairing | None = None
    bindings: Bindings = field(default_factory=Bindings)
    bound_end: Pgoff = Pgoff(0)
    """Behind the last page that was ever bound. A shrink leaves bindings where they are, behind the file's new end."""
    readahead: Readahead = field(default_factory=Readahead)
    open_invalidation: Invalidation | None = None
    seq: Seq = Seq(0)
    pending: int = 0
    """Frames in state PENDING: granted ahead of the guest's touch."""
    pending_start: Pgoff = Pgoff(0)
    pending_end: Pgoff = Pgoff(0)
    """No page outside is PENDING."""
    memfd: GuestMemfd | None = None
    """It is a guest_memfd; None: it was made by sealing."""
    device: Device | None = None
    """What its pages are of, instead of frames of the pool."""
    absent: AbsentPages = field(default_factory=AbsentPages)
    quarantine: FilePages = field(default_factory=FilePages)
    """Which frames its VM may still reach, and which pages of the file they were."""
    moving: FilePages = field(default_factory=FilePages)
    """Which frames pages are on their way to; in quarantine, too, when the VM was cut off meanwhile."""
    page_map: PageMap | None = None
    """What its VM reads instead of asking; as long as the VM is there."""
    grant_count: int = 0
    split_count: int = 0
    """Large pages of which a part was punched, since it was sealed."""
    merge_count: int = 0
    """Split pages that became whole again."""
    punched_count: int = 0
    """Pages that punches have taken out of it since it was sealed."""
    leaked_count: int = 0
    """Frames of its window that could not be erased, and are out of service."""
    invalidation_count: int = 0
    secret: bytes = b""
    """Makes the file's tokens (uapi.proof); empty until the first is read."""

    @property
    def active(self) -> Pairing | None:
        pairing = self.pairing
        return pairing if pairing is not None and pairing.state is PairState.ACTIVE else None

    @property
    def holds_memory(self) -> bool:
        """A VM may still reach the file's frames, so its data must live."""
        return self.pairing is not None and self.pairing.state is not PairState.ENDED

    def untouched(self, page_count: int, populated: int | None) -> int:
        """Granted and never touched. A frame becomes memory in the window at the guest's first touch, so of
        the PENDING ones no more can be untouched than pages that the window does not hold."""
        return self.pending if populated is None else min(self.pending, max(page_count - populated, 0))
