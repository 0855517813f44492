"""Swap: pages leave through their VM as blobs, which go to the swap file, and come back when they are touched.

Out: an invalidation (SWAP_OUT or EVICT) blocks pages -> SWAP_OUT: blobs -> file -> the pages are absent, their frames
are scrubbed and free. In: new frames (MOVING) -> blobs from the file -> SWAP_IN: KVM verifies and decrypts -> the pages
are in these frames. Both with the file's invalidate_lock held. Contents never pass through here in the clear.
"""

import errno
import functools
import logging
import time
from dataclasses import dataclass
from typing import NamedTuple

from memfsd.common import sync
from memfsd.core.effects import Export
from memfsd.core.files.inodes import Regular
from memfsd.core.gmem import guest_of
from memfsd.core.private.strategies import EVICT, SWAP_OUT, Strategy
from memfsd.core.service import Service
from memfsd.host.effect_runner import EffectRunner
from memfsd.host.swapfile import SwapSpace
from memfsd.uapi.errors import PeerLost, Refused
from memfsd.uapi.frame_state import FrameState
from memfsd.uapi.limits import MAX_SWAP_PAGES, SWAP_BLOB_BYTES, SWAP_WINDOW_PAGES
from memfsd.uapi.messages import Empty, Kind, SwapIn, SwapOutReply
from memfsd.uapi.messages import SwapOut as SwapOutBody
from memfsd.uapi.units import ORDER_2M, PAGE_SHIFT, PAGE_SIZE, PGOFF_END, Ino, Pfn, Pgoff, format_size

from .deadlines import Deadlines
from .invalidator import InvalidateRange, Invalidator
from .peer import Peer, PeerRefused, PeerSilent
from .questions import Questions

log = logging.getLogger("memfsd.peers")

_CLUSTER_PAGES = 8
"""Read back at once, as vm.page-cluster has it."""
_BATCH_SHARE = 8
"""The pool divided by it is what one eviction frees, up to SWAP_WINDOW_PAGES: a full pool stays out of the way for a
while, and a small one keeps what is in use."""
_TURNS = 2
"""Of the clock: the first forgets what was used, the second finds what was not used since."""


_VMS_IN_TURN = 16
"""One eviction waits for each VM an even share of its time, so that a few slow ones leave time for others."""
_MAX_REFUSALS = 64
"""By a VM, in one bracket: then what is left of it stays."""


class _Window(NamedTuple):
    """Mapped pages [start, end) of a file, for one step."""

    ino: Ino
    start: Pgoff
    end: Pgoff
    page_count: int


class PagedOut(NamedTuple):
    """How many pages have left, where to go on (-1: done), how many could not leave, and why the first could not."""

    page_count: int
    next_pgoff: int
    stayed: int = 0
    why: Refused | None = None


@dataclass(slots=True)
class _Outcome:
    """Of pages that were to leave in one bracket."""

    left: int = 0
    stayed: int = 0
    why: Refused | None = None

    def stay(self, page_count: int, why: Refused) -> None:
        self.stayed += page_count
        self.why = self.why or why


