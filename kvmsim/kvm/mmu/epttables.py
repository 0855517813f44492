"""The tree of tables under an EPT: where entries lie, how tables come and go, how a large leaf is split.

Four levels of 512 entries. A table of level 0 holds leaves of 4 KiB; one of level 1 or 2 holds, entry by
entry, a LARGE leaf (2 MiB, 1 GiB) or the number of a table one level down, in bits 51:12. All tables lie in one
sparse arena of 64-bit words, table N in words N * 512 to N * 512 + 511:

    table 0     never written: a walk that meets an absent entry goes on in it and ends with 0
    table 1     the root (level 3)
    others      allocated when first needed, given back when their last entry goes

A *span* is a stretch of words that hold leaves of one level: what the operations on many pages in `ept` work on.
"""

import errno
import itertools
import mmap
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from memfsd.uapi.errors import Refused
from memfsd.uapi.units import Gfn

from .eptentry import (
    ENTRIES,
    EXECUTE,
    INDEX,
    LARGE,
    LEVEL_BITS,
    MAX_GFN_EPT,
    PFN_SHIFT,
    READ,
    TOP_LEVEL,
    WRITE,
    Words,
    leaf_pages,
)

Span = tuple[Gfn, int, int, int]
"""(gfn, low, high, level): words low to high hold the leaves of that level from gfn on.

Of level 0: present or not, and inside the range that was asked for. Above: all present, and the first and the
last one may reach beyond the range.
"""
Indices = NDArray[np.int64]

_MAP_NORESERVE = 0x4000
"""Linux; Python 3.11's mmap has no name for it."""
ROOT = 1
_TABLE_SHIFTS = (27, 18, 9)
"""How far to shift a GFN for its index in the tables of levels 3, 2 and 1."""
_TABLE_FLAGS = READ | WRITE | EXECUTE
_MAX_BASES = 4096
SPAN_WORDS = 128 * ENTRIES
RAMP = np.arange(SPAN_WORDS, dtype=np.uint64) << np.uint64(PFN_SHIFT)
_LARGE = np.uint64(LARGE)


def _reserved(words: int) -> mmap.mmap:
    """Zeros that cost address space until they are touched. np.zeros() may get memory that malloc has to clear."""
    return mmap.mmap(-1, words * 8, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)


