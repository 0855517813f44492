"""The page table of one file: Pgoff -> Pfn.

Nodes cover a gig (2^18 pages) or a chunk (512 pages) of the file:

    gig or chunk in contiguous frames    one int, the first frame
    any other chunk                      array of 512 uint32: frame + 1, or 0 for a hole

and holes have none, so a mapped page costs 4.4 bytes at most and a large frame next to nothing. A gig is
broken up into chunks, a chunk into an array, when a part of it goes; an array whose frames become contiguous
is an int again. Ranges may be 2^51 pages long: work grows with the nodes in a range, not with the range.

While somebody looks at all tables as they were at one moment (TablesThen), a table that is changed is kept first, and
arrays are replaced, not changed. Reading and changing the three forms stay in one place: hence the length.
"""

import sys
from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from memfsd.uapi.units import ORDER_1G, ORDER_2M, PGOFF_END, Pfn, Pgoff

Run = tuple[Pgoff, Pfn, int]
"""(first page, first frame, pages): contiguous in both."""
Entries: TypeAlias = "array[int]"
Node: TypeAlias = "int | Entries"


class Published(Protocol):
    """What follows every change of a table."""

    def show(self, pgoff: int, pfn: int, count: int) -> None: ...
    def hide(self, pgoff: int, count: int) -> None: ...


_CHUNK = 1 << ORDER_2M
_GIG = 1 << ORDER_1G
_LAST = _CHUNK - 1
_SHORT = 1
"""Arrays, of up to 256 runs each, whose pages are unmapped at once."""
_GIGS = 64
_MANY = 256
"""Nodes that are unmapped, or shown, at once."""
_FEW = 4
"""Nodes that are copied as numbers: some microseconds, and nothing for the collector of garbage."""
_TAKEN = 64
_PART_EXTENTS = 32
_PART_PIECES = 128
_PART_PAGES = 1 << 22
"""What one step looks at: less than a millisecond with Service.lock held."""
_NOTHING = array("I", bytes(4 * _CHUNK))
_COUNTING = np.arange(_CHUNK, dtype=np.uint32)


class TablesThen:
    """All page tables as they are when it is made, with Service.lock held, for who takes one after the other: with the
    lock held again each time, until `close`."""

    made = 0
    """How many there have been: the number of the last one."""

    def __init__(self) -> None:
        self._kept: dict[FilePages, FilePages] = {}
        TablesThen.made += 1
        self.number = TablesThen.made
        _open.append(self)

    def of(self, table: "FilePages") -> "FilePages":
        """A copy that stays as it was then, until `close`."""
        if table in self._kept:
            return self._kept[table]
        if not table.page_count:  # as a rule of the three or four that a sealed file has
            self._kept[table] = _EMPTY
            return _EMPTY
        return table.keep_in(self)

    def keep(self, table: "FilePages", copy: "FilePages") -> None:
        self._kept[table] = copy

    def has(self, table: "FilePages") -> bool:
        return table in self._kept

    def seen(self, table: "FilePages") -> None:
        """It has been looked at, as it was then: it need not be kept."""
        if _open == [self]:
            table.kept_until = self.number
        elif table not in self._kept:
            self._kept[table] = _EMPTY

    def peek(self, table: "FilePages") -> "FilePages":
        """As it was then, for a look with the lock held."""
        return self._kept.get(table, table)

    def close(self) -> None:
        """Also without the lock."""
        _open.remove(self)


_open: list[TablesThen] = []


