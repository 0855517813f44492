"""Extended page tables of one alias of a VM: GFN to host frame, in leaves of 4 KiB, 2 MiB and 1 GiB.

`epttables` has the tree of tables, `eptentry` the layout of an entry; here is what is done with them. One page is
worked on through a memoryview, many through numpy on whole spans of neighbouring words: each is many times
faster than the other at its own job, and that both are here, over the same words, makes this module long.

A page inside a large leaf is a page like any other: `walk` and `lookup` answer with its own frame, `runs` with its
part of the run. What the hardware keeps once per leaf is kept once per leaf here too: ACCESSED and DIRTY. A zap of
a part splits a leaf, into the next smaller ones and no further than needed; all of them inherit the flags.

The caller holds the VM's mmu lock around every call, and until it is done with an iterator. GFNs and frame
numbers count 4 KiB pages, ranges are half-open, and bounds are the caller's duty: asserted, not refused.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memfsd.common import trace
from memfsd.uapi.units import Gfn, GfnRange, HostPfn

from .eptentry import (
    ACCESSED,
    AGED,
    DIRTY,
    ENTRIES,
    EXECUTE,
    INDEX,
    LARGE,
    LEVEL_BITS,
    MAX_GFN_EPT,
    MAX_PFN,
    MEMORY_TYPE_MASK,
    MEMORY_TYPE_UC,
    MEMORY_TYPE_WB,
    PFN_SHIFT,
    READ,
    TOP_LEVEL,
    TOUCHED,
    WRITE,
    Words,
    entry_memory_type,
    entry_pfn,
    entry_writable,
    leaf_pages,
)
from .epttables import RAMP, ROOT, SPAN_WORDS, EptTables
from .runs import Run, append_leaves, append_run, clip

__all__ = [
    "ACCESSED",
    "DIRTY",
    "EXECUTE",
    "LARGE",
    "MAX_GFN_EPT",
    "MEMORY_TYPE_UC",
    "MEMORY_TYPE_WB",
    "PFN_SHIFT",
    "READ",
    "WRITE",
    "Ept",
    "Run",
    "entry_memory_type",
    "entry_pfn",
    "entry_writable",
]

Signed = NDArray[np.int64]

_LEAF_FLAGS = READ | EXECUTE | MEMORY_TYPE_WB
_DEMANDED = _LEAF_FLAGS | ACCESSED
_DEMANDED_WRITABLE = _DEMANDED | WRITE
_FEW = 16
"""Pages up to which one by one is faster than numpy."""
_FLAGS_MASK = (1 << PFN_SHIFT) - 1


class Ept(EptTables):
    """max_tables bounds the memory for tables (4 KiB each); address space is reserved, memory is not."""

    def __init__(self, max_tables: int = 1 << 19) -> None:
        super().__init__(max_tables)
        self.merge_count = 0
        """Tables that a large leaf took the place of, since the start."""
        self.zapped_leaves = [0, 0, 0]
        """Leaves removed since the start, by level: 4 KiB, 2 MiB, 1 GiB."""

    @property
    def page_count(self) -> int:
        """4 KiB pages mapped, by leaves of whatever size."""
        return sum(count * leaf_pages(level) for level, count in enumerate(self.leaf_counts))

    @property
    def leaf_count(self) -> int:
        return sum(self.leaf_counts)

    @property
    def leaf_counts(self) -> tuple[int, int, int]:
        """Leaves by level: 4 KiB, 2 MiB, 1 GiB."""
        return self._small_count, self._large_counts[1], self._large_counts[2]

    # -- one page ------------------------------------------------------------------------------------------

    def walk(self, gfn: Gfn) -> int:
        """The leaf entry of gfn, 0 when it is not present. One with LARGE has gfn's own frame, not the leaf's first."""
        base = self._bases.get(gfn >> LEVEL_BITS) or self._leaf_table(gfn)
        if base:
            return self._words[base + (gfn & INDEX)]
        word, level = self._large_leaf(gfn)
        return self._words[word] + ((gfn & leaf_pages(level) - 1) << PFN_SHIFT) if word else 0

    def mark(self, gfn: Gfn, bits: int) -> None:
        """Set ACCESSED or DIRTY in the leaf of gfn, if it is present."""
        base = self._leaf_table(gfn)
        word = base + (gfn & INDEX) if base else self._large_leaf(gfn)[0]
        entry = self._words[word]
        if entry:
            self._words[word] = entry | bits

    # -- mapping -------------------------------------------------------------------------------------------

    def map_run(
        self,
        gfn: Gfn,
        pfn: HostPfn,
        count: int,
        *,
        writable: bool = True,
        accessed: int = 0,
        uncached: bool = False,
    ) -> None:
        """Map pages gfn + i to frames pfn + i in 4 KiB leaves; the first `accessed` of them are demanded, the rest
        granted.

        A page that is there with the same frame keeps its entry (two vCPUs faulted on it), and gets ACCESSED
        when it is demanded now; one of few gets WRITE, too. Refused ENOMEM when the tables run out: nothing was mapped.
        uncached: of memory type UC.
        """
        if trace.vm is not None:
            trace.vm.run_mapped(gfn, pfn, count)
        assert 0 <= gfn < gfn + count <= MAX_GFN_EPT, (gfn, count)
        assert 0 <= pfn <= MAX_PFN - count, (pfn, count)
        assert 0 <= accessed <= count, (accessed, count)
        flags = _LEAF_FLAGS | WRITE if writable else _LEAF_FLAGS
        if uncached:
            flags &= ~MEMORY_TYPE_MASK
        if gfn >> LEVEL_BITS != gfn + count - 1 >> LEVEL_BITS or not self._leaf_table(gfn):
            self._grow(gfn, gfn + count)
        if count <= _FEW:
            for i in range(count):
                self._set_leaf(gfn + i, pfn + i, flags | ACCESSED if i < accessed else flags)
        else:
            self._map_pages(gfn, pfn, count, flags)
            self.mark_range(gfn, gfn + accessed, ACCESSED)

    @trace.hot(
        trace.Side.VM, before=(trace.Instrument.page_mapped, lambda to, _, gfn, pfn, **__: to.page_mapped(gfn, pfn))
    )
    def map_page(self, gfn: Gfn, pfn: HostPfn, *, writable: bool = True, uncached: bool = False) -> None:
        """`map_run` of one page that is demanded: the usual fault."""
        assert 0 <= pfn < MAX_PFN, pfn
        flags = _DEMANDED_WRITABLE if writable else _DEMANDED
        if uncached:
            flags &= ~MEMORY_TYPE_MASK
        base = self._bases.get(gfn >> LEVEL_BITS)
        if base:  # as a rule the table is known and the entry is free
            index, words = base + (gfn & INDEX), self._words
            if not words[index]:
                words[index] = pfn << PFN_SHIFT | flags
                self._count[base >> LEVEL_BITS] += 1
                self._small_count += 1
                return
        elif not self._leaf_table(gfn):
            self._grow(gfn, gfn + 1)
        self._set_leaf(gfn, pfn, flags)

    def map_large(
        self,
        gfn: Gfn,
        pfn: HostPfn,
        order: int,
        *,
        writable: bool = True,
        accessed: bool = False,
        uncached: bool = False,
    ) -> None:
        """One leaf of 2 MiB (order 9) or 1 GiB (18), in the place of what smaller ones show of the same frames.

        gfn and pfn are aligned to it. Flags of leaves that it replaces, or of a leaf that is there already, stay.
        Refused ENOMEM when the tables run out: nothing was mapped.
        """
        if trace.vm is not None:
            trace.vm.large_page_mapped(gfn, pfn, order)
        level = order // LEVEL_BITS
        assert level in (1, 2), order
        size = leaf_pages(level)
        assert 0 <= gfn < MAX_GFN_EPT and gfn % size == 0, (gfn, order)
        assert 0 <= pfn <= MAX_PFN - size and pfn % size == 0, (pfn, order)
        flags = _LEAF_FLAGS | LARGE | (WRITE if writable else 0) | (ACCESSED if accessed else 0)
        if uncached:
            flags &= ~MEMORY_TYPE_MASK
        table = self._table_for_leaf(gfn, level)
        if not table:
            self._keep_large(gfn, pfn, flags)
            return
        word = (table << LEVEL_BITS) + (gfn >> level * LEVEL_BITS & INDEX)
        entry = self._words[word]
        if entry & LARGE:
            self._keep_large(gfn, pfn, flags)
            return
        if entry:
            flags |= self._flags_below(gfn, pfn, size, flags & WRITE)
            self._give_back(entry >> PFN_SHIFT, level - 1)
            self.merge_count += 1
        else:
            self._count[table] += 1
        self._words[word] = pfn << PFN_SHIFT | flags
        self._large_counts[level] += 1

    def _keep_large(self, gfn: Gfn, pfn: HostPfn, flags: int) -> None:
        """The large leaf over gfn shows it already: it can only become ACCESSED."""
        entry, (word, _) = self.walk(gfn), self._large_leaf(gfn)
        assert entry >> PFN_SHIFT == pfn, (gfn, entry >> PFN_SHIFT, pfn)
        self._words[word] |= flags & ACCESSED

    def _flags_below(self, gfn: Gfn, pfn: HostPfn, size: int, write: int) -> int:
        """TOUCHED and DIRTY of all leaves in the place of one large leaf; they have its frames and permission."""
        found = 0
        for at, low, high, level in self._spans(gfn, gfn + size):
            entries = self._array[low:high]
            frames = (RAMP[: high - low] << np.uint64(level * LEVEL_BITS)) + np.uint64(pfn + at - gfn << PFN_SHIFT)
            other = (entries ^ frames) & ~np.uint64(_FLAGS_MASK & ~WRITE) != np.uint64(write)
            assert not (other & (entries != 0)).any(), f"a page of [{gfn}, {gfn + size}) has another frame"
            found |= int(np.bitwise_or.reduce(entries))
        return found & (TOUCHED | DIRTY)

    def _set_leaf(self, gfn: Gfn, pfn: HostPfn, flags: int) -> None:
        base = self._bases.get(gfn >> LEVEL_BITS) or self._leaf_table(gfn)
        if not base:
            self._keep_large(gfn, pfn, flags)
            return
        index, words = base + (gfn & INDEX), self._words
        entry = words[index]
        if entry:
            assert entry >> PFN_SHIFT == pfn, (gfn, entry >> PFN_SHIFT, pfn)
            words[index] = entry | flags & (ACCESSED | WRITE)
            return
        words[index] = pfn << PFN_SHIFT | flags
        self._count[base >> LEVEL_BITS] += 1
        self._small_count += 1

    def _map_pages(self, gfn: Gfn, pfn: HostPfn, count: int, flags: int) -> None:
        for start, low, high, level in self._spans(gfn, gfn + count):
            if level:
                for word in range(low, high):
                    expected = pfn + start - gfn + (word - low) * leaf_pages(level)
                    assert self._words[word] >> PFN_SHIFT == expected, f"a large leaf at {start} has another frame"
                continue
            entries = self._array[low:high]
            first = np.uint64(pfn + start - gfn << PFN_SHIFT | flags)
            if any(self._count[low >> LEVEL_BITS : (high - 1 >> LEVEL_BITS) + 1]) and entries.any():
                new = RAMP[: high - low] + first
                missing = entries == 0
                same = (entries ^ new) >> np.uint64(PFN_SHIFT) == 0
                assert (same | missing).all(), f"a page of [{start}, {start + high - low}) has another frame"
                np.copyto(entries, new, where=missing)
            else:
                np.add(RAMP[: high - low], first, out=entries)
            self._settle(low, high, ENTRIES)

    # -- unmapping -----------------------------------------------------------------------------------------

    def zap(self, start: Gfn, end: Gfn) -> list[Run]:
        """Remove every leaf in [start, end); the runs that were there, in order.

        A large leaf that reaches beyond the range is split first. When the tables run out it goes as a whole
        instead, as in KVM, and so do the runs: what is mapped no more can be faulted in again.
        """
        runs: list[Run] = []
        beyond: list[Run] = []
        if self._has_large and start < end:
            runs, beyond = self._split_at(start), self._split_at(end)
        if end - start == 1 and not runs and not beyond:
            return self._zap_page(start)
        before = self._small_count
        for gfn, low, high, level in self._spans(start, end):
            self._collect(runs, gfn, low, high, level)
            self._array[low:high].fill(0)
            if level:
                self._forget_large(low, high - low, level)
            else:
                self._settle(low, high, 0)
        self.zapped_leaves[0] += before - self._small_count
        for run in beyond:
            append_run(runs, *run)
        self._prune_removed(runs)
        return runs

    def _zap_page(self, gfn: Gfn) -> list[Run]:
        base = self._leaf_table(gfn)
        entry = self._words[base + (gfn & INDEX)]
        if not entry:
            return []
        self._words[base + (gfn & INDEX)] = 0
        self._count[base >> LEVEL_BITS] -= 1
        self._small_count -= 1
        self.zapped_leaves[0] += 1
        if not self._count[base >> LEVEL_BITS]:
            self._drop_path(gfn)
        return [(gfn, entry_pfn(entry), 1)]

    def zap_untouched(self, start: Gfn, end: Gfn) -> list[Run]:
        """Remove the leaves in [start, end) that were granted and never touched; their runs, in order, as `zap`."""
        runs: list[Run] = []
        beyond: list[Run] = []
        if self._has_large and start < end:
            if not self.walk(start) & TOUCHED:
                runs = self._split_at(start)
            if end < MAX_GFN_EPT and not self.walk(end) & TOUCHED:
                beyond = self._split_at(end)
        for gfn, low, high, level in self._spans(start, end):
            entries = self._array[low:high]
            untouched = (entries != 0) & (entries & np.uint64(TOUCHED) == 0)
            if not untouched.any():
                continue
            append_leaves(runs, gfn, untouched.nonzero()[0], entries, leaf_pages(level))
            entries[untouched] = 0
            if level:
                self._forget_large(low, int(np.count_nonzero(untouched)), level)
            else:
                before = self._small_count
                for table in range(low >> LEVEL_BITS, (high - 1 >> LEVEL_BITS) + 1):
                    self._recount(table)
                self.zapped_leaves[0] += before - self._small_count
        for run in beyond:
            append_run(runs, *run)
        self._prune_removed(runs)
        return runs

    def split_at(self, edges: list[Gfn]) -> None:
        """Let a leaf begin at each of these GFNs where one reaches over it. ENOMEM (Refused) when the tables run out:
        then nothing was split."""
        needed: set[tuple[int, int]] = set()
        for gfn in edges:
            _, level = self._large_leaf(gfn) if gfn < MAX_GFN_EPT else (0, 0)
            while level and gfn & leaf_pages(level) - 1:
                needed.add((level, gfn >> level * LEVEL_BITS))
                level -= 1
        if needed:
            low, high = min(edges), max(edges)
            self._check_available(len(needed), low, high)
            for gfn in edges:
                assert not self._split_at(gfn)

    def _split_at(self, gfn: Gfn) -> list[Run]:
        """Let a leaf begin at gfn where one reaches over it; the leaf that had to go, for want of a table."""
        if gfn >= MAX_GFN_EPT:
            return []
        word, level = self._large_leaf(gfn)
        while word and gfn & leaf_pages(level) - 1:
            if not self._available:
                entry = self._words[word]
                self._words[word] = 0
                self._forget_large(word, 1, level)
                return [(gfn & -leaf_pages(level), entry_pfn(entry), leaf_pages(level))]
            self._split(word, level)
            word, level = self._large_leaf(gfn)
        return []

    def _forget_large(self, word: int, count: int, level: int) -> None:
        """Count that so many leaves went from the table of this word."""
        self._count[word >> LEVEL_BITS] -= count
        self._large_counts[level] -= count
        self.zapped_leaves[level] += count

    def _prune_removed(self, runs: list[Run]) -> None:
        if runs:
            last_gfn, _, last_count = runs[-1]
            self._prune(runs[0][0], last_gfn + last_count)

    # -- many pages ----------------------------------------------------------------------------------------

    def mark_range(self, start: Gfn, end: Gfn, bits: int) -> None:
        """Set ACCESSED or DIRTY in every leaf that maps a page of [start, end)."""
        for _, low, high, _ in self._spans(start, end):
            entries = self._array[low:high]
            np.bitwise_or(entries, np.uint64(bits), out=entries, where=entries != 0)

    def protect(self, start: Gfn, end: Gfn) -> None:
        """Take WRITE from every leaf that maps a page of [start, end)."""
        for _, low, high, _ in self._spans(start, end):
            self._array[low:high] &= np.uint64(~WRITE & (1 << 64) - 1)

    def lookup(self, gfns: Signed | Words) -> Words:
        """Leaf entries of an array of GFNs, as `walk` gives them, of the same shape."""
        assert gfns.dtype in (np.int64, np.uint64), gfns.dtype
        flat = gfns.reshape(-1)
        assert not flat.size or int(flat.view(np.uint64).max()) < MAX_GFN_EPT, "a GFN is out of bounds"
        arena = self._array.view(np.int64)
        out = np.empty(flat.size, dtype=np.int64)
        find = self._lookup_large if self._has_large else _lookup_small
        for low in range(0, flat.size, SPAN_WORDS // 4):
            part = flat[low : low + SPAN_WORDS // 4].view(np.int64)
            out[low : low + SPAN_WORDS // 4] = find(arena, part)
        return out.view(np.uint64).reshape(gfns.shape)

    def _lookup_large(self, arena: Signed, gfns: Signed) -> Signed:
        """Where a level has large leaves, what met one goes on in table 0 while its entry is kept."""
        entries: Signed = arena[(ROOT << LEVEL_BITS) + (gfns >> TOP_LEVEL * LEVEL_BITS)]
        kept = np.zeros(gfns.size, dtype=np.int64)
        for level in range(TOP_LEVEL - 1, -1, -1):
            words = entries >> PFN_SHIFT << LEVEL_BITS
            words += gfns >> level * LEVEL_BITS & INDEX
            entries = arena[words]
            if self._large_counts[level]:
                large = entries & LARGE != 0
                own = entries + ((gfns & leaf_pages(level) - 1) << PFN_SHIFT)
                np.copyto(kept, own, where=large)
                entries[large] = 0
        entries |= kept
        return entries

    def first_missing(self, start: Gfn, end: Gfn) -> Gfn:
        """The first GFN of [start, end) that is not present; end when all are."""
        expected = start
        for gfn, low, high, level in self._spans(start, end):
            if level:
                if gfn > expected:
                    break
                expected = gfn + (high - low << level * LEVEL_BITS)
                continue
            if gfn != expected:
                break
            if min(self._count[low >> LEVEL_BITS : (high - 1 >> LEVEL_BITS) + 1]) < ENTRIES:
                present = self._array[low:high] != 0
                hole = int(present.argmin())
                if not present[hole]:
                    return gfn + hole
            expected += high - low
        return min(expected, end)

    def next_present(self, gfn: Gfn) -> Gfn:
        """Where the first leaf at or after gfn may be: nothing is mapped in between. MAX_GFN_EPT: nowhere."""
        for at, _, _, _ in self._spans(gfn, MAX_GFN_EPT):
            return max(gfn, at)
        return MAX_GFN_EPT

    def touched(self, start: Gfn, end: Gfn) -> list[GfnRange]:
        """GFN ranges of [start, end) whose leaves are present and were ever ACCESSED, merged, in order."""
        return self._ranges_with(TOUCHED, start, end)

    def accessed(self, start: Gfn, end: Gfn) -> list[GfnRange]:
        """GFN ranges of [start, end) whose leaves are present and ACCESSED since `age`, merged, in order."""
        return self._ranges_with(ACCESSED, start, end)

    def age(self, start: Gfn, end: Gfn) -> None:
        """No leaf of [start, end) is ACCESSED; those that were are AGED. The caller flushes the TLBs."""
        for _, low, high, _ in self._spans(start, end):
            entries = self._array[low:high]
            entries |= (entries & np.uint64(ACCESSED)) << np.uint64(AGED.bit_length() - ACCESSED.bit_length())
            entries &= np.uint64(~ACCESSED & (1 << 64) - 1)

    def _ranges_with(self, bits: int, start: Gfn, end: Gfn) -> list[GfnRange]:
        ranges: list[GfnRange] = []
        for gfn, low, high, level in self._spans(start, end):
            flags = self._array[low:high] & np.uint64(bits)
            # A range begins and ends where the bit differs from its neighbour's; outside it is clear.
            edges: Any = np.flatnonzero(np.diff(flags != 0, prepend=False, append=False)) * leaf_pages(level) + gfn
            for first, last in edges.reshape(-1, 2).tolist():
                if ranges and ranges[-1][1] == first:
                    ranges[-1] = (ranges[-1][0], min(last, end))
                else:
                    ranges.append((max(first, start), min(last, end)))
        return ranges

    def runs(self, start: Gfn, end: Gfn) -> Iterator[Run]:
        """The pages present in [start, end), merged whatever their leaves, in order."""
        held: list[Run] = []
        for _, run in self.leaf_runs(start, end):
            append_run(held, *run)
            # The last one may go on in the next leaf.
            yield from held[:-1]
            del held[:-1]
        yield from held

    def leaf_runs(self, start: Gfn, end: Gfn) -> Iterator[tuple[int, Run]]:
        """(order, run) of the pages present in [start, end), merged where their leaves have one size, in order."""
        held: list[Run] = []
        order = 0
        for gfn, low, high, level in self._spans(start, end):
            if order != level * LEVEL_BITS:
                for run in held:
                    yield order, run
                held, order = [], level * LEVEL_BITS
            self._collect(held, gfn, low, high, level)
            if level:
                held[0], held[-1] = clip(held[0], start, end), clip(held[-1], start, end)
            # The last one may go on in the next span.
            for run in held[:-1]:
                yield order, run
            del held[:-1]
        for run in held:
            yield order, run

    def _collect(self, runs: list[Run], gfn: Gfn, low: int, high: int, level: int) -> None:
        """Append the runs of one span. The usual case, all present and one run, costs three passes."""
        entries = self._array[low:high]
        if level:
            append_leaves(runs, gfn, np.arange(high - low), entries, leaf_pages(level))
            return
        if min(self._count[low >> LEVEL_BITS : (high - 1 >> LEVEL_BITS) + 1]) == ENTRIES:
            offsets = entries - RAMP[: high - low]
            first = int(entries[0]) & ~_FLAGS_MASK
            if int(offsets.min()) >= first and int(offsets.max()) <= first | _FLAGS_MASK:
                append_run(runs, gfn, entry_pfn(first), high - low)
                return
        append_leaves(runs, gfn, entries.nonzero()[0], entries, 1)


def _lookup_small(arena: Signed, gfns: Signed) -> Signed:
    """The way of tables that have no large leaf."""
    entries: Signed = arena[(ROOT << LEVEL_BITS) + (gfns >> TOP_LEVEL * LEVEL_BITS)]
    for level in range(TOP_LEVEL - 1, -1, -1):
        entries >>= PFN_SHIFT
        entries <<= LEVEL_BITS
        entries += gfns >> level * LEVEL_BITS & INDEX
        entries = arena[entries]
    return entries
