"""The head of an ELF core, as readelf understands it."""

import subprocess
from pathlib import Path

from memfsd.commands.elfcore import NT_LEFT_OUT, NT_POOL, Segment, head

PAGE = 4096


def readelf(path: Path, *options: str) -> list[str]:
    done = subprocess.run(["readelf", "-W", *options, path], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def segments(path: Path) -> list[list[str]]:
    """Type, offset, addresses, sizes and flags of each."""
    return [line.split() for line in readelf(path, "-l") if line.split()[:1] in (["LOAD"], ["NOTE"])]


def test_segments_follow_each_other_and_left_out_ones_take_no_room(tmp_path: Path) -> None:
    core = head([Segment(1, 2, True), Segment(3, 5, False), Segment(9, 1, True)], [(NT_POOL, b"x"), (NT_LEFT_OUT, b"")])
    path = tmp_path / "core"
    path.write_bytes(core.data)
    assert len(core.data) == core.contents_at == PAGE
    assert core.size_bytes == PAGE + 3 * PAGE
    note, first, left_out, last = segments(path)
    assert note[0] == "NOTE"
    assert first[1:] == ["0x001000", "0x0000000000001000", "0x0000000000001000", "0x002000", "0x002000", "RW", "0x1000"]
    assert left_out[2:] == ["0x0000000000003000", "0x0000000000003000", "0x000000", "0x005000", "0x1000"]
    assert last[1:4] == ["0x003000", "0x0000000000009000", "0x0000000000009000"]
    notes = [line.split() for line in readelf(path, "-n") if "memfsd" in line]
    assert [(line[0], int(line[1], 16)) for line in notes] == [("memfsd", 1), ("memfsd", 0)]


def test_more_segments_than_e_phnum_can_count(tmp_path: Path) -> None:
    """PN_XNUM: section 0 has their number."""
    count = 70_000
    core = head([Segment(2 * pfn, 1, True) for pfn in range(count)], [])
    path = tmp_path / "core"
    path.write_bytes(core.data)
    assert any(line.split()[-2:] == ["65535", f"({count + 1})"] for line in readelf(path, "-h"))
    found = segments(path)
    assert len(found) == count + 1
    assert int(found[-1][1], 16) == core.contents_at + (count - 1) * PAGE


def test_an_empty_pool_has_a_head_too(tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(head([], []).data)
    assert [segment[0] for segment in segments(path)] == ["NOTE"]
