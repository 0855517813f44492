"""Swap on a real mount: memfs swapout and swapoff, a VM larger than the pool, and a daemon that is killed."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.real_mount import BIN, DEADLINE_S, ENVIRONMENT, Mount, MountFactory, sh

SECRET = "the-guest-alone-knows-this-of-all"


@pytest.fixture
def mounted(mount: MountFactory, tmp_path: Path) -> Mount:
    """32 MiB of memory, 64 MiB of swap."""
    made = mount(f"size=32M,swap={tmp_path}/swap,swap_size=64M")
    sh("memfs create mnt/vm.mem --size 64M --guest", base(made))
    return made


def base(mounted: Mount) -> Path:
    return mounted.path.parent


def facts(path: Path) -> dict[str, int]:
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found


def refused_mount(tmp_path: Path, options: str) -> str:
    """What memfsd says when it does not mount: one line."""
    where = tmp_path / "refused"
    where.mkdir(exist_ok=True)
    done = subprocess.run(
        [BIN / "memfsd", "-o", options, where],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode in (1, 2), done
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.timeout(6 * DEADLINE_S)
def test_a_vm_larger_than_the_pool_runs_to_its_end(mounted: Mount) -> None:
    """64 MiB in a pool of 32: all of it leaves and comes back."""
    place = base(mounted)
    (place / "image").write_bytes(b"".join(content(number) for number in range(16384)))
    script = """\
slot set 0 private gpa=0 size=64M file=mnt/vm.mem
load 0 image
sha256 0 64M
sh memfs stat mnt --json > stat
sh memfs map mnt/vm.mem --json > map
sh memfs top mnt -n 1 --json > top
sh memfs check mnt
"""
    (place / "script").write_text(script)
    done = subprocess.run(
        [BIN / "kvmsim", "run", "--json", "script"],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=5 * DEADLINE_S,
        env=ENVIRONMENT,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    digest = sh("sha256sum image", place).split()[0]
    assert [line["data"] for line in lines if line["cmd"].startswith("sha256")] == [digest]
    stat = facts(place / "stat")
    assert stat["swap_slots"] == 16384
    assert stat["swap_used"] >= 8192
    assert stat["swap_failed"] == 0
    runs = json.loads((place / "map").read_text())["runs"]
    assert sum(run["length"] for run in runs if run["state"] == "swapped") >= 32 << 20
    assert all((run["pfn"] is None) == (run["state"] == "swapped") for run in runs)
    top = json.loads((place / "top").read_text())
    assert top["swap"]["total"] == 16384
    assert top["files"][0]["swapped"] > 0


def content(number: int) -> bytes:
    return f"{SECRET} {number:08x} ".encode().ljust(4096, b".")


def test_nothing_of_a_guest_can_be_read_in_the_swap_file(mounted: Mount) -> None:
    place = base(mounted)
    (place / "image").write_bytes(b"".join(content(number) for number in range(1024)))
    script = f"""\
slot set 0 private gpa=0 size=64M file=mnt/vm.mem
load 0 image
sh memfs swapout mnt/vm.mem --json > out
sh cp {place.parent}/swap copy
sh memfs check mnt
sha256 0 4M
"""
    done = sh(f"kvmsim run --json - <<'E'\n{script}E", place)
    lines = [json.loads(line) for line in done.splitlines()]
    digest = sh("sha256sum image", place).split()[0]
    assert [line["data"] for line in lines if line["cmd"].startswith("sha256")] == [digest]
    assert facts(place / "out")["swapped_out"] >= 1024
    data = (place / "copy").read_bytes()
    assert SECRET.encode() not in data
    assert len(data.replace(b"\0", b"")) > 4_000_000, "it is all there, encrypted"


def test_swapoff_brings_all_in_or_says_what_does_not_fit(mounted: Mount) -> None:
    script = """\
slot set 0 private gpa=0 size=64M file=mnt/vm.mem
touch 0 6M
write 5M "something"
sh memfs swapout mnt/vm.mem -o 4M -l 2M
sh memfs swapoff mnt
read 5M 9
expect data "something"
sh memfs swapout mnt/vm.mem > said 2>&1; test $? = 1
touch 0 48M
expect exit MEMORY_ERROR errno=28
"""
    sh(f"kvmsim run - <<'E'\n{script}E", base(mounted))
    assert "EOPNOTSUPP" in (base(mounted) / "said").read_text()


def test_swapout_that_does_not_fit_says_what_left_and_why(mount: MountFactory, tmp_path: Path) -> None:
    made = mount(f"size=32M,swap={tmp_path}/swap,swap_size=1M")
    sh("memfs create mnt/vm.mem --size 4M --guest", base(made))
    script = """\
