"""memfs kcore: what the host may see of the pool, and never a byte of a guest."""

import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.real_mount import BIN, DEADLINE_S, ENVIRONMENT, PAGE, Mount, MountFactory, run, sh
from tests.support.threads import until

SECRET = "the-guest-alone-knows-this"
SHARED = "an ordinary file says this"


@pytest.fixture
def mounted(mount: MountFactory) -> Mount:
    """An ordinary file in three frames, of which the middle one was never written."""
    made = mount("size=16M,open=rw")
    path = made.path / "ordinary"
    path.write_bytes(SHARED.encode())
    sh("fallocate -l 12K mnt/ordinary", base(made))
    sh("printf end | dd of=mnt/ordinary bs=4K seek=2 conv=notrunc status=none; sync -f mnt", base(made))
    return made


def base(mounted: Mount) -> Path:
    return mounted.path.parent


def loads(core: Path) -> list[list[int]]:
    """Offset, address, size in the file and size in memory of each segment."""
    done = subprocess.run(["readelf", "-W", "-l", core], capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    return [[int(line[at], 16) for at in (1, 3, 4, 5)] for line in lines if line[:1] == ["LOAD"]]


def test_ordinary_frames_are_in_it_and_private_ones_are_flagged(mounted: Mount) -> None:
    sh("memfs create mnt/vm.mem --size 1M --guest", base(mounted))
    script = f"""\
slot set 0 private gpa=0 size=1M file=mnt/vm.mem
write 0 "{SECRET}"
write 128K "{SECRET}"
sh memfs kcore mnt -o core --json > counts
sh memfs map mnt/vm.mem --json > private; memfs map mnt/ordinary --json > ordinary
"""
    sh(f"kvmsim run - <<'E'\n{script}E", base(mounted))
    core = base(mounted) / "core"
    data = core.read_bytes()
    assert SECRET.encode() not in data
    assert oct(core.stat().st_mode & 0o777) == "0o600"
    counts, private, ordinary = (
        json.loads((base(mounted) / name).read_text()) for name in ("counts", "private", "ordinary")
    )
    runs = [run for found in (private, ordinary) for run in found["runs"]]
    segments, left_out = loads(core), re.findall(rb"(0x\w+)-(0x\w+) (\w+)\n", data)
    for run_ in runs:
        low, high = run_["pfn"] * PAGE, run_["pfn"] * PAGE + run_["length"]
        ((offset, address, stored, size),) = [at for at in segments if at[1] <= low < at[1] + at[3]]
        assert high <= address + size
        assert stored == (size if run_["state"] == "shared" else 0)
        if run_["state"] == "shared":
            found = data[offset + low - address :][: run_["length"]]
            assert found == SHARED.encode().ljust(2 * PAGE, b"\0") + b"end".ljust(PAGE, b"\0")
        else:
            (said,) = [state for start, end, state in left_out if int(start, 16) <= low < int(end, 16)]
            assert said.decode() == run_["state"]
    assert counts["frames"]["shared"] == 3
    assert sum(counts["frames"].values()) == 4096


def test_a_hole_takes_no_room_on_the_disk(mounted: Mount) -> None:
    sh("fallocate -l 8M mnt/ordinary; memfs kcore mnt -o core", base(mounted))
    status = (base(mounted) / "core").stat()
    assert status.st_size > 8 << 20
    assert status.st_blocks * 512 < 1 << 20


def test_standard_output_gets_the_same_bytes(mounted: Mount) -> None:
    sh("memfs kcore mnt -o core; memfs kcore mnt -o - > piped", base(mounted))
    core, piped = ((base(mounted) / name).read_bytes() for name in ("core", "piped"))
    assert core[PAGE:] == piped[PAGE:]
    assert len(core) == len(piped) == 4 * PAGE


def test_it_is_refused_in_one_line_and_leaves_nothing(mounted: Mount) -> None:
    place = base(mounted)
    (place / "there").write_text("mine")
    (place / "busy.partial").write_text("of another")
    for command, status, said in (
        ("memfs kcore mnt -o there", 1, "there is there already: choose another name, or remove it (EEXIST)"),
        ("memfs kcore mnt -o busy", 1, "busy.partial is there: another dump writes it"),
        ("memfs kcore mnt -o none/core", 1, "none/core: No such file or directory (ENOENT)"),
        ("memfs kcore mnt -o - --json", 1, "choose -o FILE (EINVAL)"),
        ("memfs kcore . -o core", 1, "is not on a memfsd mount"),
        ("memfs kcore mnt -o - >&-", 2, "standard output: it is not open for writing"),
        ("memfs kcore mnt -o - > /dev/full", 2, "standard output: No space left on device"),
        ("memfs kcore mnt", 2, "the following arguments are required: -o/--output"),
        ("fallocate -l 8M mnt/f; memfs kcore mnt -o - | head -c 1 > /dev/null; exit ${PIPESTATUS[0]}", 141, ""),
    ):
        done = run(command, place)
        assert done.returncode == status, (command, done)
        assert said in done.stdout
        assert "Traceback" not in done.stdout
        assert len(done.stdout.splitlines()) <= (3 if "required" in said else 1), done.stdout
    assert (place / "there").read_text() == "mine"
    assert not (place / "core").exists()


def test_a_terminal_gets_no_core(mounted: Mount) -> None:
    leader, follower = pty.openpty()
    done = subprocess.run(
        [BIN / "memfs", "kcore", mounted.path, "-o", "-"],
        stdout=follower,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        timeout=DEADLINE_S,
    )
    os.close(leader)
    os.close(follower)
    assert (done.returncode, "is a terminal" in done.stderr) == (1, True)


def test_a_full_disk_leaves_no_file(mounted: Mount, mount: MountFactory) -> None:
    """The disk is another mount, with less room than the core needs."""
    sh("dd if=/dev/urandom of=mnt/big bs=1M count=4 status=none; sync -f mnt", base(mounted))
    disk = mount("size=2M").path
    said = sh(f"memfs kcore mnt -o {disk}/core", base(mounted), status=1)
    assert said.count("\n") == 1
    assert "No space left on device: the core has no room there" in said
    assert list(disk.iterdir()) == []


def test_ctrl_c_leaves_no_file(mounted: Mount) -> None:
    """In the middle of writing."""
    place = base(mounted)
    sh("dd if=/dev/zero of=mnt/big bs=1M count=4 status=none; sync -f mnt", place)
    trap = (
        "import signal, os, sys\n"
        "from memfsd.commands import kcore, memfs\n"
        "write = kcore._write_all\n"
        "def interrupted(fd, data):\n"
        "    write(fd, data)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "kcore._write_all = interrupted\n"
        "sys.argv[1:] = ['kcore', 'mnt', '-o', 'core']\n"
        "memfs.main()\n"
    )
    done = subprocess.run([BIN / "python", "-c", trap], cwd=place, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert [path.name for path in place.iterdir() if "core" in path.name] == []


def test_a_core_of_a_file_that_is_being_written_is_whole(mounted: Mount) -> None:
    place = base(mounted)
    loop = "while :; do dd if=/dev/zero of=mnt/f bs=64K count=16 status=none; rm mnt/f; done"
    writing = subprocess.Popen(["/bin/bash", "-c", loop], cwd=place)
    try:
        until(lambda: (mounted.path / "f").exists(), "it writes")
        for number in range(5):
            sh(f"memfs kcore mnt -o core{number}", place)
            *_, (offset, _, stored, _) = loads(place / f"core{number}")
            assert (place / f"core{number}").stat().st_size == offset + stored
    finally:
        writing.send_signal(signal.SIGKILL)
        writing.wait(DEADLINE_S)
    assert "R1-R8 hold" in sh("memfs check mnt", place)
