"""Where a process of kvmsim listens for its monitor, and which processes do."""

import contextlib
import logging
import os
import socket

from memfsd.common.rundir import MONITORS
from memfsd.uapi.errors import Refused

from .arguments import NOWHERE

log = logging.getLogger("kvmsim.monitor")

_MODE = 0o600


class Listener:
    """A socket, and the file that goes when it does."""

    def __init__(self, path: str, sock: socket.socket) -> None:
        self.path = path
        self.socket = sock

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        self.socket.close()


def listen(asked: list[str]) -> list[Listener]:
    """In the runtime directory, if that can be, and where it was asked. Refused when it cannot be there."""
    if NOWHERE in asked:
        return []
    listeners: list[Listener] = []
    try:
        directory = MONITORS.make()
        MONITORS.sweep(directory)
        listeners.append(_listen(MONITORS.socket_path(os.getpid())))
    except (OSError, Refused) as error:
        log.info("no monitor by default: %s", error)
    try:
        for path in asked:
            try:
                MONITORS.check_chosen(os.path.dirname(path) or ".")
            except OSError as error:
                raise Refused(error.errno or 0, f"--qmp unix:{path}: {error.strerror}") from None
            listeners.append(_listen(path))
    except Refused:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _listen(path: str) -> Listener:
    sock = MONITORS.listen(path, _MODE)
    sock.setblocking(False)
    return Listener(os.path.abspath(path), sock)


def running() -> list[str]:
    """Sockets of the runtime directory, by pid. Whether somebody listens there is for the caller to see."""
    try:
        names = os.listdir(MONITORS.path)
    except OSError:
        return []
    pids = [name.removesuffix(f".{MONITORS.suffix}") for name in names if name.endswith(f".{MONITORS.suffix}")]
    return [MONITORS.socket_path(pid) for pid in sorted(int(pid) for pid in pids if pid.isdigit())]
