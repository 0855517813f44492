"""The option --qmp of a process of kvmsim. --help needs nothing else of a monitor."""

import argparse

NOWHERE = "none"
_IGNORED = ("server", "server=on", "wait=off", "nowait")
"""Options of QEMU's -qmp that say what is so here anyway."""


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
    if text == NOWHERE:
        return text
    kind, _, rest = text.partition(":")
    path, *options = rest.split(",")
    if kind != "unix" or not path or any(option not in _IGNORED for option in options):
        raise argparse.ArgumentTypeError(f"'{text}' is no place for a monitor: give unix:PATH, or none")
    return path
