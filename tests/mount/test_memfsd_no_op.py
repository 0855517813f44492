"""`--no-op page-map` of either side, on a real mount: the guest finds the same, and more messages were needed."""

import json
from pathlib import Path

import pytest

from tests.support.real_mount import sh

SCRIPT = """\
slot set 0 private gpa=0 size=64K file=mnt/vm.mem
write 0 "first"
write 32K "last"
read 32K 4
expect data "last"
info stats
sh memfs check mnt
"""


def messages(mnt: Path, of_store: str, of_kvm: str) -> int:
    """Of a guest that touches two pages which were allocated one by one, from different places."""
    (mnt.parent / "script").write_text(SCRIPT)
    sh(f"memfsd {of_store} -o size=16M,socket=$PWD/s mnt", mnt.parent)
    try:
        sh("memfs create mnt/vm.mem --guest --size 64K", mnt.parent)
        for offset in ("32K", "0", "16K"):
            sh(f"memfs fallocate -o {offset} -l 4K mnt/vm.mem", mnt.parent)
        said = sh(f"kvmsim run --json {of_kvm} script", mnt.parent)
    finally:
        sh("umount mnt", mnt.parent)
    records = [json.loads(line) for line in said.splitlines()]
    (text,) = [record["text"] for record in records if record["source"] == "info stats"]
    return int(dict(line.split() for line in text.splitlines())["store_messages"])


@pytest.fixture
def mnt(tmp_path: Path) -> Path:
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    return mnt


def test_without_the_page_map_of_either_side_each_fault_takes_a_message(mnt: Path) -> None:
    found = messages(mnt, "", "")
    assert messages(mnt, "--no-op page-map", "") == messages(mnt, "", "--no-op page-map") == found + 2


def test_what_memfsd_cannot_be_without(mnt: Path) -> None:
    said = sh("memfsd --no-op get-pfn mnt", mnt.parent, status=2)
    assert "no VM can do without get-pfn: choose page-map" in said
    assert "'x' is not an operation of the store: choose page-map" in sh("memfsd --no-op x mnt", mnt.parent, status=2)
