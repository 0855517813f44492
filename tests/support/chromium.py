"""A page as a browser shows it: Chromium without a window and without a network."""

import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

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
