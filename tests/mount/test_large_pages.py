"""A file of 2 MiB pages on a mount, from `memfs create` to the leaves of a guest."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.real_mount import Mount, MountFactory, sh

MIB2 = 2 << 20
SCRIPT = """\
slot set 0 private gpa=4G size=8M file=vm.mem
write 0x100001000 "before"
write 0x100003000 "after"
info ept
slot punch 0 gpa=0x100002000 size=4K
read 0x100001000 6
expect data "before"
read 0x100003000 5
expect data "after"
info ept
sh memfs check .
sh memfs fallocate -p -o 8K -l 4K vm.mem
expect status 1
sh memfs fallocate -p -o 0 -l 2M vm.mem
info ept
map 0x100200000 6M private
slot delete 0 private
info stats
sh memfs check .
"""


@pytest.fixture
def mounted(mount: MountFactory) -> Mount:
    made = mount("size=16M")
    sh("memfs create vm.mem --guest --page-size 2M --size 8M", made.path)
    return made


def runs(report: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
    return [(run["gpa"], run["size"], run["page_size"]) for run in report]


def test_leaves_of_2_mib_are_made_split_and_taken_back(mounted: Mount, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(SCRIPT)
    report = sh(f"kvmsim run --json {script}", mounted.path)
    records = [json.loads(line) for line in report.splitlines()]
    first, second, third = [runs(record["info"]) for record in records if record["source"] == "info ept"]
    base = 4 << 30
    assert first == [(base, MIB2, MIB2)]
    assert second == [(base, 0x2000, 4096), (base + 0x3000, MIB2 - 0x3000, 4096)]
    assert third == []
    (stats,) = [record["info"] for record in records if record["source"] == "info stats"]
    assert (stats["zapped_4k"], stats["zapped_2m"], stats["splits"]) == (512, 3, 1)


SPLIT = """\
slot set 0 private gpa=4G size=8M file=vm.mem
write 0x100001000 "before"
write 0x100003000 "after"
sh memfs fallocate -p -o 8K -l 4K vm.mem
sh memfs map vm.mem
read 0x100001000 6
expect data "before"
read 0x100003000 5
expect data "after"
sh memfs check .
read 0x100002000 1
expect data 00
sh memfs map vm.mem
info stats
"""


def test_a_part_is_punched_and_the_page_is_whole_again_when_it_is_touched(mount: MountFactory, tmp_path: Path) -> None:
    place = mount("size=16M,split=on").path
    sh("memfs create vm.mem --guest --page-size 2M --size 8M", place)
    script = tmp_path / "script"
    script.write_text(SPLIT)
    records = [json.loads(line) for line in sh(f"kvmsim run --json {script}", place).splitlines()]
    maps = [record["text"] for record in records if "PAGE" in record.get("text", "")]
    pages = [[line.split()[5] for line in shown.splitlines()[1:]] for shown in maps]
    assert pages == [["4K/2M", "4K/2M"], ["2M"]]
    (stats,) = [record["info"] for record in records if record["source"] == "info stats"]
    assert (stats["splits"], stats["merges"]) == (1, 1)
    counts = json.loads(sh("memfs stat . --json", place))
    assert (counts["splits"], counts["merges"]) == (1, 1)
