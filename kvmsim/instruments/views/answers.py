"""`kvmsim abi --html`: the answers as a page."""

from collections.abc import Callable

from .page import Page, Section, measured_to_page

Rows = list[tuple[str, str, str]]
"""Situation, ABIs that answered alike, answer."""


def answered(path: str, ask: Callable[[Callable[[Rows], None]], int]) -> int:
    """Ask, and write the page when all has answered. Exit status."""
    return measured_to_page(path, (), ask, _page)


def _page(rows: Rows) -> Page:
    page = Page("kvmsim: what each ABI answers", "One catalogue of situations on every ABI, the differences first.")
    page.sections = [Section("Answers", "", "", ("situation", "abi", "answer"), rows, (0, 1, 2))]
    return page
