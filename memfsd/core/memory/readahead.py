"""How many pages one GET_PFN grants: grows while a guest touches memory in order, else one.

As the kernel's readahead: a fault where a granted run ended doubles the next run; a fault elsewhere starts a
new stream with one page. A few streams are remembered, so several vCPUs do not spoil each other's order.
"""

from memfsd.uapi.limits import MAX_AHEAD_PAGES

_STREAMS = 16


class Readahead:
    """The access pattern of one sealed file."""

    __slots__ = ("_streams",)

    def __init__(self) -> None:
        self._streams: dict[int, int] = {}
        """Where a stream will go on -> the run it was granted last (pages). Oldest first."""

    def wish(self, pgoff: int) -> int:
        """Pages to grant for a fault at pgoff; `granted` reports what came of it."""
        last = self._streams.pop(pgoff, 0)
        return min(last * 2, MAX_AHEAD_PAGES) if last else 1

    def granted(self, pgoff: int, page_count: int) -> None:
        streams = self._streams
        if len(streams) >= _STREAMS:
            del streams[next(iter(streams))]
        streams[pgoff + page_count] = page_count
