"""Extended page tables of one alias of a VM: GFN to host frame, in the entry layout of the hardware.

Four levels of 512 entries (Intel SDM vol. 3, 29.3.2). Level 0 tables hold the 4 KiB leaves; the tables of the
levels above hold, in bits 51:12, the number of a table one level down. All tables lie in one sparse arena
of 64-bit words, table N in words N * 512 to N * 512 + 511:

    table 0     never written: a walk that meets an absent entry goes on in it and ends with 0
    table 1     the root (level 3)
    others      allocated when first needed, given back when their last entry goes

One page is worked on through a memoryview, many through numpy on whole spans of neighbouring tables:
each is many times faster than the other at its own job, and that both are here, over the same words and
counts, makes this module long.

The caller holds the VM's mmu lock around every call, and until it is done with an iterator. GFNs and frame
numbers count 4 KiB pages, ranges are half-open, and bounds are the caller's duty: asserted, not refused.
"""

import errno
import itertools
import mmap
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from memfsd.uapi.errors import Refused

READ = 1 << 0
WRITE = 1 << 1
EXECUTE = 1 << 2
MEMORY_TYPE_WB = 6 << 3
LARGE = 1 << 7
"""A leaf above level 0. None is made yet; `_leaf_table`, `lookup` and `_children` would meet it."""
ACCESSED = 1 << 8
DIRTY = 1 << 9
PFN_SHIFT = 12

MAX_GFN_EPT = 1 << 36
"""GFNs end here: 48-bit guest physical addresses, without the SHARED bit."""

Run = tuple[int, int, int]
"""(gfn, pfn, page_count): contiguous on both sides."""
Words = NDArray[np.uint64]

_MAP_NORESERVE = 0x4000
"""Linux; Python 3.11's mmap has no name for it."""
_BITS = 9
_ENTRIES = 1 << _BITS
_INDEX = _ENTRIES - 1
_TOP = 3
_ROOT = 1
_TABLE_SHIFTS = (27, 18, 9)
"""How far to shift a GFN for its index in the tables of levels 3, 2 and 1."""
_TABLE_FLAGS = READ | WRITE | EXECUTE
_LEAF_FLAGS = READ | EXECUTE | MEMORY_TYPE_WB
_DEMANDED = _LEAF_FLAGS | ACCESSED
_DEMANDED_WRITABLE = _DEMANDED | WRITE
_MAX_BASES = 4096
_FEW = 16
"""Pages up to which one by one is faster than numpy."""
_SPAN_WORDS = 128 * _ENTRIES
_RAMP = np.arange(_SPAN_WORDS, dtype=np.uint64) << np.uint64(PFN_SHIFT)
_FLAGS_MASK = (1 << PFN_SHIFT) - 1
_MAX_PFN = 1 << 52 - PFN_SHIFT


def entry_pfn(entry: int) -> int:
    return entry >> PFN_SHIFT


def entry_writable(entry: int) -> bool:
    return entry & WRITE != 0