slot set 0 private gpa=0 size=4M file=mnt/vm.mem
touch 0 2M
sh memfs swapout mnt/vm.mem > said 2>&1; test $? = 1
sh memfs swapout mnt/vm.mem --json > facts 2> why; test $? = 1
sh memfs swapout mnt/vm.mem -o 64M > past 2>&1; test $? = 1
"""
    sh(f"kvmsim run - <<'E'\n{script}E", base(made))
    said = (base(made) / "said").read_text()
    assert "mnt/vm.mem: 1M swapped out, 256 pages could not leave: the swap file is full (256 pages)" in said
    assert said.count("\n") == 1
    assert facts(base(made) / "facts")["stayed"] == 256
    assert "ENOSPC" in (base(made) / "why").read_text()
    assert "past the end" in (base(made) / "past").read_text()
    assert "EINVAL" in (base(made) / "past").read_text()


def test_swapoff_names_what_cannot_come_back_and_brings_the_rest(mounted: Mount, tmp_path: Path) -> None:
    sh("memfs create mnt/other --size 4M --guest", base(mounted))
    script = f"""\
slot set 0 private gpa=0 size=64M file=mnt/vm.mem
slot set 1 private gpa=64M size=4M file=mnt/other
touch 0 12K
touch 64M 8K
sh memfs swapout mnt/vm.mem && memfs swapout mnt/other
sh printf altered | dd of={tmp_path}/swap bs=1 seek=5000 conv=notrunc status=none
sh memfs swapoff mnt > said 2>&1; test $? = 1
sh memfs stat mnt --json > stat
sh memfs check mnt
"""
    sh(f"kvmsim run - <<'E'\n{script}E", base(mounted))
    said = (base(mounted) / "said").read_text()
    assert "mnt: swap is off, 16K came back, but not 1 page of vm.mem (VM " in said
    assert "page 0x0" in said
    assert "EBADMSG" in said
    assert said.count("\n") == 1
    assert facts(base(mounted) / "stat")["swap_used"] == 1


def test_a_page_that_was_tampered_with_is_the_only_one_that_stays(mounted: Mount) -> None:
    script = """\
slot set 0 private gpa=0 size=64M file=mnt/vm.mem
touch 0 2M
host tamper 12K "evil"
sh memfs swapout mnt/vm.mem > said 2>&1; test $? = 1
"""
    sh(f"kvmsim run --memory-encryption on - <<'E'\n{script}E", base(mounted))
    said = (base(mounted) / "said").read_text()
    assert "mnt/vm.mem: 2044K swapped out, 1 page could not leave: page 0x3: " in said


def test_a_daemon_that_is_killed_leaves_a_file_that_the_next_one_refuses(mounted: Mount, tmp_path: Path) -> None:
    swap = tmp_path / "swap"
    assert "in use by another memfsd" in refused_mount(tmp_path, f"size=16M,swap={swap}")
    mounted.process.send_signal(signal.SIGKILL)
    mounted.process.wait(DEADLINE_S)
    mounted.remove()
    said = refused_mount(tmp_path, f"size=16M,swap={swap}")
    assert "did not end" in said
    assert "swap_reset" in said
    for name, option in (("again", ",swap_reset"), ("last", "")):
        (tmp_path / name).mkdir()
        mount = Mount(tmp_path / name, f"size=16M,swap={swap}{option}")
        mount.remove()
        mount.check_log()


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    swap = tmp_path / "swap"
    for options, why in (
        ("swap_size=4M", "swap=FILE"),
        ("swap_reset", "swap=FILE"),
        (f"swap={swap},swap_size=x", "'x' is not a size"),
        (f"swap={swap},swap_size=100", "choose 4K"),
        (f"swap={swap},swap_reset=1", "takes no value"),
        ("swap=", "swap=FILE"),
        (f"swap={swap}", "swap_size=SIZE"),
        (f"swap={tmp_path}/refused/swap,swap_size=4M", "on the mount itself"),
        (f"swap={tmp_path}/none/swap,swap_size=4M", "No such file"),
        ("swap=/dev/zero,swap_size=4M", "not a regular file"),
    ):
        assert why in refused_mount(tmp_path, f"size=16M,{options}"), options
    assert not swap.exists()


def test_what_swapout_refuses(mounted: Mount) -> None:
    place = base(mounted)
    for words, why in (
        ("swapout mnt/vm.mem", "has no VM"),
        ("swapout mnt/vm.mem -o 1", "multiples of 4096"),
        ("swapout mnt/vm.mem -l 0", "not empty"),
        ("swapout mnt", "only files"),
        ("swapout .", "not on a memfsd mount"),
        ("swapoff .", "not on a memfsd mount"),
    ):
        said = sh(f"memfs {words} 2>&1; test $? = 1", place)
        assert why in said, words
        assert said.count("\n") == 1, words
