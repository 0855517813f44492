"""`kvmsim abi --html`: the answers as a page."""

import sys
from collections.abc import Callable

from memfsd.common.quote import printable
from memfsd.uapi.errors import Refused, errno_name

from .page import Page, Section, check_page, write_page

Rows = list[tuple[str, str, str]]
"""Situation, ABIs that answered alike, answer."""


def answered(path: str, ask: Callable[[Callable[[Rows], None]], int]) -> int:
    """Ask, and write the page when all has answered. Exit status."""
    try:
        check_page(path)
    except Refused as refused:
        print(f"kvmsim: {printable(refused.reason)} ({errno_name(refused.errno)})", file=sys.stderr)
        return 1
    return ask(lambda rows: write_page(_page(rows), path))


def _page(rows: Rows) -> Page:
    page = Page("kvmsim: what each ABI answers", "One catalogue of situations on every ABI, the differences first.")
    page.sections = [Section("Answers", "", "", ("situation", "abi", "answer"), rows, (0, 1, 2))]
    return page