class Ept:
    """max_tables bounds the memory for tables (4 KiB each); address space is reserved, memory is not."""

    def __init__(self, max_tables: int = 1 << 19) -> None:
        assert max_tables > _ROOT + 1, max_tables
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        arena = mmap.mmap(-1, max_tables * _ENTRIES * 8, flags=flags)
        self._array: Words = np.frombuffer(arena, dtype=np.uint64)
        self._words = memoryview(arena).cast("Q")
        self._counts = np.zeros(max_tables, dtype=np.int64)
        # Entries in each table.
        self._count = memoryview(self._counts.data)
        self._max_tables = max_tables
        self._next_table = _ROOT + 1
        self._free: list[int] = []
        # First words of level 0 tables, by GFN >> 9: those used since a table was last given back.
        self._bases: dict[int, int] = {}
        self._leaf_count = 0

    @property
    def leaf_count(self) -> int:
        """Pages mapped."""
        return self._leaf_count

    @property
    def table_count(self) -> int:
        """Tables in use, the root among them."""
        return self._next_table - _ROOT - len(self._free)

    # -- one page ------------------------------------------------------------------------------------------

    def walk(self, gfn: int) -> int:
        """The leaf entry of gfn, 0 when it is not present."""
        base = self._bases.get(gfn >> _BITS) or self._leaf_table(gfn)
        return self._words[base + (gfn & _INDEX)]

    def mark(self, gfn: int, bits: int) -> None:
        """Set ACCESSED or DIRTY in the leaf of gfn, if it is present."""
        index = self._leaf_table(gfn) + (gfn & _INDEX)
        entry = self._words[index]
        if entry:
            self._words[index] = entry | bits

    def _leaf_table(self, gfn: int) -> int:
        """The first word of gfn's level 0 table; 0, the empty table's, when it has none."""
        region = gfn >> _BITS
        known = self._bases.get(region)
        if known:
            return known
        assert 0 <= gfn < MAX_GFN_EPT, gfn
        words = self._words
        base = _ROOT << _BITS
        for shift in _TABLE_SHIFTS:
            base = words[base + (gfn >> shift & _INDEX)] >> PFN_SHIFT << _BITS
        if base:
            if len(self._bases) >= _MAX_BASES:
                self._bases.clear()
            self._bases[region] = base
        return base

    # -- mapping -------------------------------------------------------------------------------------------

    def map_run(self, gfn: int, pfn: int, count: int, *, writable: bool = True, accessed: int = 0) -> None:
        """Map pages gfn + i to frames pfn + i; the first `accessed` of them are demanded, the rest granted.

        A page that is there with the same frame keeps its entry (two vCPUs faulted on it), and gets ACCESSED
        when it is demanded now. Refused ENOMEM when the tables run out: nothing was mapped.
        """
        assert 0 <= gfn < gfn + count <= MAX_GFN_EPT, (gfn, count)
        assert 0 <= pfn <= _MAX_PFN - count, (pfn, count)
        assert 0 <= accessed <= count, (accessed, count)
        flags = _LEAF_FLAGS | WRITE if writable else _LEAF_FLAGS
        if gfn >> _BITS != gfn + count - 1 >> _BITS or not self._leaf_table(gfn):
            self._grow(gfn, gfn + count)
        if count <= _FEW:
            for i in range(count):
                self._set_leaf(gfn + i, pfn + i, flags | ACCESSED if i < accessed else flags)
        else:
            self._map_pages(gfn, pfn, count, flags)
            self.mark_range(gfn, gfn + accessed, ACCESSED)

    def map_page(self, gfn: int, pfn: int, *, writable: bool = True) -> None:
        """`map_run` of one page that is demanded: the usual fault."""
        assert 0 <= pfn < _MAX_PFN, pfn
        flags = _DEMANDED_WRITABLE if writable else _DEMANDED
        base = self._bases.get(gfn >> _BITS)
        if base:  # as a rule the table is known and the entry is free
            index, words = base + (gfn & _INDEX), self._words
            if not words[index]:
                words[index] = pfn << PFN_SHIFT | flags
                self._count[base >> _BITS] += 1
                self._leaf_count += 1
                return
        elif not self._leaf_table(gfn):
            self._grow(gfn, gfn + 1)
        self._set_leaf(gfn, pfn, flags)

    def _set_leaf(self, gfn: int, pfn: int, flags: int) -> None:
        base = self._bases.get(gfn >> _BITS) or self._leaf_table(gfn)
        index, words = base + (gfn & _INDEX), self._words
        entry = words[index]
        if entry:
            assert entry >> PFN_SHIFT == pfn, (gfn, entry >> PFN_SHIFT, pfn)
            words[index] = entry | flags & ACCESSED
            return
        words[index] = pfn << PFN_SHIFT | flags
        self._count[base >> _BITS] += 1
        self._leaf_count += 1

    def _map_pages(self, gfn: int, pfn: int, count: int, flags: int) -> None:
        for start, low, high in self._spans(gfn, gfn + count):
            entries = self._array[low:high]
            first = np.uint64(pfn + start - gfn << PFN_SHIFT | flags)
            if any(self._count[low >> _BITS : (high - 1 >> _BITS) + 1]) and entries.any():
                new = _RAMP[: high - low] + first
                missing = entries == 0
                same = (entries ^ new) >> np.uint64(PFN_SHIFT) == 0
                assert (same | missing).all(), f"a page of [{start}, {start + high - low}) has another frame"
                np.copyto(entries, new, where=missing)
            else:
                np.add(_RAMP[: high - low], first, out=entries)
            self._settle(low, high, _ENTRIES)

    def _grow(self, start: int, end: int) -> None:
        """Make every table that the leaves of [start, end) need, or none (Refused ENOMEM)."""
        needed = sum((end - 1 >> s) - (start >> s) + 1 for s in _TABLE_SHIFTS)
        available = self._max_tables - self._next_table + len(self._free)
        if needed > available:
            needed -= self._tables_below(_ROOT, _TOP, start, end)
            if needed > available:
                raise Refused(
                    errno.ENOMEM,
                    f"{end - start} pages at GFN {start:#x} need {needed} more EPT tables and {available} of "
                    f"{self._max_tables} are free: map fewer pages, or zap some first",
                )
        for part in range(start >> 2 * _BITS << 2 * _BITS, end, 1 << 2 * _BITS):
            table = _ROOT
            for shift in _TABLE_SHIFTS[:-1]:
                table = self._child(table, (table << _BITS) + (part >> shift & _INDEX))
            low, high = _slice(table, 1, max(part, start), min(part + (1 << 2 * _BITS), end))
            if high - low == 1:
                self._child(table, low)
                continue
            missing = (self._array[low:high] == 0).nonzero()[0]
            if missing.size:
                tables = np.array(self._take(missing.size), dtype=np.uint64)
                self._array[low:high][missing] = tables << np.uint64(PFN_SHIFT) | np.uint64(_TABLE_FLAGS)
                self._count[table] += missing.size

    def _child(self, table: int, index: int) -> int:
        """The table that word `index`, one of this table's, names; made when there is none."""
        if not self._words[index]:
            self._words[index] = self._take(1)[0] << PFN_SHIFT | _TABLE_FLAGS
            self._count[table] += 1
        return self._words[index] >> PFN_SHIFT

    def _take(self, count: int) -> list[int]:
        """Numbers of so many empty tables, ascending: neighbours where it can be."""
        keep = max(0, len(self._free) - count)
        tables = sorted(self._free[keep:])
        del self._free[keep:]
        fresh = self._next_table
        self._next_table += count - len(tables)
        assert self._next_table <= self._max_tables
        return tables + list(range(fresh, self._next_table))

    def _tables_below(self, table: int, level: int, start: int, end: int) -> int:
        indices, children = self._children(table, level, start, end)
        count = children.size
        if level > 1:
            for child, low, high in _parts(level, start, end, indices, children):
                count += self._tables_below(child, level - 1, low, high)
        return count

    # -- unmapping -----------------------------------------------------------------------------------------

    def zap(self, start: int, end: int) -> list[Run]:
        """Remove every leaf in [start, end); the runs that were there, in order."""
        if end - start == 1:
            return self._zap_page(start)
        runs: list[Run] = []
        for gfn, low, high in self._spans(start, end):
            self._collect(runs, gfn, low, high)
            self._array[low:high].fill(0)
            self._settle(low, high, 0)
        self._prune(start, end, runs)
        return runs

    def _zap_page(self, gfn: int) -> list[Run]:
        base = self._leaf_table(gfn)
        entry = self._words[base + (gfn & _INDEX)]
        if not entry:
            return []
        self._words[base + (gfn & _INDEX)] = 0
        self._count[base >> _BITS] -= 1
        self._leaf_count -= 1
        if not self._count[base >> _BITS]:
            self._drop_path(gfn)
        return [(gfn, entry >> PFN_SHIFT, 1)]

    def zap_untouched(self, start: int, end: int) -> list[Run]:
        """Remove the leaves in [start, end) that were granted and never touched; their runs, in order."""
        runs: list[Run] = []
        for gfn, low, high in self._spans(start, end):
            entries = self._array[low:high]
            untouched = (entries != 0) & (entries & np.uint64(ACCESSED) == 0)
            if untouched.any():
                _merge(runs, gfn, untouched.nonzero()[0], entries)
                entries[untouched] = 0
                for table in range(low >> _BITS, (high - 1 >> _BITS) + 1):
                    self._recount(table)
        self._prune(start, end, runs)
        return runs

    def _prune(self, start: int, end: int, removed: list[Run]) -> None:
        """Give back the tables that lost their last entry in [start, end)."""
        if not removed:
            return
        start = max(start, removed[0][0])
        last_gfn, _, last_count = removed[-1]
        end = min(end, last_gfn + last_count)
        if start >> _BITS != end - 1 >> _BITS:
            self._prune_below(_ROOT, _TOP, start, end)
        elif not self._count[self._leaf_table(start) >> _BITS]:
            self._drop_path(start)

    def _drop_path(self, gfn: int) -> None:
        """Give back gfn's level 0 table, which is empty, and each table above that this empties."""
        path = []
        table = _ROOT
        for shift in _TABLE_SHIFTS:
            index = (table << _BITS) + (gfn >> shift & _INDEX)
            path.append((table, index))
            table = self._words[index] >> PFN_SHIFT
        while path and not self._count[table]:
            self._free.append(table)
            table, index = path.pop()
            self._words[index] = 0
            self._count[table] -= 1
        self._bases.clear()

    def _prune_below(self, table: int, level: int, start: int, end: int) -> None:
        indices, children = self._children(table, level, start, end)
        if level > 1:
            for child, low, high in _parts(level, start, end, indices, children):
                self._prune_below(child, level - 1, low, high)
        empty = self._counts[children] == 0
        freed = children[empty].tolist()
        if freed:
            self._array[indices[empty]] = 0
            self._count[table] -= len(freed)
            self._free.extend(reversed(freed))
            self._bases.clear()

    # -- many pages ----------------------------------------------------------------------------------------

    def mark_range(self, start: int, end: int, bits: int) -> None:
        """Set ACCESSED or DIRTY in every leaf present in [start, end)."""
        for _, low, high in self._spans(start, end):
            entries = self._array[low:high]
            np.bitwise_or(entries, np.uint64(bits), out=entries, where=entries != 0)

    def lookup(self, gfns: NDArray[np.int64] | NDArray[np.uint64]) -> Words:
        """Leaf entries (0: not present) of an array of GFNs, of the same shape."""
        assert gfns.dtype in (np.int64, np.uint64), gfns.dtype
        flat = gfns.reshape(-1)
        assert not flat.size or int(flat.view(np.uint64).max()) < MAX_GFN_EPT, "a GFN is out of bounds"
        arena = self._array.view(np.int64)
        out = np.empty(flat.size, dtype=np.int64)
        for low in range(0, flat.size, _SPAN_WORDS // 4):
            part = flat[low : low + _SPAN_WORDS // 4].view(np.int64)
            entries = arena[(_ROOT << _BITS) + (part >> _TOP * _BITS)]
            for shift in (2 * _BITS, _BITS, 0):
                entries >>= PFN_SHIFT
                entries <<= _BITS
                entries += part >> shift & _INDEX
                entries = arena[entries]
            out[low : low + _SPAN_WORDS // 4] = entries
        return out.view(np.uint64).reshape(gfns.shape)

    def first_missing(self, start: int, end: int) -> int:
        """The first GFN of [start, end) that is not present; end when all are."""
        expected = start
        for gfn, low, high in self._spans(start, end):
            if gfn != expected:
                break
            if min(self._count[low >> _BITS : (high - 1 >> _BITS) + 1]) < _ENTRIES:
                present = self._array[low:high] != 0
                hole = int(present.argmin())
                if not present[hole]:
                    return gfn + hole
            expected += high - low
        return expected

    def touched(self, start: int, end: int) -> list[tuple[int, int]]:
        """GFN ranges of [start, end) whose leaves are present and ACCESSED, merged, in order."""
        ranges: list[tuple[int, int]] = []
        for gfn, low, high in self._spans(start, end):
            flags = self._array[low:high] & np.uint64(ACCESSED)
            # A range begins and ends where the bit differs from its neighbour's; outside it is clear.
            edges = np.flatnonzero(np.diff(flags != 0, prepend=False, append=False)) + gfn
            for first, last in edges.reshape(-1, 2).tolist():
                if ranges and ranges[-1][1] == first:
                    ranges[-1] = (ranges[-1][0], last)
                else:
                    ranges.append((first, last))
        return ranges

    def runs(self, start: int, end: int) -> Iterator[Run]:
        """The leaves present in [start, end), merged, in order."""
        runs: list[Run] = []
        for gfn, low, high in self._spans(start, end):
            self._collect(runs, gfn, low, high)
            # The last one may go on in the next span.
            yield from runs[:-1]
            del runs[:-1]
        yield from runs

    def _collect(self, runs: list[Run], gfn: int, low: int, high: int) -> None:
        """Append the runs of one span. The usual case, all present and one run, costs three passes."""
        entries = self._array[low:high]
        if min(self._count[low >> _BITS : (high - 1 >> _BITS) + 1]) == _ENTRIES:
            offsets = entries - _RAMP[: high - low]
            first = int(entries[0]) & ~_FLAGS_MASK
            if int(offsets.min()) >= first and int(offsets.max()) <= first | _FLAGS_MASK:
                _append(runs, gfn, first >> PFN_SHIFT, high - low)
                return
        _merge(runs, gfn, entries.nonzero()[0], entries)

    # -- the tree ------------------------------------------------------------------------------------------

    def _spans(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(gfn, low, high): words low to high hold the leaves from gfn on.

        Only where tables exist; neighbouring tables come as one span of at most _SPAN_WORDS.
        """
        assert 0 <= start <= end <= MAX_GFN_EPT, (start, end)
        if start == end:
            return
        if start >> _BITS == end - 1 >> _BITS:
            base = self._leaf_table(start)
            if base:
                yield start, base + (start & _INDEX), base + (end - 1 & _INDEX) + 1
            return
        table, level = _ROOT, _TOP
        while level > 1 and start >> level * _BITS == end - 1 >> level * _BITS:
            table = self._words[(table << _BITS) + (start >> level * _BITS & _INDEX)] >> PFN_SHIFT
            level -= 1
        yield from self._spans_below(table, level, start, end)

    def _spans_below(self, table: int, level: int, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        indices, children = self._children(table, level, start, end)
        if level > 1:
            for child, low, high in _parts(level, start, end, indices, children):
                yield from self._spans_below(child, level - 1, low, high)
            return
        if not indices.size:
            return
        apart = (indices[1:] != indices[:-1] + 1) | (children[1:] != children[:-1] + 1)
        cuts = [0, *(apart.nonzero()[0] + 1).tolist(), indices.size]
        origin = start >> 2 * _BITS << 2 * _BITS
        for first, after in itertools.pairwise(cuts):
            gfn = origin + ((int(indices[first]) & _INDEX) << _BITS)
            word = int(children[first]) << _BITS
            gfn_end = min(end, gfn + (after - first << _BITS))
            for at in range(max(start, gfn), gfn_end, _SPAN_WORDS):
                yield at, at - gfn + word, min(at + _SPAN_WORDS, gfn_end) - gfn + word

    def _children(self, table: int, level: int, start: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Word numbers of the present entries of a table for [start, end), and the tables they name."""
        low, high = _slice(table, level, start, end)
        indices = self._array[low:high].nonzero()[0] + low
        return indices, (self._array[indices] >> np.uint64(PFN_SHIFT)).astype(np.int64)

    def _settle(self, low: int, high: int, filled: int) -> None:
        """After words [low, high) were all set or all cleared: correct the counts of their tables.

        Tables that lie wholly inside have `filled` entries; those at the edges are counted.
        """
        first, after = low >> _BITS, (high - 1 >> _BITS) + 1
        inner, inner_end = low + _INDEX >> _BITS, high >> _BITS
        if inner < inner_end:
            self._leaf_count += filled * (inner_end - inner) - int(self._counts[inner:inner_end].sum())
            self._counts[inner:inner_end] = filled
        if first < inner:
            self._recount(first)
        if inner_end < after and inner_end >= inner:
            self._recount(inner_end)

    def _recount(self, table: int) -> None:
        """Correct the count of a level 0 table."""
        count = int(np.count_nonzero(self._array[table << _BITS : table + 1 << _BITS]))
        self._leaf_count += count - self._count[table]
        self._count[table] = count


def _slice(table: int, level: int, start: int, end: int) -> tuple[int, int]:
    """The words of a table of this level that stand for [start, end), which the table covers."""
    shift = level * _BITS
    base = table << _BITS
    return base + (start >> shift & _INDEX), base + (end - 1 >> shift & _INDEX) + 1


def _parts(
    level: int, start: int, end: int, indices: NDArray[np.int64], children: NDArray[np.int64]
) -> Iterator[tuple[int, int, int]]:
    """(table, start, end) one level down: each child with its part of the range."""
    shift = level * _BITS
    origin = start >> shift + _BITS << shift + _BITS
    for index, child in zip(indices.tolist(), children.tolist(), strict=True):
        low = origin + ((index & _INDEX) << shift)
        yield child, max(start, low), min(end, low + (1 << shift))


def _merge(runs: list[Run], gfn: int, present: NDArray[np.int64], entries: Words) -> None:
    """Append the leaves at these places of a span that begins at gfn."""
    if not present.size:
        return
    pfns = (entries[present] >> np.uint64(PFN_SHIFT)).astype(np.int64)
    apart = (present[1:] != present[:-1] + 1) | (pfns[1:] != pfns[:-1] + 1)
    starts = np.concatenate(([0], apart.nonzero()[0] + 1))
    counts = np.diff(starts, append=present.size)
    found = zip((present[starts] + gfn).tolist(), pfns[starts].tolist(), counts.tolist(), strict=True)
    _append(runs, *next(found))
    runs.extend(found)


def _append(runs: list[Run], gfn: int, pfn: int, count: int) -> None:
    if runs:
        last_gfn, last_pfn, last_count = runs[-1]
        if last_gfn + last_count == gfn and last_pfn + last_count == pfn:
            runs[-1] = (last_gfn, last_pfn, last_count + count)
            return
    runs.append((gfn, pfn, count))