class Swapper:
    """`_turn`: one eviction at a time, taken before the lock of the questions. `_hand` is guarded by Service.lock,
    an item of `_outcomes` by the invalidate_lock of its file."""

    def __init__(
        self,
        service: Service,
        runner: EffectRunner,
        invalidator: Invalidator,
        deadlines: Deadlines,
        owner_uid: int,
        space: SwapSpace | None = None,
    ) -> None:
        self._service = service
        self._runner = runner
        self._invalidator = invalidator
        self._deadlines = deadlines
        self._space = space
        self._turn = sync.lock("Swapper.turn")
        self._questions = Questions("evict", owner_uid)
        self._outcomes: dict[Ino, _Outcome] = {}
        """Of files whose pages are leaving."""
        self._hand: tuple[int, int] = (0, 0)
        """Inode and page at which the clock goes on."""
        runner.export = self._export

    # -- out

    def may_help(self) -> bool:
        """There is room in the swap file."""
        slots = self._service.slots
        return slots.room > 0

    def evict(self, wanted: int | None) -> bool:
        """The pool is full: pages that no vCPU has used lately leave. True when frames came free, which may be
        another's doing; wanted: no need to begin when so many are.

        The wait for another's eviction, and this one, take Deadlines.reclaim_s each at most. What is under way then
        goes on.
        """
        if not self.may_help():
            return False
        with self._service.lock:
            before = self._service.pool.free_count
        if not self._turn.acquire(timeout=self._deadlines.reclaim_s):
            with self._service.lock:
                return self._service.pool.free_count > before
        try:
            return self._evict(wanted)
        finally:
            self._turn.release()

    def _evict(self, wanted: int | None) -> bool:
        service, until = self._service, time.monotonic() + self._deadlines.reclaim_s
        slots = service.slots
        with service.lock:
            before, out = service.pool.free_count, slots.out_count
            batch = max(1, min(SWAP_WINDOW_PAGES, service.pool.frame_count // _BATCH_SHARE))
            most = _TURNS * sum(file.pages.page_count for file in self._swappable()) + batch
        if wanted is not None and before >= wanted:
            return True  # who had the turn before has made room
        with self._questions.lock:
            self._ask_in_turn(batch, most, until)
        with service.lock:
            return slots.out_count > out

    def _ask_in_turn(self, batch: int, most: int, until: float) -> None:
        """Windows of so many pages leave, until that many are out, or `most` were looked at. Who is slow is left to
        itself meanwhile. Call with the questions' lock held."""
        slots, share = self._service.slots, self._deadlines.reclaim_s / _VMS_IN_TURN
        out, seen, too_many = slots.out_count, 0, set[Ino]()
        while (
            slots.out_count - out < batch and seen < most and self.may_help() and (left := until - time.monotonic()) > 0
        ):
            with self._service.lock:
                window = self._next_window(batch, self._questions.asked | too_many)
                peer = None if window is None else self._invalidator.peers[window.ino]
            if window is None or peer is None:
                if not self._questions.asked or slots.out_count > out:
                    break
                self._questions.wait(left)
            elif self._questions.begin(peer, functools.partial(self._take, window)):
                seen += window.page_count
                self._questions.wait(min(left, share), window.ino)
            else:
                too_many.add(window.ino)

    def _next_window(self, most: int, but: set[Ino]) -> _Window | None:
        """Where the hand is, but not of these files; it moves past it. Call with Service.lock held."""
        files = sorted((file for file in self._swappable() if file.ino not in but), key=lambda file: file.ino)
        ino, pgoff = self._hand
        ahead = [(file, pgoff if file.ino == ino else 0) for file in files if file.ino >= ino]
        for file, at in [*ahead, *((file, 0) for file in files if file.ino <= ino)]:
            start = file.pages.next_data(at)
            if start is not None:
                window = _window(file, start, most)
                self._hand = int(file.ino), int(window.end)
                return window
        return None

    def _swappable(self) -> list[Regular]:
        """Files whose VM lives, and gives pages out. Call with Service.lock held."""
        return [
            file
            for file in self._service.inodes.sealed_files()
            if self._service.gmem.swaps(file)
            and file.pages.page_count
            and guest_of(file).device is None
            and guest_of(file).memfd is None
            and (active := guest_of(file).active) is not None
            and active.implements(Kind.SWAP_OUT)
            and active.implements(Kind.SWAP_IN)
        ]

    def _take(self, window: _Window) -> None:
        try:
            with self._service.lock:
                file = self._service.inodes.regular(window.ino)
            self._leave(file, window, EVICT)
        except Refused as refused:
            log.warning("swap out of inode %d: %s", window.ino, refused.reason)

    def page_out(self, ino: Ino, start: int, end: int, uid: int, owner: int) -> PagedOut:
        """Pages [start, end) of a file leave, as many as one step takes. What cannot stays, and PagedOut says why.

        EACCES for who neither owns the file nor the mount (`owner`) nor is root; EOPNOTSUPP without a swap file, for
        large pages that do not split, and for a VM that gives no page out; ENOTCONN without a VM; EINVAL past the end
        of the file.
        """
        with self._service.lock:
            file, slots = self._service.inodes.regular(ino), self._service.slots
            if uid not in (0, owner, file.uid):
                raise Refused(errno.EACCES, f"uid {uid} does not own inode {ino}: run it as root or as the owner")
            self._check_can_swap(file)
            if start << PAGE_SHIFT >= file.size:
                raise Refused(errno.EINVAL, f"page {start:#x} is past the end of inode {ino} ({file.size} bytes)")
            end = min(end, file.size >> PAGE_SHIFT)
            first = file.pages.next_data(Pgoff(start))
            if first is None or first >= end:
                return PagedOut(0, -1)
            window = _window(file, first, SWAP_WINDOW_PAGES, Pgoff(end))
            next_pgoff = int(window.end) if window.end < end else -1
            if not slots.room:
                used = self._used_count(file, window)
                return PagedOut(0, next_pgoff, used, slots.no_room() if used else None)
        outcome = self._leave(file, window, SWAP_OUT)
        with self._service.lock:
            if guest_of(file).active is None:
                raise Refused(errno.ENOTCONN, f"inode {ino}: its VM ended, or was cut off, meanwhile: syslog has why")
        return PagedOut(outcome.left, next_pgoff, outcome.stayed, outcome.why)

    def _used_count(self, file: Regular, window: _Window) -> int:
        """Pages that are not known to be untouched. Call with Service.lock held."""
        runs, state = file.pages.extents(window.start, window.end), self._service.pool.state
        frames = (Pfn(frame) for _, pfn, count in runs for frame in range(pfn, pfn + count))
        return sum(state(frame) is not FrameState.PENDING for frame in frames)

    def _check_can_swap(self, file: Regular) -> None:
        slots, active = self._service.slots, guest_of(file).active
        if not slots.is_on:
            raise slots.no_room()
        if not self._service.gmem.swaps(file):
            size = format_size(PAGE_SIZE << file.order)
            why = f"inode {file.ino} has pages of {size}, which are swapped in parts only: mount with split=on"
            raise Refused(errno.EOPNOTSUPP, why)
        if guest_of(file).device is not None:
            raise Refused(errno.EOPNOTSUPP, f"inode {file.ino} is a device, whose memory stays where it is")
        if guest_of(file).memfd is not None:
            raise Refused(errno.EOPNOTSUPP, f"inode {file.ino} is a guest_memfd, whose pages stay where they are")
        if active is None:
            raise Refused(errno.ENOTCONN, f"inode {file.ino} has no VM: nobody can encrypt its pages")
        if not (active.implements(Kind.SWAP_OUT) and active.implements(Kind.SWAP_IN)):
            raise Refused(errno.EOPNOTSUPP, f"VM {active.vm} gives no pages out: its KVM lacks SWAP_OUT or SWAP_IN")

    def _leave(self, file: Regular, window: _Window, strategy: Strategy) -> _Outcome:
        outcome = _Outcome()
        with self._invalidator.hold(guest_of(file)):
            self._outcomes[file.ino] = outcome
            try:
                self._invalidator.invalidate_held(file, InvalidateRange(file.ino, window.start, window.end, strategy))
            finally:
                del self._outcomes[file.ino]
        with self._service.lock:
            self._service.slots.failed_count += outcome.stayed
        if outcome.why is not None:
            log.warning("inode %d: %d pages were not swapped out: %s", file.ino, outcome.stayed, outcome.why.reason)
        return outcome

    def _export(self, effect: Export) -> None:
        """Within the bracket that blocks these pages. What cannot leave, or not before Deadlines.swap_out_s, stays
        where it is. A refused packet is asked for again in halves, so that one bad page keeps no other in memory."""
        with self._service.lock:
            file, peer = self._service.inodes.regular(effect.ino), self._invalidator.peers.get(effect.ino)
        if peer is None:
            return
        until = time.monotonic() + self._deadlines.swap_out_s
        outcome, refusals, pages = self._outcomes[effect.ino], 0, effect.pages
        todo = [pages[at : at + MAX_SWAP_PAGES] for at in range(0, len(pages), MAX_SWAP_PAGES)]
        todo.reverse()
        while todo:
            pages = todo.pop()
            try:
                goes_on = self._export_some(file, peer, pages, outcome)
            except PeerRefused as refused:
                refusals += 1
                goes_on = refused.errno != errno.ENOSPC and refusals < _MAX_REFUSALS
                if goes_on and len(pages) > 1:
                    half = len(pages) // 2
                    todo += [pages[half:], pages[:half]]
                else:
                    outcome.stay(len(pages), Refused(refused.errno, f"page {pages[0][0]:#x}: {refused}"))
            if goes_on and todo and time.monotonic() >= until:
                outcome.why = outcome.why or Refused(errno.ETIMEDOUT, f"VM {peer.vm} takes too long to give them out")
                goes_on = False
            if not goes_on:
                outcome.stayed += sum(map(len, todo))
                break

    def _export_some(self, file: Regular, peer: Peer, pages: list[tuple[Pgoff, Pfn]], outcome: _Outcome) -> bool:
        """At most a packet of them. False: no use to go on. PeerRefused: none has left."""
        service = self._service
        with service.lock:
            slots = [service.slots.alloc() for _ in range(min(len(pages), service.slots.room))]
        leaving, holes = list[tuple[tuple[Pgoff, Pfn], bytes]](), list[tuple[Pgoff, Pfn]]()
        written, staying, why = 0, len(pages) - len(slots), service.slots.no_room()
        try:
            if slots:
                leaving, holes = self._blobs(peer, pages[: len(slots)])
            written, failure = self._write(slots[: len(leaving)], [blob for _, blob in leaving])
            staying, why = staying + len(leaving) - written, failure or why
            self._give_back(peer, leaving[written:])
        except PeerRefused:
            with service.lock:
                service.slots.free(slots)
            raise
        except PeerLost as lost:
            self._invalidator.end_or_disconnect(peer, lost)
            written, leaving, holes, staying = 0, [], [], len(pages)
            why = Refused(errno.ETIMEDOUT, f"VM {peer.vm} gives no page out: {lost}")
        with service.lock:
            service.slots.free(slots[written:])
            left = [page for page, _ in leaving[:written]]
            scrub = service.gmem.swapped_out(file, left, slots[:written], holes) if left or holes else None
        if scrub is not None:
            self._runner.perform([scrub])
        outcome.left += written
        if staying:
            outcome.stay(staying, why)
        return not staying

    def _give_back(self, peer: Peer, leaving: list[tuple[tuple[Pgoff, Pfn], bytes]]) -> None:
        """To where they were. PeerSilent: not before the deadline."""
        until = time.monotonic() + self._deadlines.swap_out_s
        for number, ((pgoff, pfn), blob) in enumerate(leaving):
            if number and time.monotonic() >= until:
                raise PeerSilent(f"it takes too long to take {len(leaving)} pages back")
            try:
                peer.up.call(Kind.SWAP_IN, SwapIn(pgoff, pfn, [blob]), Empty)
            except PeerRefused as refused:
                log.warning("VM %s does not take page %#x back: %s", peer.vm, pgoff, refused)

    def _blobs(
        self, peer: Peer, pages: list[tuple[Pgoff, Pfn]]
    ) -> tuple[list[tuple[tuple[Pgoff, Pfn], bytes]], list[tuple[Pgoff, Pfn]]]:
        """Pages that leave, each with its blob, and those that are holes. PeerLost: it makes no sense."""
        body = SwapOutBody([(int(pgoff), int(pfn)) for pgoff, pfn in pages])
        reply = peer.up.call(Kind.SWAP_OUT, body, SwapOutReply)
        if len(reply.blobs) != len(pages) or not {len(blob) for blob in reply.blobs} <= {0, SWAP_BLOB_BYTES}:
            raise PeerLost(f"it gave {len(reply.blobs)} blobs for {len(pages)} pages, or some of another size")
        said = list(zip(pages, reply.blobs, strict=True))
        return [(page, blob) for page, blob in said if blob], [
            page for page, blob in said if not blob and page[0] in reply.holes
        ]

    def _write(self, slots: list[int], blobs: list[bytes]) -> tuple[int, Refused | None]:
        """How many are in the file, and why not all."""
        assert self._space is not None
        for index, (slot, blob) in enumerate(zip(slots, blobs, strict=True)):
            try:
                self._space.write(slot, blob)
            except Refused as refused:
                return index, refused
        return len(slots), None

    # -- in

    def swap_in(self, file: Regular, pgoff: Pgoff, most: int = _CLUSTER_PAGES) -> int:
        """The page comes back, and others that follow it and are out, too; how many. 0: it is not out any more.

        ENOSPC: the pool is full. EBADMSG: KVM does not take it. EIO: the swap file cannot be read. EBUSY, ENOTCONN as
        for a bind. What is refused stays out.
        """
        with self._invalidator.hold(guest_of(file)):
            try:
                return self._swap_in(file, pgoff, most)
            except Refused as refused:
                if refused.errno not in (errno.EBADMSG, errno.EIO) or most == 1:
                    raise
            return self._swap_in(file, pgoff, 1)  # the page may be sound, and one after it not

    def _swap_in(self, file: Regular, pgoff: Pgoff, most: int) -> int:
        service, peer = self._service, None
        with service.lock:
            if guest_of(file).active is not None:
                peer = self._invalidator.peers.get(file.ino)
            if peer is None:
                raise Refused(errno.ENOTCONN, f"inode {file.ino} has no VM any more: its pages are gone")
            pfn, slots = service.gmem.swap_in_begin(file, pgoff, most)
        if not slots:
            return 0
        assert self._space is not None
        refusal: Refused | None = None
        lost: PeerLost | None = None
        try:
            blobs = [self._space.read(slot) for slot in slots]
            peer.up.call(Kind.SWAP_IN, SwapIn(pgoff, pfn, blobs), Empty)
        except PeerRefused as refused:
            # A VM has no say in how full the pool is: who asks would reclaim, or end swapoff for all.
            number = errno.EIO if refused.errno == errno.ENOSPC else refused.errno
            refusal = Refused(number, f"KVM does not take page {pgoff:#x} of inode {file.ino} back: {refused}")
        except Refused as refused:
            refusal = refused
        except PeerLost as gone:
            lost = gone
        with service.lock:
            if refusal is not None:
                scrub = service.gmem.swap_in_failed(file, pfn, len(slots))
            else:  # who is lost may reach the frames, which are quarantined then
                service.gmem.swapped_in(file, pgoff, pfn, len(slots))
        if refusal is not None:
            self._runner.perform([scrub])
            raise refusal
        if lost is not None:
            self._invalidator.end_or_disconnect(peer, lost)
            raise Refused(errno.ETIMEDOUT, f"VM {peer.vm} did not take page {pgoff:#x} back: {lost}")
        return len(slots)

    def close(self) -> None:
        """When every VM has ended."""
        if self._space is not None:
            self._space.close()


def _window(file: Regular, start: Pgoff, most: int, stop: Pgoff = Pgoff(PGOFF_END)) -> _Window:
    """At most so many mapped pages of [start, stop); of large pages all of one of 2 MiB, since KVM knows of that one
    whether it was used."""
    if file.order:
        stop, most = min(stop, Pgoff((start >> ORDER_2M) + 1 << ORDER_2M)), 1 << ORDER_2M
    left, end = most, start
    for pgoff, _, count in file.pages.extents(start, min(Pgoff(start + 16 * most), stop)):
        end = Pgoff(pgoff + min(count, left))
        left -= min(count, left)
        if not left:
            break
    return _Window(file.ino, start, end, most - left)
