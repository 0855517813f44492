"""memfsd and the other programs when a service manager or a shell started them without stdin, stdout or stderr."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.real_mount import remove_mount, run, sh
from tests.support.threads import until


@pytest.fixture
def mnt(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    remove_mount(path)


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_no_byte_is_lost(tmp_path: Path, mnt: Path, closing: str) -> None:
    """The pool's memfd, a journal and the pipe to the waiting parent had these numbers, and /dev/null after them."""
    sh(f"memfsd -o size=16M,socket={tmp_path}/s --journal store.journal mnt {closing}", tmp_path)
    # Read from memfsd, not from the page cache.
    forgotten = "dd oflag=nocache conv=notrunc,fdatasync count=0 of=mnt/f status=none"
    assert sh(f"echo hello > mnt/f; {forgotten}; cat mnt/f", tmp_path) == "hello\n"
    sh("memfs create mnt/vm.mem --size 1M --guest", tmp_path)
    (tmp_path / "script").write_text('slot set 0 private gpa=0 size=1M file=mnt/vm.mem\nwrite 0 "x"\n')
    assert run("kvmsim run script --journal vm.journal <&-", tmp_path).returncode == 0
    assert "R1-R8 hold" in sh("memfs check mnt", tmp_path)
    sh("umount mnt", tmp_path)
    until(lambda: (tmp_path / "store.journal").read_text().endswith('"why":"closed"}\n'), "the journal ends")
    report = sh("kvmsim journal check store.journal vm.journal", tmp_path)
    assert report.startswith("all rules hold: ")
    assert int(report.split()[3]) > 10


@pytest.mark.parametrize("command", ["memfs stat mnt", "memfs check mnt", "kvmsim run -", "kvmsim attach mnt/vm.mem"])
def test_commands_without_streams_harm_no_file(tmp_path: Path, mnt: Path, command: str) -> None:
    sh(f"memfsd -o size=16M,socket={tmp_path}/s mnt", tmp_path)
    sh("echo hello > mnt/f; memfs create mnt/vm.mem --size 1M --guest", tmp_path)
    run(f"{command} <&- >&- 2>&-", tmp_path)
    assert sh("cat mnt/f; memfs check mnt", tmp_path).startswith("hello\nR1-R8 hold")
    sh("umount mnt", tmp_path)
