"""memfs poison, on a real mount: a guest's page, an ordinary file's page, and who may."""

import json
from pathlib import Path

import pytest

from tests.support.real_mount import Mount, MountFactory, run, sh

SIGBUS_STATUS = (135, -7)
"""As bash reports it, and of what bash has become."""


@pytest.fixture
def mounted(mount: MountFactory) -> Mount:
    return mount("size=16M,open=rw")


def base(mounted: Mount) -> Path:
    return mounted.path.parent


def test_a_guest_exits_for_that_page_and_gets_a_good_one_after_a_punch(mounted: Mount) -> None:
    sh("memfs create mnt/vm.mem --size 1M --guest", base(mounted))
    script = """\
slot set 0 private gpa=0 size=1M file=mnt/vm.mem
write 0 "zero"
write 4K "one"
write 8K "two"
sh memfs poison mnt/vm.mem 5000
read 4K 3
expect exit MEMORY_ERROR gpa=4K errno=133 hwpoison=1
write 4K "again"
expect exit MEMORY_ERROR hwpoison=1
read 0 4
expect data "zero"
read 8K 3
expect data "two"
sh memfs check mnt
sh memfs fallocate -p -o 4K -l 4K mnt/vm.mem
read 4K 3
expect data 000000
"""
    sh(f"kvmsim run - <<'E'\n{script}E", base(mounted))
    assert json.loads(sh("memfs stat mnt --json", base(mounted)))["poisoned"] == 1
    assert "poisoned 4K" in sh("memfs top mnt -n 1", base(mounted))
    assert ", poisoned 4K" in sh("memfs kcore mnt -o core", base(mounted))


def test_an_ordinary_page_is_eio_and_sigbus(mounted: Mount) -> None:
    place = base(mounted)
    (mounted.path / "f").write_bytes(b"a" * 4096 + b"b" * 4096 + b"c" * 4096)
    sh("sync -f mnt; cat mnt/f > /dev/null; memfs poison mnt/f 4K", place)
    assert sh("dd if=mnt/f bs=4K count=1 status=none | tr -d a", place) == ""
    assert sh("dd if=mnt/f bs=4K skip=2 status=none | tr -d c", place) == ""
    assert "Input/output error" in sh("dd if=mnt/f bs=4K skip=1 count=1 status=none", place, status=1)
    assert "Input/output error" in sh(
        "echo x | dd of=mnt/f bs=4K seek=1 conv=notrunc,fsync status=none", place, status=1
    )
    assert "Input/output error" in sh("cp mnt/f copy", place, status=1)
    touch = "import mmap; f = open('mnt/f', 'r+b'); m = mmap.mmap(f.fileno(), 0); assert m[0] == 97; m[4096]"
    assert run(f'python3 -c "{touch}"', place).returncode in SIGBUS_STATUS
    sh("memfs fallocate -p -o 4K -l 4K mnt/f", place)
    assert sh("tr -d '\\0' < mnt/f | wc -c; memfs check mnt", place).startswith("8192\nR1-R8 hold")


def test_a_mapping_that_is_there_already_loses_the_page(mounted: Mount) -> None:
    """Also one that has stored to it and not yet been written back: what failed is lost."""
    script = """
import mmap, os, subprocess
fd = os.open("mnt/f", os.O_RDWR)
m = mmap.mmap(fd, 12288)
m[4096:4100] = b"lost"
m[8192:8196] = b"kept"
subprocess.run(["memfs", "poison", "mnt/f", "4K"], check=True, stdout=subprocess.DEVNULL)
assert m[8192:8196] == b"kept"
m[4096]
"""
    (mounted.path / "f").write_bytes(bytes(12288))
    (base(mounted) / "touch.py").write_text(script)
    done = run("sync -f mnt; python3 touch.py", base(mounted))
    assert done.returncode in SIGBUS_STATUS, done
    assert sh("dd if=mnt/f bs=4K skip=2 count=1 status=none | head -c 4", base(mounted)) == "kept"


def test_random_takes_a_page_that_has_a_frame(mounted: Mount) -> None:
    place = base(mounted)
    assert "no page of a sealed file has a frame" in sh("memfs poison mnt --random", place, status=1)
    sh("memfs create mnt/a --size 1M --guest; memfs fallocate -o 64K -l 64K mnt/a", place)
    first = json.loads(sh("memfs poison mnt --random --seed 7 --json", place))
    assert 64 << 10 <= first["offset"] < 128 << 10
    for _ in range(15):
        sh("memfs poison mnt/a --random", place)
    assert "ENXIO" in sh("memfs poison mnt/a --random", place, status=1)
    assert json.loads(sh("memfs stat mnt --json", place))["poisoned"] == 16
    sh("memfs fallocate -p -o 64K -l 64K mnt/a; memfs fallocate -o 64K -l 64K mnt/a; memfs check mnt", place)


def test_what_is_refused(mounted: Mount) -> None:
    sh("memfs create mnt/vm.mem --size 1M --guest; touch mnt/f", base(mounted))
    for words, said, status in (
        ("mnt/vm.mem 0", "has no frame that could fail: touch it first (ENXIO)", 1),
        ("mnt/vm.mem 1M", "past the end", 1),
        ("mnt/f 0", "past the end", 1),
        ("mnt 0", "(EISDIR)", 1),
        ("mnt/none 0", "(ENOENT)", 1),
        ("touch.py 0", "No such file", 1),
        ("mnt/vm.mem", "OFFSET --random is required", 2),
        ("mnt/vm.mem 0 --random", "not allowed with argument", 2),
        ("mnt/vm.mem -- -1", "memfs poison", 2),
        ("mnt/vm.mem 8E", "", 2),
        ("mnt --random --seed x", "is not a seed", 2),
    ):
        done = run(f"memfs poison {words}", base(mounted))
        assert (done.returncode, said in done.stdout) == (status, True), (words, done.stdout)
        assert "Traceback" not in done.stdout
