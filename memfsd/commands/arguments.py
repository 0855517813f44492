"""Types of arguments, for argparse, that several commands have."""

import argparse
from collections.abc import Callable, Mapping

from memfsd.common.arguments import checked, whole
from memfsd.uapi.units import order_of_page_size, parse_size

Adders = Mapping[str, Callable[[argparse.ArgumentParser], None]]
"""By the name of a command: adds its arguments, and what runs it, which returns the exit status."""


def path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the name is empty: give a path")
    return text


def _page_size(text: str) -> int:
    size_bytes = parse_size(text)
    order_of_page_size(size_bytes)
    return size_bytes


size = checked(parse_size)
"""Bytes, or with K, M, G, T."""
page_size = checked(_page_size)
node = whole(0, (1 << 31) - 1, "is not a node: choose 0 or more")


def add_rest(parser: argparse.ArgumentParser) -> None:
    """A range that ends with the file."""
    parser.add_argument("-o", "--offset", type=size, default=0, help="where to start (default 0)")
    parser.add_argument("-l", "--length", type=size, default=None, help="how much (default: to the end)")
