"""`kvmsim compare --html`: rows of any length on a page that a browser shows on any screen."""

import re
from pathlib import Path

import pytest

from kvmsim.instruments.compare.rig import DESIGNS, Measured, Sample
from kvmsim.instruments.compare.table import Results, Row
from kvmsim.instruments.views.comparison import compared
from tests.support.chromium import check_readable


def rows(samples: list[Sample]) -> list[Row]:
    stopped = "ENOSPC: all 509 shared slots are in use: raise --max-slots"
    return [
        Row(
            "misbehave",
            design,
            "thread",
            4096,
            Measured(conversions=509, lost_pages=7, stopped=stopped, samples=samples),
        )
        for design in DESIGNS
    ]


@pytest.mark.parametrize(("width", "count"), [(1280, 1), (400, 200)])
def test_the_page(width: int, count: int, tmp_path: Path) -> None:
    found = Results(rows([Sample(live, 2, 12.5 + live) for live in range(1, count + 1)]))

    def measure(finish: object) -> int:
        assert callable(finish)
        finish(found)
        return 0

    page = tmp_path / "compare.html"
    assert compared(str(page), None, measure) == 0
    text = page.read_text()
    assert "overlay/freed" in text and "raise --max-slots" in text and "pages lost" in text
    assert bool(re.search(r'<g clip-path="[^"]*">\s*<use', text)) == (count == 1), "one point is a dot"
    check_readable(page, width=width)
