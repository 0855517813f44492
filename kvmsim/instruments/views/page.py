"""A page of HTML that needs nothing else: no network, no scripts, no fonts."""

import errno
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from kvmsim.instruments.outputfile import OutputFile
from memfsd.common.quote import printable
from memfsd.common.version import VERSION
from memfsd.uapi.errors import Refused, errno_name

R = TypeVar("R")
_HEAD = b"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="kvmsim">
"""
"""How every page begins, and so what another may replace."""


@dataclass(slots=True)
class Fact:
    """A number at the top; bad: something that should not be."""

    name: str
    value: str
    bad: bool = False


@dataclass(slots=True)
class Section:
    """A picture, a table, or both. words: columns that begin at the left."""

    title: str
    note: str
    svg: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    words: Sequence[int] = (0,)

    @property
    def is_text(self) -> bool:
        """Cells are read one by one, below each other where the screen is narrow; numbers are compared in columns."""
        return len(self.words) == len(self.columns)


@dataclass(slots=True)
class Page:
    """What is on it, from the top down."""

    title: str
    subtitle: str
    warnings: list[str] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)


def page_file(path: str, used: Iterable[str | None] = (), stdout: str = "") -> OutputFile:
    """Before anything is done for it. EOPNOTSUPP (Refused) where what draws it is not installed; what OutputFile says
    of the place."""
    try:
        import jinja2  # noqa: F401 - only to see
        from matplotlib.figure import Figure  # noqa: F401
    except ImportError as error:
        way_out = "install it (pip install 'memfsd[report]')"
        raise Refused(errno.EOPNOTSUPP, f"a report needs {error.name}: {way_out}") from None
    file = OutputFile(path, "a page of kvmsim", lambda head: head.startswith(_HEAD), used, stdout)
    file.refuse_unusable()
    return file


def measured_to_page(
    path: str, used: Iterable[str | None], measure: Callable[[Callable[[R], None]], int], page_of: Callable[[R], Page]
) -> int:
    """Measure, and write the page of what `measure` passes on when it is done. Its exit status; 1 without a page."""
    try:
        file = page_file(path, used)
        return measure(lambda found: write_page(page_of(found), file))
    except Refused as refused:
        print(f"kvmsim: {printable(refused.reason)} ({errno_name(refused.errno)})", file=sys.stderr)
        return 1


def write_page(page: Page, to: OutputFile) -> None:
    """Whole, or not at all. OSError; Refused."""
    import jinja2

    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    text = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(template).render(
        title=printable(page.title),
        subtitle=page.subtitle,
        warnings=[printable(warning) for warning in page.warnings],
        facts=page.facts,
        sections=page.sections,
        footer=f"made by kvmsim {VERSION}",
    )  # fmt: skip
    with to.opened() as file:
        file.write(text.encode())
