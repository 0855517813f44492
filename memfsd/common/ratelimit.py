"""What is worth doing now and then, and dear: at first each time, and later for a small share of the time."""

_BURST_NS = 2_000_000
_SHARE = 500


class Ratelimit:
    """For calls that come one at a time. `now_ns` of a clock that goes forward.

    What it limits may take a burst's time at once; a 500th part of the time that goes by is added to what is left.
    """

    def __init__(self) -> None:
        self._left_ns = _BURST_NS
        self._at_ns = 0

    def allows(self, now_ns: int) -> bool:
        self._left_ns = min(self._left_ns + (now_ns - self._at_ns) // _SHARE, _BURST_NS)
        self._at_ns = now_ns
        return self._left_ns > 0

    def spent(self, ns: int) -> None:
        self._left_ns -= ns
