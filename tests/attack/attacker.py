"""The process whose forks attack: small, because each attack is a fork of its own, and pytest is large.

    python -m tests.attack.attacker SOCKET LOOT      fds: a SEQPACKET socket, and the shared memory of the loot

A job is one packet, the attack as an index into the table, with the handle to use if there is one; the answer is the
outcome.
"""

import json
import mmap
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from tests.attack.all_attacks import ATTACKS
from tests.attack.target import DEADLINE_S, LOOT_BYTES, Target, attempt

ROOT = Path(__file__).parents[2]


class Attacker:
    """The test's end: `loot` is what the last attack got hold of."""

    def __init__(self) -> None:
        memory = os.memfd_create("loot")
        os.ftruncate(memory, LOOT_BYTES)
        self.loot = mmap.mmap(memory, LOOT_BYTES)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = [sys.executable, "-m", "tests.attack.attacker", str(theirs.fileno()), str(memory)]
        self._process = subprocess.Popen(arguments, cwd=ROOT, pass_fds=(theirs.fileno(), memory))
        theirs.close()
        os.close(memory)
        self._socket.settimeout(2 * DEADLINE_S)

    def __enter__(self) -> "Attacker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()
        self._process.wait(DEADLINE_S)
        self.loot.close()

    def run(
        self,
        attack: int,
        path: Path,
        helpers: tuple[Path, Path],
        uid: int,
        *,
        fd: int | None = None,
        flags: int | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> str:
        """The outcome, as `attempt` tells it. helpers: directories for ordinary files, on the mount and elsewhere."""
        self.loot[:] = bytes(LOOT_BYTES)
        job = json.dumps([attack, str(path), *map(str, helpers), uid, flags, deadline_s]).encode()
        socket.send_fds(self._socket, [job], [] if fd is None else [fd])
        return self._socket.recv(65536).decode()


def serve(jobs: socket.socket, loot: mmap.mmap) -> None:
    while True:
        packet, fds, _, _ = socket.recv_fds(jobs, 65536, 1)
        if not packet:
            return
        attack, path, here, outside, uid, flags, deadline_s = json.loads(packet)
        target = Target(path, here, outside, loot, *fds)
        outcome = attempt(ATTACKS[attack].action, target, uid, flags, deadline_s)
        for fd in fds:
            os.close(fd)
        jobs.send(outcome.encode())


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), mmap.mmap(int(sys.argv[2]), LOOT_BYTES))
