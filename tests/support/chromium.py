"""A page as a browser shows it: Chromium without a window and without a network."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .terminal import DEADLINE_S

_ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip


class Shown(NamedTuple):
    """screenshot: a PNG. console: what the browser had to say about the page."""

    screenshot: Path
    console: list[str]


def show(page: Path, width: int, height: int = 2400) -> Shown:
    screenshot = page.with_suffix(f".{width}.png")
    with tempfile.TemporaryDirectory(prefix="memfsd-chromium-", ignore_cleanup_errors=True) as profile:
        done = subprocess.run(
            [
                "chromium", *_ARGUMENTS, f"--user-data-dir={profile}", f"--screenshot={screenshot}",
                f"--window-size={width},{height}", page.as_uri(),
            ],
            capture_output=True, text=True, timeout=2 * DEADLINE_S, check=True,
        )  # fmt: skip
    return Shown(screenshot, [line for line in done.stderr.splitlines() if "CONSOLE" in line])


_PROBE = """<script>
for (const cell of document.querySelectorAll("CELLS, h1, h2, p, .facts div, .warning")) {
  const box = cell.getBoundingClientRect();
  if (box.right > innerWidth || box.left < 0 || cell.scrollWidth > cell.clientWidth + 1)
    console.log("cut: " + cell.textContent.slice(0, 60));
}
if (document.documentElement.scrollWidth > innerWidth) console.log("the page is wider than the screen");
</script>
"""


def check_readable(page: Path, *, width: int, cells: str = "h1") -> None:
    """It fetches nothing, reports no error, and no text runs over the edge of a screen of this width, nor these cells:
    a table of numbers may be wider, and is moved."""
    from PIL import Image

    text = page.read_text()
    assert not re.search(r'(src|href)="(?!#|data:)', text), "nothing is fetched"
    probed = page.with_name(f"{page.stem}.probed.html")
    probed.write_text(text.replace("</body>", _PROBE.replace("CELLS", cells) + "</body>"))
    shown = show(probed, width)
    assert shown.console == []
    with Image.open(shown.screenshot) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[1] == width
    assert (pixels[:, -8:] == 255).all(), "nothing runs over the edge"
    assert (pixels < 128).mean() > 0.002, "there is something to read"
