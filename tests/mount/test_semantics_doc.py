"""docs/semantics.md, executed row by row: on memfsd, and on tmpfs where the row says what happens there."""

import errno
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.real_mount import DEADLINE_S, ENVIRONMENT, DirectoryFactory, MountFactory

DOCUMENT = Path(__file__).parents[2] / "docs/semantics.md"
UNTRIED = "—"


@dataclass(frozen=True)
class Row:
    section: str
    options: str
    cells: dict[str, str]

    def __str__(self) -> str:
        return f"{self.section}: {self.command}"

    @property
    def command(self) -> str:
        return code(self.cells["Command"])


def code(cell: str) -> str:
    """What the backticks of a cell hold; the bars in it are escaped, as Markdown wants it."""
    return cell.strip("`").replace(r"\|", "|")


def rows(text: str) -> Iterator[Row]:
    """All rows of all tables; the options are those of the row, else of the last `Mounted with`."""
    section = options = ""
    header: list[str] = []
    for line in text.splitlines():
        if line.startswith("#"):
            section, header = line.lstrip("# "), []
        elif found := re.match(r"Mounted with `-o (.*?)`", line):
            options = found[1]
        elif line.startswith("|"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not header:
                header = cells
            elif not set(line) <= set("|-"):
                assert len(cells) == len(header), line
                row = dict(zip(header, cells, strict=True))
                yield Row(section, code(row.get("Option", options)), row)


ROWS = [row for row in rows(DOCUMENT.read_text()) if "Command" in row.cells]
TRIED = [row for row in ROWS if row.cells["Command"] != UNTRIED]
TRIED_ON_TMPFS = [row for row in TRIED if "tmpfs" in row.cells]


def outcome(command: str, directory: Path) -> str:
    """What it printed, or "ok"; for a failure every errno that its words name."""
    done = subprocess.run(
        ["/bin/bash", "-c", command],
        cwd=directory,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=DEADLINE_S,
        check=False,
    )
    said = done.stdout.decode(errors="backslashreplace")
    if done.returncode == 0:
        return " ".join(said.split()) or "ok"
    if done.returncode in (-signal.SIGBUS, 128 + signal.SIGBUS):
        return "SIGBUS"
    said = said.replace("(EOPNOTSUPP)", "(ENOTSUP)")  # one number, and the name that errno.errorcode has
    named = [
        name
        for number, name in errno.errorcode.items()
        if os.strerror(number).lower() in said.lower() or f"({name})" in said
    ]
    return f"{named}, status {done.returncode}: {said}"


def check(command: str, directory: Path, cell: str) -> None:
    result, expected = outcome(command, directory), code(cell)
    # EOPNOTSUPP and ENOTSUP are one number.
    if hasattr(errno, expected):
        number = getattr(errno, expected)
        assert f"'{errno.errorcode[number]}'" in result.partition(",  status")[0], result
    else:
        assert result == " ".join(expected.split())


def name(row: Row) -> str:
    return re.sub(r"\W+", " ", str(row))[:90].strip()


@pytest.mark.parametrize("row", TRIED, ids=name)
def test_memfsd_does_what_the_row_says(own_directory: DirectoryFactory, shared_mount: MountFactory, row: Row) -> None:
    if "ro" in row.options.split(","):
        check(row.command, shared_mount(row.options).path, row.cells["Result"])
        return
    directory = own_directory(row.options)
    check(row.command, directory, row.cells["Result"])
    subprocess.run(["rm", "-rf", directory], check=True, timeout=DEADLINE_S)


@pytest.fixture(scope="module")
def tmpfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    mountpoint = tmp_path_factory.mktemp("tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16M", "tmpfs", mountpoint], check=True, timeout=DEADLINE_S)
    yield mountpoint
    subprocess.run(["umount", "-l", mountpoint], check=True, timeout=DEADLINE_S)


@pytest.mark.parametrize("row", TRIED_ON_TMPFS, ids=name)
def test_tmpfs_does_what_the_row_says(tmpfs: Path, tmp_path: Path, row: Row) -> None:
    directory = tmpfs / tmp_path.name
    directory.mkdir()
    report = row.cells["tmpfs"]
    check(row.command, directory, row.cells["Result"] if report == "same" else report)
    subprocess.run(["rm", "-rf", directory], check=True, timeout=DEADLINE_S)


def test_the_document_covers_what_it_must() -> None:
    sections = {row.section for row in TRIED}
    assert {"Contents", "Mappings", "Names", "Space", "Mount options", "The guest seal"} <= sections
    assert len(TRIED) > 120
    assert len(TRIED) > 0.8 * len(ROWS), "most can be tried"
