"""memfs kcore: what the host may see of the pool.

The frames' states are of one moment. The bytes of ordinary files are not: who dumps them reads them afterwards, while
their writers go on. A frame that was an ordinary file's and has become a guest's since reads as zeros, because a
guest's bytes are in its window, which is another memfd.
"""

import errno
import itertools
import time

from memfsd.core.memory.state_copy import StateCopy
from memfsd.core.service import Service
from memfsd.host.effect_runner import PAUSE_S
from memfsd.uapi.errors import Refused
from memfsd.uapi.limits import MAX_RUNS_PER_REPORT
from memfsd.uapi.messages import KcoreReply


def states_of(service: Service) -> StateCopy:
    """Of all frames at one moment, copied in parts. Call without Service.lock."""
    with service.lock:
        states = service.pool.copy_states()
    goes_on = True
    while goes_on:
        with service.lock:
            goes_on = states.copy_some()
        time.sleep(PAUSE_S if goes_on else 0)
    return states


class Dump:
    """The states of all frames at the moment when it was made, given out part by part."""

    def __init__(self, service: Service) -> None:
        states, self._frame_count = states_of(service), service.pool.frame_count
        self._runs = states.runs(self._frame_count)
        self._next_pfn = 0

    def part(self, pfn: int) -> KcoreReply:
        """EINVAL where the last part did not end."""
        if pfn != self._next_pfn:
            goes_on = "is complete" if self._next_pfn < 0 else f"goes on at frame {self._next_pfn:#x}"
            raise Refused(errno.EINVAL, f"this dump {goes_on}: ask for that, or from frame 0 for a new one")
        runs = list(itertools.islice(self._runs, MAX_RUNS_PER_REPORT))
        end = sum(runs[-1][:2])
        self._next_pfn = -1 if end == self._frame_count else end
        return KcoreReply(self._frame_count, runs, self._next_pfn)
