"""Types of arguments, for argparse, that several commands have."""

import argparse
from collections.abc import Callable, Mapping

from memfsd.common.arguments import MAX_SHOWN, number
from memfsd.uapi.units import order_of_page_size, parse_size

Adders = Mapping[str, Callable[[argparse.ArgumentParser], None]]
"""By the name of a command: adds its arguments, and what runs it, which returns the exit status."""


def path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the name is empty: give a path")
    return text


def size(text: str) -> int:
    """Bytes, or with K, M, G, T."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def page_size(text: str) -> int:
    given = size(text)
    try:
        order_of_page_size(given)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return given


def node(text: str) -> int:
    value = number(text, 1 << 31)
    if value is None:
        raise argparse.ArgumentTypeError(f"'{text[:MAX_SHOWN]}' is not a node: choose 0 or more")
    return value


def add_rest(parser: argparse.ArgumentParser) -> None:
    """A range that ends with the file."""
    parser.add_argument("-o", "--offset", type=size, default=0, help="where to start (default 0)")
    parser.add_argument("-l", "--length", type=size, default=None, help="how much (default: to the end)")