class FilePages:
    """Which frames hold the pages of a file. Pages and counts are in 4 KiB; ranges are half-open.

    The table must not change while an iterator of it is in use.
    """

    __slots__ = ("_chunks", "_gigs", "_node_counts", "_places", "kept_until", "page_count", "published")

    def __init__(self) -> None:
        self.page_count = 0
        """Mapped pages."""
        self.published: Published | None = None
        """Follows what is mapped and unmapped; a copy has none, and so must a table that is detached or taken from."""
        self._chunks: dict[int, Node] = {}
        self._gigs: dict[int, int] = {}
        self._node_counts: dict[int, int] = {}
        """By the number of a gig: its nodes, if it has any."""
        self._places: list[int] = []
        """The numbers of these gigs, sorted."""
        self.kept_until = TablesThen.made
        """The last TablesThen that has it, or that was there before it."""

    def keep_in(self, then: TablesThen) -> "FilePages":
        """A copy for it, which has the same arrays."""
        other = FilePages.__new__(FilePages)  # made once for each of very many files
        other._chunks, other._gigs, other.page_count = self._chunks.copy(), self._gigs.copy(), self.page_count
        other._node_counts, other._places = self._node_counts.copy(), self._places[:]
        other.published, other.kept_until = None, TablesThen.made
        then.keep(self, other)
        return other

    def _keep(self) -> None:
        """Before it changes, while anybody looks at the tables as they were."""
        for then in _open[:]:
            if then.number > self.kept_until and not then.has(self):
                self.keep_in(then)
        self.kept_until = TablesThen.made

    def _replace(self, number: int, chunk: Entries) -> Entries:
        """A chunk that may be changed: others have the one that was there."""
        self._keep()
        own = self._chunks[number] = chunk[:]
        return own

    def lookup(self, pgoff: int) -> Pfn | None:
        chunk = self._chunks.get(pgoff >> 9)
        if isinstance(chunk, array):
            entry = chunk[pgoff & _LAST]
            return Pfn(entry - 1) if entry else None
        if chunk is not None:
            return Pfn(chunk + (pgoff & _LAST))
        base = self._gigs.get(pgoff >> 18)
        return None if base is None else Pfn(base + (pgoff & (_GIG - 1)))

    def run_at(self, pgoff: int, max_pages: int) -> tuple[Pfn, int] | None:
        """(frame, pages): the longest run from pgoff, at most max_pages. None at a hole."""
        chunk = self._chunks.get(pgoff >> 9)
        if isinstance(chunk, array) and not chunk[pgoff & _LAST]:
            return None
        first = self.lookup(pgoff)
        if first is None:
            return None
        count = 1
        while count < max_pages:
            at = pgoff + count
            chunk = self._chunks.get(at >> 9)
            if isinstance(chunk, array):
                index = at & _LAST
                want = min(_CHUNK - index, max_pages - count)
                found = _counting(chunk, index, first + count + 1, want)
                count += found
                if found < want:
                    break
            elif self.lookup(at) == first + count:
                size = _GIG if chunk is None else _CHUNK
                count += size - (at & (size - 1))
            else:
                break
        return first, min(count, max_pages)

    def extents(self, start: int, end: int) -> Iterator[Run]:
        """Mapped runs of [start, end) in order, as long as they can be."""
        return _merged(self._pieces(start, end))

    def part(self, start: int, end: int) -> tuple[list[Run], Pgoff]:
        """The first extents of [start, end) that one step should look at, and up to where these are all."""
        first = self.first_mapped(start, end)
        if first is None:
            return [], Pgoff(end)
        stop = min(end, (first & -_GIG) + _PART_PAGES)  # where no gig has to be broken up
        pieces = list(islice(self._pieces(first, stop), _PART_PIECES))
        runs = list(islice(_merged(iter(pieces)), _PART_EXTENTS))
        is_all = len(pieces) < _PART_PIECES and len(runs) < _PART_EXTENTS
        return runs, Pgoff(stop if is_all else runs[-1][0] + runs[-1][2])

    def frames(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """(pages, frames) of all that is mapped, in order and in parts of bounded length."""
        pgoffs: list[NDArray[np.int64]] = []
        pfns: list[NDArray[np.int64]] = []
        for first, size, node in self._nodes(0, PGOFF_END):
            mapped = np.arange(size) if isinstance(node, int) else np.flatnonzero(_view(node))
            pgoffs.append(mapped + first)
            pfns.append(mapped + node if isinstance(node, int) else _view(node)[mapped].astype(np.int64) - 1)
            if size == _GIG or len(pfns) >= _MANY:
                yield np.concatenate(pgoffs), np.concatenate(pfns)
                pgoffs, pfns = [], []
        if pfns:
            yield np.concatenate(pgoffs), np.concatenate(pfns)

    def few(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """(pages, frames) of all that is mapped, if these are some chunks only."""
        if self._gigs or len(self._chunks) > _FEW:
            return None
        pgoffs, pfns = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
        for number, node in sorted(self._chunks.items()):
            mapped = np.arange(_CHUNK) if isinstance(node, int) else np.flatnonzero(_view(node))
            pgoffs.append(mapped + (number << 9))
            pfns.append(mapped + node if isinstance(node, int) else _view(node)[mapped].astype(np.int64) - 1)
        return np.concatenate(pgoffs), np.concatenate(pfns)

    def holes(self, start: int, end: int) -> Iterator[tuple[Pgoff, Pgoff]]:
        """Unmapped ranges of [start, end) in order, as long as they can be."""
        at = start
        for pgoff, _, count in self._pieces(start, end):
            if at < pgoff:
                yield Pgoff(at), pgoff
            at = pgoff + count
        if at < end:
            yield Pgoff(at), Pgoff(end)

    def some_holes(self, start: int, end: int, max_holes: int) -> tuple[list[tuple[Pgoff, Pgoff]], Pgoff]:
        """The first holes of [start, end) that one step finds, and up to where these are all."""
        found: list[tuple[Pgoff, Pgoff]] = []
        at = start
        for pgoff, _, count in islice(self._pieces(start, end), _PART_PIECES):
            if at < pgoff:
                found.append((Pgoff(at), pgoff))
                if len(found) == max_holes:
                    return found, pgoff
            at = pgoff + count
        if at < end and self.first_mapped(at, end) is None:
            return [*found, (Pgoff(at), Pgoff(end))], Pgoff(end)
        return found, Pgoff(at)

    def hole_at(self, pgoff: int, max_pages: int) -> int:
        """How many pages from pgoff on are unmapped, at most max_pages; 0 if it is mapped."""
        assert max_pages > 0
        if self.lookup(pgoff) is not None:
            return 0
        chunk, index = self._chunks.get(pgoff >> 9), pgoff & _LAST
        last = index + max_pages
        if last <= _CHUNK and not isinstance(chunk, int):  # as a rule, and cheap
            if chunk is None or chunk[index:last] == _NOTHING[:max_pages]:
                return max_pages
            return next(offset for offset in range(max_pages) if chunk[index + offset])
        found = self.first_mapped(pgoff, pgoff + max_pages) if max_pages > 1 else None
        return max_pages if found is None else found - pgoff

    def gap_at(self, pgoff: int, max_pages: int) -> tuple[int, Pfn | None]:
        """For a hole: how long it is, as hole_at, and the frame after that of the page before, if that has one."""
        chunk, index = self._chunks.get(pgoff >> 9), pgoff & _LAST
        last = index + max_pages
        # One look at one array, for writes that append.
        if isinstance(chunk, array) and index and last <= _CHUNK and chunk[index:last] == _NOTHING[:max_pages]:
            return max_pages, Pfn(chunk[index - 1]) if chunk[index - 1] else None
        before = self.lookup(pgoff - 1) if pgoff else None
        return self.hole_at(pgoff, max_pages), None if before is None else Pfn(before + 1)

    def first_mapped(self, start: int, end: int) -> Pgoff | None:
        """The first mapped page of [start, end)."""
        for first, size, node in self._nodes(start, end):
            low, high = max(start, first), min(end, first + size)
            if isinstance(node, int):
                return Pgoff(low)
            mapped = np.flatnonzero(_view(node)[low - first : high - first])
            if len(mapped):
                return Pgoff(low + int(mapped[0]))
        return None

    def next_data(self, pgoff: int) -> Pgoff | None:
        """The first mapped page from pgoff on (SEEK_DATA)."""
        return self.first_mapped(pgoff, PGOFF_END)

    def mapped_until(self, pgoff: int, max_nodes: int) -> Pgoff:
        """Up to where all pages from pgoff on are mapped (SEEK_HOLE), as far as so many nodes reach."""
        at = pgoff
        for _ in range(max_nodes):
            chunk = self._chunks.get(at >> 9)
            if chunk is None:
                if at >> 18 not in self._gigs:
                    break
                at = (at | (_GIG - 1)) + 1
            elif isinstance(chunk, int):
                at = (at | _LAST) + 1
            else:
                index = at & _LAST
                hole = np.flatnonzero(_view(chunk)[index:] == 0)
                if len(hole):
                    return Pgoff(at + int(hole[0]))
                at = (at | _LAST) + 1
        return Pgoff(at)

    def map_run(self, pgoff: int, pfn: int, count: int) -> None:
        """Map count pages from pgoff to the frames from pfn. They must be holes."""
        assert 0 <= pgoff < pgoff + count <= PGOFF_END
        if _open:
            self._keep()
        if (pgoff & _LAST) + count < _CHUNK:
            self._map_pages(pgoff, pfn, count)
        else:
            self._map(pgoff, pfn, count)
        self.page_count += count
        if self.published is not None:
            self.published.show(pgoff, pfn, count)

    def map_page(self, pgoff: int, pfn: int) -> None:
        """`map_run` of one page: the usual grant."""
        chunk, index = self._chunks.get(pgoff >> 9), pgoff & _LAST
        if not isinstance(chunk, array):
            self.map_run(pgoff, pfn, 1)
            return
        assert not chunk[index], f"page {pgoff:#x} is mapped"
        if _open:
            chunk = self._replace(pgoff >> 9, chunk)
        chunk[index] = pfn + 1
        self.page_count += 1
        if self.published is not None:
            self.published.show(pgoff, pfn, 1)
        if chunk[0] and chunk[_LAST]:
            self._contract(pgoff >> 9, chunk)

    def unmap(self, start: int, end: int) -> list[Run]:
        """Take the pages of [start, end) out; the runs that were mapped, in order."""
        if end - start == 1 and isinstance(chunk := self._chunks.get(start >> 9), array):
            return self._unmap_page(start, chunk)
        if _open:
            self._keep()
        runs = list(self.extents(start, end))
        for first, size, node in list(self._nodes(start, end)):
            low, high = max(start, first), min(end, first + size)
            if isinstance(node, int):
                self._remove(first, size)
                if first < low:
                    self._map(first, node, low - first)
                if high < first + size:
                    self._map(high, node + high - first, first + size - high)
            else:
                node = self._replace(first >> 9, node) if _open else node
                _view(node)[low - first : high - first] = 0
                if node == _NOTHING:
                    self._remove(first, size)
        self.page_count -= sum(count for _, _, count in runs)
        if self.published is not None:
            for pgoff, _, count in runs:
                self.published.hide(pgoff, count)
        return runs

    def is_long(self, start: int, end: int) -> bool:
        """Whether to unmap [start, end) could take more than some milliseconds: then `detach` all, and `take` in parts;
        or `part` by part."""
        if self._gigs_in(start, end) > _GIGS:
            return True
        arrays = 0
        for index, (_, _, node) in enumerate(self._nodes(start, end)):
            arrays += not isinstance(node, int)
            if arrays > _SHORT or index >= _MANY:
                return True
        return False

    def _gigs_in(self, start: int, end: int) -> int:
        """Gigs of [start, end) that have nodes."""
        return bisect_left(self._places, end - 1 >> 18) - bisect_left(self._places, start >> 18)

    def detach(self) -> "FilePages":
        """Take all pages out, as a table of their own."""
        assert self.published is None
        if _open:
            self._keep()
        other = FilePages()
        other._chunks, other._gigs, other.page_count = self._chunks, self._gigs, self.page_count
        other._node_counts, other._places = self._node_counts, self._places
        self._chunks, self._gigs, self._node_counts, self._places, self.page_count = {}, {}, {}, [], 0
        return other

    def take(self) -> list[Run]:
        """Take some nodes out: their runs, in order, about as many as can be freed in a millisecond. [] when empty."""
        assert self.published is None
        if _open:
            self._keep()
        runs: list[Run] = []
        while len(runs) < _TAKEN and (self._chunks or self._gigs):
            table, bits = (self._chunks, 9) if self._chunks else (self._gigs, 18)
            number, node = table.popitem()  # the last one: to take from the front of a dict gets slow
            first, size = number << bits, 1 << bits
            self._uncount(first >> 18)
            if isinstance(node, int):
                runs.append((Pgoff(first), Pfn(node), size))
            else:
                runs += _array_runs(node, 0, size, first)
        self.page_count -= sum(count for _, _, count in runs)
        return list(_merged(iter(sorted(runs))))

    def count_mapped(self, start: int, end: int) -> int:
        """Mapped pages of [start, end), in a step for each node."""
        count, _ = self.count_some(start, end, sys.maxsize)
        return count

    def count_some(self, start: int, end: int, max_nodes: int) -> tuple[int, int]:
        """Mapped pages of [start, end), as far as so many nodes reach; and how far that is."""
        count, seen, reached = 0, 0, start
        for first, size, node in islice(self._nodes(start, end), max_nodes):
            low, high = max(start, first), min(end, first + size)
            mapped = high - low if isinstance(node, int) else np.count_nonzero(_view(node)[low - first : high - first])
            count, seen, reached = count + int(mapped), seen + 1, high
        return count, reached if seen == max_nodes else end

    def _unmap_page(self, pgoff: int, chunk: Entries) -> list[Run]:
        entry = chunk[pgoff & _LAST]
        if not entry:
            return []
        if _open:
            chunk = self._replace(pgoff >> 9, chunk)
        chunk[pgoff & _LAST] = 0
        if chunk == _NOTHING:
            self._remove(pgoff & -_CHUNK, _CHUNK)
        self.page_count -= 1
        if self.published is not None:
            self.published.hide(pgoff, 1)
        return [(Pgoff(pgoff), Pfn(entry - 1), 1)]

    def _map(self, pgoff: int, pfn: int, count: int) -> None:
        end = pgoff + count
        while pgoff < end:
            if pgoff & _LAST or end - pgoff < _CHUNK:
                part = min(_CHUNK - (pgoff & _LAST), end - pgoff)
                self._map_pages(pgoff, pfn, part)
            elif pgoff & (_GIG - 1) or end - pgoff < _GIG:
                part = min(_GIG - (pgoff & (_GIG - 1)), end - pgoff) & -_CHUNK
                self._map_chunks(pgoff, pfn, part)
            else:
                part = _GIG
                assert pgoff >> 18 not in self._node_counts, f"pages of {pgoff:#x}+{_GIG:#x} are mapped"
                self._put(pgoff, _GIG, pfn)
            pgoff += part
            pfn += part

    def _map_pages(self, pgoff: int, pfn: int, count: int) -> None:
        """Pages of one chunk."""
        number, index = pgoff >> 9, pgoff & _LAST
        chunk = self._chunks.get(number)
        if chunk is None:
            assert pgoff >> 18 not in self._gigs
            chunk = _NOTHING[:]
            self._put(pgoff & -_CHUNK, _CHUNK, chunk)
        elif _open and not isinstance(chunk, int):
            chunk = self._replace(number, chunk)
        assert not isinstance(chunk, int), f"page {pgoff:#x} is mapped"
        last = index + count
        assert chunk[index:last] == _NOTHING[:count], f"pages of {pgoff:#x}+{count:#x} are mapped"
        chunk[index:last] = array("I", range(pfn + 1, pfn + 1 + count))
        if chunk[0]:
            self._contract(number, chunk)

    def _contract(self, number: int, chunk: Entries) -> None:
        """Contiguous frames are one int again."""
        first = chunk[0]
        if chunk[_LAST] == first + _LAST and _counting(chunk, 0, first, _CHUNK) == _CHUNK:
            self._chunks[number] = first - 1

    def _map_chunks(self, pgoff: int, pfn: int, count: int) -> None:
        """Whole chunks of one gig."""
        place, first, number = pgoff >> 18, pgoff >> 9, count >> 9
        assert place not in self._gigs
        numbers = range(first, first + number)
        assert self._chunks.keys().isdisjoint(numbers), f"pages of {pgoff:#x}+{count:#x} are mapped"
        self._chunks.update(zip(numbers, range(pfn, pfn + count, _CHUNK), strict=True))
        self._add_nodes(place, number)

    def _put(self, first: int, size: int, node: Node) -> None:
        """A node where there is none."""
        place = first >> 18
        if size == _GIG and isinstance(node, int):
            self._gigs[place] = node
        else:
            self._chunks[first >> 9] = node
        self._add_nodes(place, 1)

    def _add_nodes(self, place: int, count: int) -> None:
        """A gig has so many more."""
        counts = self._node_counts
        if place in counts:
            counts[place] += count
        else:
            counts[place] = count
            insort(self._places, place)

    def _remove(self, first: int, size: int) -> None:
        if size == _GIG:
            del self._gigs[first >> 18]
        else:
            del self._chunks[first >> 9]
        self._uncount(first >> 18)

    def _uncount(self, place: int) -> None:
        """A gig has a node less."""
        if self._node_counts[place] > 1:
            self._node_counts[place] -= 1
        else:
            del self._node_counts[place]
            del self._places[bisect_left(self._places, place)]

    def _nodes(self, start: int, end: int) -> Iterator[tuple[int, int, Node]]:
        """(first page, pages, node) of the nodes that overlap [start, end), in order."""
        if end - start <= _GIG:
            yield from self._nodes_in(start, end)
            return
        places = self._places
        for at in range(bisect_left(places, start >> 18), len(places)):
            first = places[at] << 18
            if first >= end:
                break
            yield from self._nodes_in(max(start, first), min(end, first + _GIG))

    def _nodes_in(self, start: int, end: int) -> Iterator[tuple[int, int, Node]]:
        """`_nodes` of a gig or less: looks for each chunk."""
        chunks, at = self._chunks, start
        while at < end:
            place = at >> 18
            stop = min(end, place + 1 << 18)
            if place in self._gigs:
                yield place << 18, _GIG, self._gigs[place]
            else:
                for number in range(at >> 9, (stop - 1 >> 9) + 1):
                    node = chunks.get(number)
                    if node is not None:
                        yield number << 9, _CHUNK, node
            at = stop

    def _pieces(self, start: int, end: int) -> Iterator[Run]:
        """Mapped runs of [start, end), cut where a node ends."""
        for first, size, node in self._nodes(start, end):
            low, high = max(start, first), min(end, first + size)
            if isinstance(node, int):
                yield Pgoff(low), Pfn(node + low - first), high - low
            else:
                yield from _array_runs(node, low - first, high - first, first)


_EMPTY = FilePages()
"""A copy of any table that was."""


def _view(chunk: Entries) -> NDArray[np.uint32]:
    return np.frombuffer(chunk, np.uint32)


def _counting(chunk: Entries, index: int, value: int, want: int) -> int:
    """How many of the `want` entries from index on are value, value + 1, ..."""
    if chunk[index] != value:
        return 0
    if want == 1 or chunk[index + 1] != value + 1:
        return 1
    same = _view(chunk)[index : index + want] == _COUNTING[:want] + value
    return want if same.all() else int(same.argmin())


def _array_runs(chunk: Entries, low: int, high: int, first: int) -> Iterator[Run]:
    """Mapped runs of the entries [low, high) of a chunk whose first page is `first`."""
    if high - low == 1:
        if chunk[low]:
            yield Pgoff(first + low), Pfn(chunk[low] - 1), 1
        return
    entries = _view(chunk)[low:high]
    mapped = entries.nonzero()[0]
    if len(mapped) < 2:
        for index in mapped.tolist():
            yield Pgoff(first + low + index), Pfn(int(entries[index]) - 1), 1
        return
    found = entries[mapped]
    ends = ((mapped[1:] != mapped[:-1] + 1) | (found[1:] != found[:-1] + 1)).nonzero()[0] + 1
    edges = [0, *ends.tolist(), len(mapped)]
    at, pfn = mapped[edges[:-1]].tolist(), found[edges[:-1]].tolist()
    for run, (start, end) in enumerate(pairwise(edges)):
        yield Pgoff(first + low + at[run]), Pfn(pfn[run] - 1), end - start


def _merged(pieces: Iterator[Run]) -> Iterator[Run]:
    held = next(pieces, None)
    if held is None:
        return
    pgoff, pfn, count = held
    for next_pgoff, next_pfn, more in pieces:
        if next_pgoff == pgoff + count and next_pfn == pfn + count:
            count += more
        else:
            yield pgoff, pfn, count
            pgoff, pfn, count = next_pgoff, next_pfn, more
    yield pgoff, pfn, count
