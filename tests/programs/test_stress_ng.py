"""stress-ng's filesystem stressors, many at once, each verifying what it does.

A stressor is listed when it works on tmpfs; the same is asked of memfsd. Not listed for that reason: fiemap (tmpfs
has none), verity, io-uring (0.15 fails everywhere), binderfs, bind-mount, loop and others that are not about files.
"""

import re
from pathlib import Path

import pytest

from tests.programs.conftest import LONG, Run

SECONDS = 20 if LONG else 3
SIZES = (
    *("--dentries", "128", "--dirdeep-inodes", "500", "--fallocate-bytes", "8m", "--hdd-bytes", "8m"),
    *("--iomix-bytes", "8m", "--mmap-file", "--mmap-bytes", "1m", "--readahead-bytes", "4m"),
    *("--sync-file-bytes", "4m", "--seek-size", "4m"),
)
GROUPS = {
    "attributes": "access chattr chmod chown fcntl fstat inode-flags touch utime xattr",
    "names": "chdir dentry dir dirdeep dirmany filename getdent handle link mknod open rename",
    "data": "aio copy-file fallocate fpunch fsize hdd io iomix readahead revio seek sendfile splice sync-file",
    "mappings and locks": "mmap msync dup flock lease locka lockf lockofd dnotify fanotify file-ioctl inotify",
}
if LONG:
    GROUPS["slow"] = "link symlink"


@pytest.mark.parametrize("group", GROUPS)
def test_what_works_on_tmpfs_works_here(place: Path, run: Run, group: str, tmp_path: Path) -> None:
    stressors = GROUPS[group].split()
    metrics = tmp_path / "metrics.yaml"
    said = run(
        tmp_path,
        *("stress-ng", "--verify", "--timeout", f"{SECONDS}s", "--temp-path", place),
        *("--metrics-brief", "--yaml", metrics, *SIZES),
        *(word for stressor in stressors for word in (f"--{stressor}", "1")),
    )

    assert "fail:" not in said, said
    assert "skipp" not in said, said
    done = dict(re.findall(r"stressor: (\S+)\s+bogo-ops: (\d+)", metrics.read_text()))
    assert set(done) == set(stressors), "each has run"
    # Three seconds may be too few for a whole round of many, but never of all: some rounds are one system call.
    assert any(int(rounds) for rounds in done.values()), said