class EptTables:
    """max_tables bounds the memory for tables (4 KiB each); address space is reserved, memory is not."""

    def __init__(self, max_tables: int) -> None:
        assert max_tables > ROOT + 1, max_tables
        arena = _reserved(max_tables * ENTRIES)
        self._array: Words = np.frombuffer(arena, dtype=np.uint64)
        self._words = memoryview(arena).cast("Q")
        self._counts = np.frombuffer(_reserved(max_tables), dtype=np.int64)
        # Entries in each table.
        self._count = memoryview(self._counts.data)
        self._max_tables = max_tables
        self._next_table = ROOT + 1
        self._free: list[int] = []
        # First words of level 0 tables, by GFN >> 9: those used since a table was last given back.
        self._bases: dict[int, int] = {}
        self._small_count = 0
        # Leaves above level 0, by level.
        self._large_counts = [0] * (TOP_LEVEL + 1)
        self.split_count = 0
        """Large leaves that were split, since the start."""

    @property
    def address(self) -> int:
        """Of the arena in this process."""
        return self._array.ctypes.data

    @property
    def table_count(self) -> int:
        """Tables in use, the root among them."""
        return self._next_table - ROOT - len(self._free)

    @property
    def _has_large(self) -> bool:
        return any(self._large_counts)

    # -- to one entry --------------------------------------------------------------------------------------

    def _leaf_table(self, gfn: Gfn) -> int:
        """The first word of gfn's level 0 table; 0, the empty table's, when it has none."""
        region = gfn >> LEVEL_BITS
        known = self._bases.get(region)
        if known:
            return known
        assert 0 <= gfn < MAX_GFN_EPT, gfn
        words = self._words
        base = ROOT << LEVEL_BITS
        for shift in _TABLE_SHIFTS:
            entry = words[base + (gfn >> shift & INDEX)]
            if entry & LARGE:
                return 0
            base = entry >> PFN_SHIFT << LEVEL_BITS
        if base:
            if len(self._bases) >= _MAX_BASES:
                self._bases.clear()
            self._bases[region] = base
        return base

    def _large_leaf(self, gfn: Gfn) -> tuple[int, int]:
        """The word and the level of the large leaf over gfn; (0, 0) when there is none."""
        table = ROOT
        for level in range(TOP_LEVEL, 0, -1):
            word = (table << LEVEL_BITS) + (gfn >> level * LEVEL_BITS & INDEX)
            entry = self._words[word]
            if entry & LARGE:
                return word, level
            table = entry >> PFN_SHIFT
        return 0, 0

    def path(self, gfn: Gfn) -> list[int]:
        """The entries that the walk to gfn reads, as they are, from the top table on: up to a leaf, or to one that is
        not present (0)."""
        assert 0 <= gfn < MAX_GFN_EPT, gfn
        entries: list[int] = []
        table = ROOT
        for level in range(TOP_LEVEL, -1, -1):
            entry = self._words[(table << LEVEL_BITS) + (gfn >> level * LEVEL_BITS & INDEX)]
            entries.append(entry)
            if not entry or entry & LARGE:
                break
            table = entry >> PFN_SHIFT
        return entries

    # -- tables come ---------------------------------------------------------------------------------------

    def _grow(self, start: Gfn, end: Gfn) -> None:
        """Make every table that 4 KiB leaves in [start, end) need, or none (Refused ENOMEM). Not below large leaves."""
        needed = sum((end - 1 >> s) - (start >> s) + 1 for s in _TABLE_SHIFTS)
        if needed > self._available:
            self._check_available(needed - self._tables_below(ROOT, TOP_LEVEL, start, end), start, end)
        for part in range(start >> 2 * LEVEL_BITS << 2 * LEVEL_BITS, end, 1 << 2 * LEVEL_BITS):
            table = ROOT
            for shift in _TABLE_SHIFTS[:-1]:
                entry = self._child(table, (table << LEVEL_BITS) + (part >> shift & INDEX))
                if entry & LARGE:
                    break
                table = entry >> PFN_SHIFT
            else:
                self._grow_leaf_tables(table, max(part, start), min(part + (1 << 2 * LEVEL_BITS), end))

    def _grow_leaf_tables(self, table: int, start: int, end: int) -> None:
        low, high = _slice(table, 1, start, end)
        if high - low == 1:
            self._child(table, low)
            return
        missing = (self._array[low:high] == 0).nonzero()[0]
        if missing.size:
            tables = np.array(self._take(missing.size), dtype=np.uint64)
            self._array[low:high][missing] = tables << np.uint64(PFN_SHIFT) | np.uint64(_TABLE_FLAGS)
            self._count[table] += missing.size

    def _table_for_leaf(self, gfn: Gfn, level: int) -> int:
        """The table of this level over gfn, made when there is none (Refused ENOMEM: nothing changed); 0 when a
        larger leaf is there."""
        table = ROOT
        for above in range(TOP_LEVEL, level, -1):
            word = (table << LEVEL_BITS) + (gfn >> above * LEVEL_BITS & INDEX)
            if not self._words[word]:
                self._check_available(above - level, gfn, gfn + leaf_pages(level))
            entry = self._child(table, word)
            if entry & LARGE:
                return 0
            table = entry >> PFN_SHIFT
        return table

    @property
    def _available(self) -> int:
        return self._max_tables - self._next_table + len(self._free)

    def _check_available(self, needed: int, start: Gfn, end: Gfn) -> None:
        if needed > self._available:
            raise Refused(
                errno.ENOMEM,
                f"{end - start} pages at GFN {start:#x} need {needed} more EPT tables and {self._available} of "
                f"{self._max_tables} are free: map fewer pages, or zap some first",
            )

    def _child(self, table: int, index: int) -> int:
        """Entry `index`, a word of this table, that names a table or is large; a table is made when there is none."""
        if not self._words[index]:
            self._words[index] = self._take(1)[0] << PFN_SHIFT | _TABLE_FLAGS
            self._count[table] += 1
        return self._words[index]

    def _take(self, count: int) -> list[int]:
        """Numbers of so many empty tables, ascending: neighbours where it can be."""
        keep = max(0, len(self._free) - count)
        tables = sorted(self._free[keep:])
        del self._free[keep:]
        fresh = self._next_table
        self._next_table += count - len(tables)
        assert self._next_table <= self._max_tables
        return tables + list(range(fresh, self._next_table))

    def _tables_below(self, table: int, level: int, start: Gfn, end: Gfn) -> int:
        """Tables under this one that leaves in [start, end) have, or do not need because a large leaf is there."""
        indices, children = self._children(table, level, start, end)
        count = children.size
        if self._large_counts[level]:
            low, high = _slice(table, level, start, end)
            large = (self._array[low:high] & _LARGE).nonzero()[0] + low
            for _, first, last in _parts(level, start, end, large, large):
                count += sum((last - 1 >> s) - (first >> s) + 1 for s in _TABLE_SHIFTS[TOP_LEVEL - level :])
        if level > 1:
            for child, first, last in _parts(level, start, end, indices, children):
                count += self._tables_below(child, level - 1, first, last)
        return count

    # -- tables go -----------------------------------------------------------------------------------------

    def _prune(self, start: Gfn, end: Gfn) -> None:
        """Give back the tables that lost their last entry in [start, end)."""
        if start >> LEVEL_BITS != end - 1 >> LEVEL_BITS:
            self._prune_below(ROOT, TOP_LEVEL, start, end)
        elif not self._count[self._leaf_table(start) >> LEVEL_BITS]:
            self._drop_path(start)

    def _drop_path(self, gfn: Gfn) -> None:
        """Give back the lowest table over gfn if it is empty, and each table above that this empties."""
        path: list[tuple[int, int]] = []
        table = ROOT
        for shift in _TABLE_SHIFTS:
            word = (table << LEVEL_BITS) + (gfn >> shift & INDEX)
            entry = self._words[word]
            if not entry or entry & LARGE:
                break
            path.append((table, word))
            table = entry >> PFN_SHIFT
        while path and not self._count[table]:
            self._free.append(table)
            table, word = path.pop()
            self._words[word] = 0
            self._count[table] -= 1
        self._bases.clear()

    def _prune_below(self, table: int, level: int, start: Gfn, end: Gfn) -> None:
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

    def _give_back(self, table: int, level: int) -> None:
        """A table with everything below it, leaves too. The caller replaces the entry that named it."""
        low, high = table << LEVEL_BITS, table + 1 << LEVEL_BITS
        if level:
            entries = self._array[low:high]
            large = entries & _LARGE != 0
            self._large_counts[level] -= int(np.count_nonzero(large))
            for entry in entries[~large & (entries != 0)].tolist():
                self._give_back(entry >> PFN_SHIFT, level - 1)
        else:
            self._small_count -= self._count[table]
        self._array[low:high] = 0
        self._count[table] = 0
        self._free.append(table)
        self._bases.clear()

    # -- large leaves --------------------------------------------------------------------------------------

    def _split(self, word: int, level: int) -> None:
        """Replace a large leaf by a table of leaves one level down, with the same frames and flags."""
        (table,) = self._take(1)
        entry = self._words[word]
        if level == 1:
            entry &= ~LARGE
            self._small_count += ENTRIES
        else:
            self._large_counts[level - 1] += ENTRIES
        base = table << LEVEL_BITS
        ramp = RAMP[:ENTRIES] << np.uint64((level - 1) * LEVEL_BITS)
        np.add(ramp, np.uint64(entry), out=self._array[base : base + ENTRIES])
        self._count[table] = ENTRIES
        self._words[word] = table << PFN_SHIFT | _TABLE_FLAGS
        self._large_counts[level] -= 1
        self.split_count += 1

    # -- spans ---------------------------------------------------------------------------------------------

    def _spans(self, start: Gfn, end: Gfn) -> Iterator[Span]:
        """Where the leaves of [start, end) are, in order; neighbouring tables come as one span of at most
        SPAN_WORDS."""
        assert 0 <= start <= end <= MAX_GFN_EPT, (start, end)
        if start == end:
            return
        if start >> LEVEL_BITS == end - 1 >> LEVEL_BITS:
            base = self._leaf_table(start)
            if base:
                yield start, base + (start & INDEX), base + (end - 1 & INDEX) + 1, 0
                return
        table, level = ROOT, TOP_LEVEL
        while level and start >> level * LEVEL_BITS == end - 1 >> level * LEVEL_BITS:
            word = (table << LEVEL_BITS) + (start >> level * LEVEL_BITS & INDEX)
            entry = self._words[word]
            if entry & LARGE:
                yield start & -leaf_pages(level), word, word + 1, level
                return
            table = entry >> PFN_SHIFT
            level -= 1
        if level:
            yield from self._spans_below(table, level, start, end)

    def _spans_below(self, table: int, level: int, start: Gfn, end: Gfn) -> Iterator[Span]:
        if not self._large_counts[level]:
            yield from self._spans_of_tables(level, start, end, *self._children(table, level, start, end))
            return
        low, high = _slice(table, level, start, end)
        indices = self._array[low:high].nonzero()[0] + low
        entries = self._array[indices]
        large = entries & _LARGE != 0
        children = (entries >> np.uint64(PFN_SHIFT)).astype(np.int64)
        for first, after in _stretches(large[1:] != large[:-1], indices.size):
            part = indices[first:after]
            if large[first]:
                yield from self._spans_of_large(level, start, part)
            else:
                yield from self._spans_of_tables(level, start, end, part, children[first:after])

    def _spans_of_large(self, level: int, start: Gfn, indices: Indices) -> Iterator[Span]:
        origin = _table_start(level, start)
        for first, after in _stretches(indices[1:] != indices[:-1] + 1, indices.size):
            word = int(indices[first])
            yield origin + ((word & INDEX) << level * LEVEL_BITS), word, word + after - first, level

    def _spans_of_tables(self, level: int, start: Gfn, end: Gfn, indices: Indices, children: Indices) -> Iterator[Span]:
        if level > 1:
            for child, low, high in _parts(level, start, end, indices, children):
                yield from self._spans_below(child, level - 1, low, high)
            return
        breaks = (indices[1:] != indices[:-1] + 1) | (children[1:] != children[:-1] + 1)
        origin = _table_start(level, start)
        for first, after in _stretches(breaks, indices.size):
            gfn = origin + ((int(indices[first]) & INDEX) << LEVEL_BITS)
            word = int(children[first]) << LEVEL_BITS
            gfn_end = min(end, gfn + (after - first << LEVEL_BITS))
            for at in range(max(start, gfn), gfn_end, SPAN_WORDS):
                yield Gfn(at), at - gfn + word, min(at + SPAN_WORDS, gfn_end) - gfn + word, 0

    def _children(self, table: int, level: int, start: Gfn, end: Gfn) -> tuple[Indices, Indices]:
        """Word numbers of the entries of a table for [start, end) that name tables, and those tables."""
        low, high = _slice(table, level, start, end)
        indices = self._array[low:high].nonzero()[0] + low
        entries = self._array[indices]
        if self._large_counts[level]:
            tables = entries & _LARGE == 0
            indices, entries = indices[tables], entries[tables]
        return indices, (entries >> np.uint64(PFN_SHIFT)).astype(np.int64)

    # -- counts --------------------------------------------------------------------------------------------

    def _settle(self, low: int, high: int, filled: int) -> None:
        """After words [low, high) of level 0 were all set or all cleared: correct the counts of their tables.

        Tables that lie wholly inside have `filled` entries; those at the edges are counted.
        """
        first, after = low >> LEVEL_BITS, (high - 1 >> LEVEL_BITS) + 1
        inner, inner_end = low + INDEX >> LEVEL_BITS, high >> LEVEL_BITS
        if inner < inner_end:
            self._small_count += filled * (inner_end - inner) - int(self._counts[inner:inner_end].sum())
            self._counts[inner:inner_end] = filled
        if first < inner:
            self._recount(first)
        if inner_end < after and inner_end >= inner:
            self._recount(inner_end)

    def _recount(self, table: int) -> None:
        """Correct the count of a level 0 table."""
        count = int(np.count_nonzero(self._array[table << LEVEL_BITS : table + 1 << LEVEL_BITS]))
        self._small_count += count - self._count[table]
        self._count[table] = count


