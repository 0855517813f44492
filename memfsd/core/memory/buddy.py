"""Which frames of one NUMA node are free, in orders 0, 9 and 18.

A 512-ary tree of bitmaps held in Python ints, a set bit meaning free:

    node                 gigs wholly free | gigs with wholly free blocks | gigs with partial blocks
      gig, 2^18 frames     blocks wholly free | blocks partially free
        block, 512 frames    frames free

A gig that is wholly free or has nothing free has no entry, so an untouched pool costs nothing. The tree is a
function of the set of free frames alone: freeing coalesces by itself, and there is no order to remember.
Broken blocks go before whole ones, and among equals the lowest address, so allocations made in sequence come
out contiguous. Bitmaps are never scanned frame by frame. One structure, all its operations: hence the length.
"""

import errno
import sys
from collections.abc import Iterator

from memfsd.uapi.errors import Refused
from memfsd.uapi.units import ORDER_1G, ORDER_2M, ORDER_4K, ORDERS, Pfn

_BLOCK = 1 << ORDER_2M
_GIG = 1 << ORDER_1G
_LAST = 511
"""Mask of an index within a bitmap of 512."""
_FULL = (1 << 512) - 1
_CANDIDATES = 8
"""Bitmaps looked at for a contiguous run before the next larger size is broken up."""


class _Gig:
    """2^18 frames, some free and some not."""

    __slots__ = ("blocks", "free", "partial")

    def __init__(self, *, free: bool) -> None:
        self.blocks = [_FULL if free else 0] * 512
        """Free frames of each block."""
        self.free = _FULL if free else 0
        """Blocks that are wholly free."""
        self.partial = 0
        """Blocks that are neither wholly free nor used up."""


