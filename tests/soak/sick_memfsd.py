#!/usr/bin/env python
"""memfsd with the fault that MEMFSD_SICK names, to prove that the soak finds it: a program in the place of memfsd.

leak          24 megabytes and a descriptor stay with every VM that ends
no-scrub      frames are freed as they are
no-callback   frames are taken back without telling the VM
"""

import os
import sys

from memfsd.commands import memfsd as cli
from memfsd.host.windows import Windows
from memfsd.store.invalidator import Invalidator
from memfsd.store.pairings import PairedFile

_leaked: list[object] = []


def leak() -> None:
    ending = PairedFile.connection_lost

    def end(self: PairedFile, why: str, stop_fd: int) -> None:
        ending(self, why, stop_fd)
        _leaked.append((b"\xff" * (24 << 20), os.open(os.devnull, os.O_RDONLY)))

    PairedFile.connection_lost = end  # type: ignore[method-assign]


def main() -> None:
    sick = os.environ["MEMFSD_SICK"]
    if sick == "no-scrub":
        Windows.punch = lambda self, window, runs: None  # type: ignore[method-assign]
    elif sick == "no-callback":
        Invalidator._begin = lambda self, peer, closing: (None, None)  # type: ignore[method-assign]
        Invalidator._end = lambda self, peer, closing, seq: None  # type: ignore[method-assign]
    else:
        assert sick == "leak", sick
        leak()
    sys.exit(cli.run(sys.argv[1:]))


if __name__ == "__main__":
    main()
