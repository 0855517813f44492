"""FilePages against a plain dict of pages, under random operations around the edges of its nodes."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memfsd.core.memory.large import count_cut, is_empty, place_of, whole_order
from memfsd.core.memory.page_table import FilePages
from memfsd.uapi.units import ORDER_2M, PGOFF_END

CHUNK = 512
GIG = 1 << 18
BASES = [0, CHUNK, 3 * CHUNK, GIG - 2 * CHUNK, GIG, PGOFF_END - 4 * CHUNK]
PLACES = st.builds(int.__add__, st.sampled_from(BASES), st.integers(0, 2 * CHUNK))
COUNTS = st.one_of(st.integers(1, 9), st.integers(1, 1100), st.sampled_from([CHUNK, 2 * CHUNK]))


class FilePagesMachine(RuleBasedStateMachine):
    """The model maps page to frame. Frames follow pages, or start anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = FilePages()
        self.model: dict[int, int] = {}

    def runs(self, start: int, end: int) -> list[tuple[int, int, int]]:
        found: list[tuple[int, int, int]] = []
        for page in sorted(page for page in self.model if start <= page < end):
            frame = self.model[page]
            if found:
                first, base, count = found[-1]
                if (first + count, base + count) == (page, frame):
                    found[-1] = first, base, count + 1
                    continue
            found.append((page, frame, 1))
        return found

    @rule(start=PLACES, count=COUNTS, frame=st.none() | st.integers(0, 5000))
    def map_run(self, start: int, count: int, frame: int | None) -> None:
        """As much of the range as is a hole; without a frame it fits to what its neighbours have."""
        free = 0
        while free < count and start + free not in self.model and start + free < PGOFF_END:
            free += 1
        if free:
            pfn = start % GIG if frame is None else frame
            self.pages.map_run(start, pfn, free)
            self.model.update((start + i, pfn + i) for i in range(free))

    @rule(start=PLACES, count=COUNTS)
    def unmap(self, start: int, count: int) -> None:
        end = min(start + count, PGOFF_END)
        assert self.pages.unmap(start, end) == self.runs(start, end)
        for page in range(start, end):
            self.model.pop(page, None)

    @rule(start=PLACES)
    def truncate(self, start: int) -> None:
        assert self.pages.unmap(start, PGOFF_END) == self.runs(start, PGOFF_END)
        self.model = {page: frame for page, frame in self.model.items() if page < start}

    @rule(start=PLACES, count=COUNTS)
    def look(self, start: int, count: int) -> None:
        end = min(start + count, PGOFF_END)
        count = end - start
        assert self.pages.lookup(start) == self.model.get(start)
        runs = self.runs(start, end)
        assert list(self.pages.extents(start, end)) == runs
        at_start = runs[0][1:] if runs and runs[0][0] == start else None
        assert self.pages.run_at(start, count) == at_start
        hole = (runs[0][0] - start) if runs else count
        assert self.pages.hole_at(start, count) == hole

    @rule(start=PLACES, count=COUNTS)
    def large(self, start: int, count: int) -> None:
        """Large pages of 2 MiB: what core.memory.large says of them."""
        whole = {block for block in range(start >> 9, (start + count >> 9) + 1) if self.is_whole(block)}
        for page in (start, start + count - 1):
            assert whole_order(self.pages, page, ORDER_2M) == (ORDER_2M if page >> 9 in whole else 0)
            left = [at for at in range(page & -CHUNK, (page | CHUNK - 1) + 1) if at in self.model]
            assert is_empty(self.pages, page, ORDER_2M) == (not left)
            base = self.model[left[0]] - left[0] % CHUNK if left else -1
            assert place_of(self.pages, page, ORDER_2M) == (
                base + page % CHUNK if base >= 0 and base % CHUNK == 0 else None
            )
        edges = {at >> 9 for at in (start, start + count) if at % CHUNK}
        assert count_cut(self.pages, start, start + count, ORDER_2M) == len(edges & whole)

    def is_whole(self, block: int) -> bool:
        frames = [self.model.get(block * CHUNK + at) for at in range(CHUNK)]
        first = frames[0]
        return first is not None and first % CHUNK == 0 and frames == list(range(first, first + CHUNK))

    @rule(start=PLACES)
    def seek(self, start: int) -> None:
        data = min((page for page in self.model if page >= start), default=None)
        assert self.pages.next_data(start) == data
        hole = start
        while hole in self.model:
            hole += 1
        assert self.pages.mapped_until(start, 1 << 12) == hole

    @rule(start=PLACES, end=PLACES)
    def holes(self, start: int, end: int) -> None:
        expected = []
        at = start
        for first, _, count in self.runs(start, end):
            if at < first:
                expected.append((at, first))
            at = first + count
        if at < end:
            expected.append((at, end))
        assert list(self.pages.holes(start, end)) == expected

    @invariant()
    def agrees(self) -> None:
        assert self.pages.page_count == len(self.model)
        assert list(self.pages.extents(0, PGOFF_END)) == self.runs(0, PGOFF_END)


class GigMachine(RuleBasedStateMachine):
    """Whole gigs that are broken up; the model is a sorted list of disjoint runs."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = FilePages()
        self.pages.map_run(GIG - 700, 9, 2 * GIG + 1400)
        self.model = [(GIG - 700, 9, 2 * GIG + 1400)]

    @rule(start=st.integers(GIG - 800, 3 * GIG + 800), count=st.one_of(COUNTS, st.integers(1, 2 * GIG)))
    def unmap(self, start: int, count: int) -> None:
        end = start + count
        gone, left = [], []
        for first, frame, pages in self.model:
            low, high = max(first, start), min(first + pages, end)
            if low >= high:
                left.append((first, frame, pages))
                continue
            gone.append((low, frame + low - first, high - low))
            if first < low:
                left.append((first, frame, low - first))
            if high < first + pages:
                left.append((high, frame + high - first, first + pages - high))
        assert self.pages.unmap(start, end) == gone
        self.model = left

    @invariant()
    def agrees(self) -> None:
        assert list(self.pages.extents(0, PGOFF_END)) == self.model
        assert self.pages.page_count == sum(count for _, _, count in self.model)
        for first, frame, count in self.model:
            assert self.pages.run_at(first, PGOFF_END) == (frame, count)
            assert self.pages.mapped_until(first, 1 << 12) == first + count


TestFilePages = FilePagesMachine.TestCase
TestGigs = GigMachine.TestCase
TestFilePages.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True)
TestGigs.settings = settings(max_examples=25, stateful_step_count=12, deadline=None, derandomize=True)