class Buddy:
    """Allocator of the frames [first, first + frame_count). Counts are frames, orders 0, 9 or 18."""

    def __init__(self, first: int, frame_count: int) -> None:
        assert first >= 0
        assert frame_count > 0
        self.first = first
        self.end = first + frame_count
        self.free_count = 0
        self._base = first & -_GIG
        # Gigs are counted from _base. _gigs has those that are neither wholly free nor used up.
        self._gigs: dict[int, _Gig] = {}
        self._whole = 0
        self._with_free = 0
        self._with_partial = 0
        # The lowest partial block, (gig, block, first frame), while it is known: until a block of any gig gets or
        # loses its partial bit.
        self._partial: tuple[_Gig, int, int] | None = None
        self.free(Pfn(first), frame_count)

    def available(self, order: int) -> int:
        """Frames that can be allocated in blocks of this order."""
        if order == ORDER_4K:
            return self.free_count
        whole = self._whole.bit_count() << ORDER_1G
        if order == ORDER_1G:
            return whole
        assert order == ORDER_2M
        return whole + (sum(gig.free.bit_count() for gig in self._gigs.values()) << ORDER_2M)

    def is_free(self, pfn: int) -> bool:
        return self._run_length(pfn, 1) == 1

    def alloc(self, count: int, order: int = ORDER_4K, max_runs: int = sys.maxsize) -> list[tuple[Pfn, int]]:
        """Runs (pfn, frames) that add up to count, a multiple of 1 << order, as each run is; to less with max_runs.

        Refused with ENOSPC, and nothing changed, when there is not enough.
        """
        assert order in ORDERS
        assert count > 0
        unit = 1 << order
        assert count % unit == 0, (count, order)
        if count > self.available(order):
            raise _no_space(count, order, self.free_count)
        runs: list[tuple[Pfn, int]] = []
        while count and len(runs) < max_runs:
            pfn = self._lowest(count, order)
            run = self._run_length(pfn, count) & -unit
            self._take(pfn, run)
            if runs and runs[-1][0] + runs[-1][1] == pfn:
                runs[-1] = (runs[-1][0], runs[-1][1] + run)
            else:
                runs.append((Pfn(pfn), run))
            count -= run
        return runs

    def alloc_one(self) -> int:
        """One frame; blocks that are broken already go first. ENOSPC."""
        partial = self._partial or self._find_partial()
        if partial is None:
            return self.alloc(1)[0][0]
        gig, block, first = partial
        frames = gig.blocks[block]
        rest = frames & frames - 1
        gig.blocks[block] = rest
        self.free_count -= 1
        if not rest:
            gig.partial ^= 1 << block
            self._file(first - self._base >> 18, gig)
        return first + (frames ^ rest).bit_length() - 1

    def _find_partial(self) -> tuple[_Gig, int, int] | None:
        if not self._with_partial:
            return None
        number = _low(self._with_partial)
        gig = self._gigs[number]
        block = _low(gig.partial)
        self._partial = gig, block, self._base + (number << 18 | block << 9)
        return self._partial

    def alloc_run(self, max_count: int) -> tuple[Pfn, int]:
        """One contiguous run (pfn, frames) of 1 to max_count frames, whole if that is cheap. ENOSPC."""
        assert max_count > 0
        if max_count == 1:
            return Pfn(self.alloc_one()), 1
        if not self.free_count:
            raise _no_space(1, ORDER_4K, 0)
        pfn = self._roomy(max_count)
        return Pfn(pfn), self.alloc_at(pfn, max_count)

    def alloc_at(self, pfn: int, max_count: int) -> int:
        """Take the free frames from pfn on, at most max_count; how many (0: pfn is not free, or not ours)."""
        at = pfn - self._base
        gig = self._gigs.get(at >> 18)
        if gig is not None:
            block, index = at >> 9 & _LAST, at & _LAST
            frames = gig.blocks[block]
            ones = _ones_from(frames, index)
            count = min(ones, max_count)
            rest = frames ^ ((1 << count) - 1 << index)
            if rest and frames != _FULL and (count == max_count or index + ones < _BLOCK):
                gig.blocks[block] = rest
                self.free_count -= count
                return count
        count = self._run_length(pfn, max_count)
        if count:
            self._take(pfn, count)
        return count

    def free(self, pfn: int, count: int) -> None:
        """Give frames back. They must not be free."""
        assert count > 0
        assert self.first <= pfn
        assert pfn + count <= self.end, (pfn, count)
        at = pfn - self._base
        self.free_count += count
        if count == 1:
            gig = self._gigs.get(at >> 18)
            if gig is not None:
                block = at >> 9 & _LAST
                frames = gig.blocks[block]
                bit = 1 << (at & _LAST)
                assert not frames & bit, f"frame {pfn:#x} is free already"
                if frames and frames | bit != _FULL:
                    gig.blocks[block] = frames | bit
                    return
        end = at + count
        while at < end:
            number = at >> 18
            stop = min((number + 1) << 18, end)
            gig = self._gigs.get(number)
            if stop - at == _GIG:
                stop = end & -_GIG
                gigs = (1 << (stop >> 18)) - (1 << number)
                assert not (self._whole | self._with_free | self._with_partial) & gigs, "frames are free already"
                self._whole |= gigs
            else:
                assert not self._whole >> number & 1, "frames are free already"
                if gig is None:
                    gig = self._gigs[number] = _Gig(free=False)
                _set_free(gig, at & (_GIG - 1), stop - at)
                self._file(number, gig)
            at = stop

    def _take(self, pfn: int, count: int) -> None:
        """Make these free frames used."""
        self.free_count -= count
        at = pfn - self._base
        end = at + count
        while at < end:
            number = at >> 18
            stop = min((number + 1) << 18, end)
            if stop - at == _GIG and self._whole >> number & 1:
                stop = min(number + _ones_from(self._whole, number) << 18, end & -_GIG)
                self._whole ^= (1 << (stop >> 18)) - (1 << number)
            else:
                gig = self._gigs.get(number)
                if gig is None:
                    assert self._whole >> number & 1
                    self._whole ^= 1 << number
                    gig = self._gigs[number] = _Gig(free=True)
                _set_used(gig, at & (_GIG - 1), stop - at)
                self._file(number, gig)
            at = stop

    def _file(self, number: int, gig: _Gig) -> None:
        """Bring the node's bitmaps up to date with a gig that changed."""
        self._partial = None
        bit = 1 << number
        if bool(self._with_free & bit) != bool(gig.free):
            self._with_free ^= bit
        if bool(self._with_partial & bit) != bool(gig.partial):
            self._with_partial ^= bit
        if gig.free == _FULL:
            self._with_free ^= bit
            self._whole |= bit
            del self._gigs[number]
        elif not gig.free and not gig.partial:
            del self._gigs[number]

    def _run_length(self, pfn: int, max_count: int) -> int:
        """Free frames from pfn on, at most max_count."""
        at = pfn - self._base
        if not self.first <= pfn < self.end:
            return 0
        end = at + max_count
        start = at
        while at < end:
            number = at >> 18
            gig = self._gigs.get(number)
            if gig is None:
                gigs = _ones_from(self._whole, number)
                if not gigs:
                    break
                at = number + gigs << 18
                continue
            block = at >> 9 & _LAST
            free = _ones_from(gig.free, block)
            if free:
                at = (at | _LAST) + 1 + (free - 1 << 9)
                continue
            index = at & _LAST
            ones = _ones_from(gig.blocks[block], index)
            at += ones
            if index + ones < _BLOCK:
                break
        return min(at, end) - start

    def _lowest(self, want: int, order: int) -> int:
        """Where to allocate next: the largest free size that fits, else what is broken up already."""
        if want >= _GIG and self._whole:
            return self._free_gig()
        if want >= _BLOCK and (self._with_free or self._whole):
            return self._free_block()
        assert order == ORDER_4K
        partial = self._find_partial()
        if partial is not None:
            gig, block, first = partial
            return first + _low(gig.blocks[block])
        return self._free_block()

    def _free_block(self) -> int:
        if self._with_free:
            number = _low(self._with_free)
            return self._base + (number << 18 | _low(self._gigs[number].free) << 9)
        return self._free_gig()

    def _free_gig(self) -> int:
        return self._base + (_low(self._whole) << 18)

    def _roomy(self, want: int) -> int:
        """Where a run of `want` frames starts, or the longest among the candidates."""
        if want >= _GIG and self._whole:
            number, _ = _find_run(self._whole, -(-want >> 18))
            return self._base + (number << 18)
        best = (0, 0)
        if want >= _BLOCK:
            block_count = -(-want >> 9)
            for number in _set_bits(self._with_free, _CANDIDATES):
                block, run = _find_run(self._gigs[number].free, min(block_count, 512))
                best = max(best, (run, self._base + (number << 18 | block << 9)))
                if run >= block_count:
                    return best[1]
            if self._whole:
                return self._free_gig()
            if best[0]:
                return best[1]
        if self._with_partial:
            number = _low(self._with_partial)
            gig = self._gigs[number]
            for block in _set_bits(gig.partial, _CANDIDATES):
                index, run = _find_run(gig.blocks[block], want)
                best = max(best, (run, self._base + (number << 18 | block << 9 | index)))
                if run >= want:
                    return best[1]
        if self._with_free or self._whole:
            return self._free_block()
        return best[1]


