"""Where a process of kvmsim listens for its monitor, and which processes do."""

import argparse
import contextlib
import logging
import os
import socket

from memfsd.common.rundir import MONITORS
from memfsd.uapi.errors import Refused

log = logging.getLogger("kvmsim.monitor")

_NONE = "none"
_IGNORED = ("server", "server=on", "wait=off", "nowait")
"""Options of QEMU's -qmp that say what is so here anyway."""
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--qmp",
        type=_address,
        action="append",
        default=[],
        metavar="unix:PATH",
        help="a monitor that speaks QMP listens there, too, not only in the runtime directory; none: nowhere",
    )


def _address(text: str) -> str:
    """The path, or "none"."""
    if text == _NONE:
        return text
    kind, _, rest = text.partition(":")
    path, *options = rest.split(",")
    if kind != "unix" or not path or any(option not in _IGNORED for option in options):
        raise argparse.ArgumentTypeError(f"'{text}' is no place for a monitor: give unix:PATH, or none")
    return path


def listen(asked: list[str]) -> list[Listener]:
    """In the runtime directory, if that can be, and where it was asked. Refused when it cannot be there."""
    if _NONE in asked:
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
