"""A page of HTML that needs nothing else: no network, no scripts, no fonts."""

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from memfsd.common.quote import printable, quoted
from memfsd.common.version import VERSION
from memfsd.uapi.errors import Refused, errno_name

R = TypeVar("R")


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


def check_page(path: str) -> None:
    """Before anything is done for it. EOPNOTSUPP (Refused) where what draws it is not installed; ENOENT for a directory
    that does not exist, EISDIR for one."""
    try:
        import jinja2  # noqa: F401 - only to see
        from matplotlib.figure import Figure  # noqa: F401
    except ImportError as error:
        way_out = "install it (pip install 'memfsd[report]')"
        raise Refused(errno.EOPNOTSUPP, f"a report needs {error.name}: {way_out}") from None
    if os.path.isdir(path):
        raise Refused(errno.EISDIR, f"{quoted(path)} is a directory: name a file")
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        raise Refused(errno.ENOENT, f"{quoted(path)}: directory {quoted(parent)} does not exist: create it first")


def measured_to_page(path: str, measure: Callable[[Callable[[R], None]], int], page_of: Callable[[R], Page]) -> int:
    """Measure, and write the page of what `measure` passes on when it is done. Its exit status; 1 without a page."""
    try:
        check_page(path)
    except Refused as refused:
        print(f"kvmsim: {printable(refused.reason)} ({errno_name(refused.errno)})", file=sys.stderr)
        return 1
    return measure(lambda found: write_page(page_of(found), path))


def write_page(page: Page, path: str) -> None:
    """Whole, or not at all. OSError."""
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
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=os.path.dirname(os.path.abspath(path)), delete=False
    ) as new:
        try:
            new.write(text)
            new.close()
            os.chmod(new.name, 0o644)
            os.replace(new.name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(new.name)
            raise