def _table_start(level: int, gfn: Gfn) -> Gfn:
    """The first GFN that the table of this level over gfn covers."""
    return gfn & -leaf_pages(level + 1)


def _slice(table: int, level: int, start: int, end: int) -> tuple[int, int]:
    """The words of a table of this level that stand for [start, end), which the table covers."""
    shift = level * LEVEL_BITS
    base = table << LEVEL_BITS
    return base + (start >> shift & INDEX), base + (end - 1 >> shift & INDEX) + 1


def _parts(level: int, start: Gfn, end: Gfn, indices: Indices, children: Indices) -> Iterator[tuple[int, Gfn, Gfn]]:
    """(child, start, end) one level down: each child with its part of the range."""
    origin = _table_start(level, start)
    for index, child in zip(indices.tolist(), children.tolist(), strict=True):
        low = origin + ((index & INDEX) << level * LEVEL_BITS)
        yield child, max(start, low), min(end, low + leaf_pages(level))


def _stretches(breaks: NDArray[np.bool_], size: int) -> list[tuple[int, int]]:
    """[first, after) of each stretch of `size` things, where breaks[i] parts thing i from the next one."""
    if not size:
        return []
    return list(itertools.pairwise([0, *(breaks.nonzero()[0] + 1).tolist(), size]))
