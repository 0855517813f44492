#!/usr/bin/env python
"""memfsd with the fault that MEMFSD_SICK names, to prove that the soak finds it: a program in the place of memfsd.

leak          eight megabytes and a descriptor stay with every VM that ends
no-scrub      frames are freed as they are
no-callback   frames are taken back without telling the VM
"""

import os
import sys

from memfsd.commands import memfsd as cli
from memfsd.host.windows import Windows
from memfsd.peers.invalidator import Invalidator, Peer
from memfsd.peers.session import Session

_leaked: list[object] = []


def leak() -> None:
    ending = Session._end_pairing

    def end(self: Session, peer: Peer, why: str) -> None:
        ending(self, peer, why)
        _leaked.append((b"\xff" * (8 << 20), os.open(os.devnull, os.O_RDONLY)))

    Session._end_pairing = end  # type: ignore[method-assign]


def main() -> None:
    sick = os.environ["MEMFSD_SICK"]
    if sick == "no-scrub":
        Windows.punch = lambda self, window, runs: None  # type: ignore[method-assign]
    elif sick == "no-callback":
        Invalidator._begin = lambda self, peer, file, closing: ([], None)  # type: ignore[method-assign]
        Invalidator._end = lambda self, peer, closing, seq: None  # type: ignore[method-assign]
    else:
        assert sick == "leak", sick
        leak()
    sys.exit(cli.run(sys.argv[1:]))


if __name__ == "__main__":
    main()