def _set_used(gig: _Gig, start: int, count: int) -> None:
    blocks = gig.blocks
    for block, mask in _edges(start, count):
        frames = blocks[block] ^ mask
        assert not frames & mask
        blocks[block] = frames
        bit = 1 << block
        gig.free &= ~bit
        gig.partial = gig.partial | bit if frames else gig.partial & ~bit
    first, last = _inner(start, count)
    if first < last:
        mask = (1 << last) - (1 << first)
        assert gig.free & mask == mask
        gig.free ^= mask
        blocks[first:last] = [0] * (last - first)


def _set_free(gig: _Gig, start: int, count: int) -> None:
    blocks = gig.blocks
    for block, mask in _edges(start, count):
        frames = blocks[block]
        assert not frames & mask, "frames are free already"
        frames |= mask
        blocks[block] = frames
        bit = 1 << block
        if frames == _FULL:
            # The shared object, so that a free block costs no memory.
            blocks[block] = _FULL
            gig.free |= bit
            gig.partial &= ~bit
        else:
            gig.partial |= bit
    first, last = _inner(start, count)
    if first < last:
        mask = (1 << last) - (1 << first)
        assert not (gig.free | gig.partial) & mask, "frames are free already"
        gig.free |= mask
        blocks[first:last] = [_FULL] * (last - first)


def _inner(start: int, count: int) -> tuple[int, int]:
    """Blocks [first, last) that lie wholly in the frames [start, start + count) of a gig."""
    return -(-start >> 9), start + count >> 9


def _edges(start: int, count: int) -> Iterator[tuple[int, int]]:
    """(block, mask of frames) where the range covers a block in part: none, one or two."""
    end = start + count
    head, tail = start >> 9, end >> 9
    low, high = start & _LAST, end & _LAST
    if head == tail:
        yield head, (1 << high) - (1 << low)
        return
    if low:
        yield head, _FULL ^ ((1 << low) - 1)
    if high:
        yield tail, (1 << high) - 1


def _low(bits: int) -> int:
    """Index of the lowest set bit."""
    return (bits & -bits).bit_length() - 1


def _ones_from(bits: int, index: int) -> int:
    """How many consecutive bits are set from index on."""
    bits >>= index
    return (~bits & (bits + 1)).bit_length() - 1


def _set_bits(bits: int, limit: int) -> Iterator[int]:
    """Indices of the lowest set bits."""
    while bits and limit:
        yield _low(bits)
        bits &= bits - 1
        limit -= 1


def _find_run(bits: int, want: int) -> tuple[int, int]:
    """(index, length) of a run of set bits: `want` if there is one, else a power of two that exists."""
    have = 1
    while have < want:
        step = min(have, want - have)
        longer = bits & bits >> step
        if not longer:
            break
        bits, have = longer, have + step
    return _low(bits), have


def _no_space(count: int, order: int, free_count: int) -> Refused:
    unit = f"{1 << order}-frame blocks" if order else "frames"
    return Refused(
        errno.ENOSPC,
        f"no room for {count} frames in {unit}, {free_count} frames are free: "
        "punch or remove files, or mount with a larger size=",
    )
