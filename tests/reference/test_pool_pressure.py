"""A pool of 16 frames and a tmpfs of 16 pages, filled up: the same answers at the same moments, and all comes back."""

import ctypes
import errno
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memfsd.uapi.frame_state import FrameState
from tests.reference.mounts import memfsd_mount, tmpfs_mount
from tests.reference.world import elsewhere
from tests.support.threads import DEADLINE_S, until

PAGE = 4096
POOL = 16
KEEP_SIZE, PUNCH = 1, 3
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if libc.fallocate(fd, mode, offset, length) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def free(place: Path) -> int:
    return os.statvfs(place).f_bfree


def pool_line(place: Path) -> dict[str, int]:
    """user.memfsd.pool, its counts of frames."""
    words = os.getxattr(place, "user.memfsd.pool").decode().split()
    pairs = (word.partition("=") for word in words if not word.startswith(("node_free=", "abi=")))
    return {name: int(count) for name, _, count in pairs}


@pytest.fixture(scope="module")
def mounts() -> Iterator[tuple[Path, Path]]:
    with memfsd_mount(f"size={POOL * PAGE}") as memfsd, tmpfs_mount(f"size={POOL * PAGE},mode=755") as tmpfs:
        yield memfsd, tmpfs


@pytest.fixture
def memfsd(mounts: tuple[Path, Path]) -> Iterator[Path]:
    """Empty before and after, down to the last frame."""
    place, _ = mounts
    yield place
    for entry in place.iterdir():
        entry.unlink()
    until(lambda: free(place) == POOL, "every frame is free again")
    assert pool_line(place) == {"frames": POOL, "free": POOL} | dict.fromkeys(
        (state.name.lower() for state in FrameState if state is not FrameState.FREE), 0
    )


@pytest.fixture
def both(mounts: tuple[Path, Path], memfsd: Path) -> Iterator[tuple[Path, Path]]:
    yield mounts
    for entry in mounts[1].iterdir():
        entry.unlink()


class Filling:
    """One file on one place, and what calls on it answer."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.fd = os.open(place / "file", os.O_RDWR | os.O_CREAT)

    def told(self, call: Callable[[int], object]) -> object:
        try:
            return call(self.fd)
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def seen(self) -> dict[str, object]:
        found = os.fstat(self.fd)
        return {
            "size": found.st_size,
            "blocks": found.st_blocks,
            "free": free(self._place),
            "bytes": os.pread(self.fd, 1 << 20, 0),
        }

    def create(self, name: str) -> object:
        try:
            os.close(os.open(self._place / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.mkdir(self._place / f"{name}.d")
            os.rmdir(self._place / f"{name}.d")
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return None


Step = tuple[str, Callable[[int], object]]
STEPS: dict[str, list[Step]] = {
    "a write that does not fit is short, and the next one is ENOSPC": [
        ("write", lambda fd: os.write(fd, b"x" * (POOL * PAGE + 100))),
        ("write", lambda fd: os.write(fd, b"y")),
        ("write in place", lambda fd: os.pwrite(fd, b"z" * 3 * PAGE, 100)),
        ("write across the end", lambda fd: os.pwrite(fd, b"z" * PAGE, (POOL - 1) * PAGE + 10)),
    ],
    "a write that does not begin at a page is short at one": [
        ("write", lambda fd: os.pwrite(fd, b"x" * POOL * PAGE, 100)),
        ("write", lambda fd: os.pwrite(fd, b"x", POOL * PAGE)),
    ],
    "fallocate allocates all or nothing": [
        ("too much", lambda fd: fallocate(fd, 0, 0, (POOL + 1) * PAGE)),
        ("far too much", lambda fd: fallocate(fd, 0, 0, 1 << 40)),
        ("all but two", lambda fd: fallocate(fd, 0, 0, (POOL - 2) * PAGE)),
        ("three more", lambda fd: fallocate(fd, 0, (POOL - 2) * PAGE, 3 * PAGE)),
        ("three more behind the end", lambda fd: fallocate(fd, KEEP_SIZE, (POOL - 2) * PAGE, 3 * PAGE)),
        ("around those there are", lambda fd: fallocate(fd, 0, PAGE, POOL * PAGE)),
        ("two more", lambda fd: fallocate(fd, KEEP_SIZE, (POOL - 2) * PAGE, 2 * PAGE)),
        ("once more", lambda fd: fallocate(fd, 0, 0, POOL * PAGE)),
    ],
    "what is punched or cut can be written again": [
        ("write", lambda fd: os.write(fd, b"x" * POOL * PAGE)),
        ("punch", lambda fd: fallocate(fd, PUNCH, PAGE, 2 * PAGE)),
        ("write into the hole and on", lambda fd: os.pwrite(fd, b"y" * 2 * PAGE, PAGE)),
        ("write behind the end", lambda fd: os.pwrite(fd, b"y", POOL * PAGE)),
        ("truncate", lambda fd: os.ftruncate(fd, PAGE + 1)),
        ("write", lambda fd: os.pwrite(fd, b"z" * POOL * PAGE, 2 * PAGE)),
        ("write", lambda fd: os.pwrite(fd, b"z", (POOL + 1) * PAGE)),
    ],
    "a sparse file may be larger than the pool until it is written": [
        ("truncate", lambda fd: os.ftruncate(fd, 1 << 40)),
        ("write at the end", lambda fd: os.pwrite(fd, b"end", (1 << 40) - 3)),
        ("fill", lambda fd: os.pwrite(fd, b"x" * (POOL - 1) * PAGE, PAGE)),
        ("one page more", lambda fd: os.pwrite(fd, b"x", 100 * PAGE)),
        ("read a hole", lambda fd: os.pread(fd, 10, 100 * PAGE)),
    ],
}


@pytest.mark.parametrize("name", STEPS)
def test_as_on_tmpfs(both: tuple[Path, Path], name: str) -> None:
    ours, theirs = (Filling(place) for place in both)
    try:
        answers = []
        for step, call in STEPS[name]:
            answers.append(theirs.told(call))
            assert ours.told(call) == answers[-1], step
            seen = theirs.seen()
            assert without_doubt(ours.seen(), seen) == seen, step
        assert "ENOSPC" in answers
    finally:
        for filling in (ours, theirs):
            os.close(filling.fd)


def without_doubt(ours: dict[str, object], theirs: dict[str, object]) -> dict[str, object]:
    """Of a file without pages that is open read-write and much larger than the pool's room memfsd says one page: what a
    mapping may have stored cannot be written back to see (docs/semantics.md)."""
    size = ours["size"]
    assert isinstance(size, int)
    in_doubt = size > 64 * POOL * PAGE and (ours["blocks"], theirs["blocks"]) == (PAGE // 512, 0)
    return ours | {"blocks": 0} if in_doubt else ours


def test_names_need_no_frame(both: tuple[Path, Path]) -> None:
    for place in both:
        filling = Filling(place)
        assert filling.told(lambda fd: os.write(fd, b"x" * POOL * PAGE)) == POOL * PAGE
        assert filling.create("new") is None
        os.close(filling.fd)


def test_a_file_that_is_open_keeps_its_frames_until_it_is_closed(memfsd: Path) -> None:
    fd = os.open(memfsd / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 5 * PAGE)
    os.unlink(memfsd / "file")
    assert free(memfsd) == POOL - 5
    assert pool_line(memfsd)["shared"] == 5
    with mmap.mmap(fd, 5 * PAGE) as memory:
        os.close(fd)
        assert free(memfsd) == POOL - 5
        assert memory[:1] == b"x"
    until(lambda: free(memfsd) == POOL, "the mapping was the last to hold it")


def test_a_store_to_a_hole_of_a_full_pool_is_sigbus_on_tmpfs_and_enospc_of_msync_here(both: tuple[Path, Path]) -> None:
    """FUSE does not tell a server when a page is about to be stored to: the kernel's cache takes the bytes, and the
    pool is asked for a frame at write-back. Frames for what is mapped come from fallocate(2) before.
    """
    for place, answer, synced in ((both[0], b"stored", "ENOSPC"), (both[1], "SIGBUS", None)):
        filling = Filling(place)
        os.ftruncate(filling.fd, 2 * POOL * PAGE)
        assert filling.told(lambda fd: os.pwrite(fd, b"x" * POOL * PAGE, POOL * PAGE)) == POOL * PAGE
        with mmap.mmap(filling.fd, PAGE) as memory:

            def store(memory: mmap.mmap = memory) -> bytes:
                memory[:3] = b"sto"
                return b"stored"

            def flush(fd: int, memory: mmap.mmap = memory) -> None:
                memory.flush()

            assert elsewhere(store) == answer
            assert filling.told(flush) == synced
        assert os.fstat(filling.fd).st_blocks == POOL * PAGE // 512
        os.close(filling.fd)


def test_stores_to_allocated_pages_never_fail(both: tuple[Path, Path]) -> None:
    for place in both:
        filling = Filling(place)
        fallocate(filling.fd, 0, 0, PAGE)
        assert filling.told(lambda fd: os.pwrite(fd, b"x" * POOL * PAGE, PAGE)) == (POOL - 1) * PAGE
        with mmap.mmap(filling.fd, PAGE) as memory:
            memory[:3] = b"sto"
            memory.flush()
        assert os.pread(filling.fd, 3, 0) == b"sto"
        os.close(filling.fd)


def test_a_guest_that_finds_the_pool_full_exits_and_runs_on_when_there_is_room(memfsd: Path, tmp_path: Path) -> None:
    exits = run_guest(
        f"""\
        sh fallocate -l {12 * PAGE} {memfsd}/filler
        sh memfs create --guest --size {POOL * PAGE} {memfsd}/guest
        slot set 1 private gpa=0 size={POOL * PAGE} file={memfsd}/guest
        touch 0 {POOL * PAGE}
        expect exit KVM_EXIT_MEMORY_ERROR gpa={4 * PAGE:#x}
        write 0 "still there"
        sh rm {memfsd}/filler
        touch 0 {POOL * PAGE}
        expect ok
        read 0 11
        expect data "still there"
        """,
        tmp_path,
    )
    assert [(left["gpa"], left["errno"]) for left in exits] == [(4 * PAGE, errno.ENOSPC)]


def test_a_guest_that_finds_the_pool_full_in_shared_memory_exits_at_that_page(memfsd: Path, tmp_path: Path) -> None:
    exits = run_guest(
        f"""\
        sh fallocate -l {12 * PAGE} {memfsd}/filler
        sh truncate -s {POOL * PAGE} {memfsd}/shared
        slot set 1 shared gpa=0 size={POOL * PAGE} file={memfsd}/shared
        touch 0 {POOL * PAGE} shared
        expect exit KVM_EXIT_MEMORY_ERROR private=0
        write {5 * PAGE} "no room" shared
        expect exit KVM_EXIT_MEMORY_ERROR private=0
        sh rm {memfsd}/filler
        touch 0 {POOL * PAGE} shared
        expect ok
        """,
        tmp_path,
    )
    assert [(left["gpa"], left["errno"]) for left in exits] == [(4 * PAGE, errno.ENOSPC), (5 * PAGE, errno.ENOSPC)]


def test_what_a_guest_was_granted_and_never_touched_makes_room_for_its_shared_memory(
    memfsd: Path, tmp_path: Path
) -> None:
    """memfsd takes it back while the guest waits in its store to shared memory: it must be out of guest mode then."""
    exits = run_guest(
        f"""\
        sh memfs create --guest --size {POOL * PAGE} {memfsd}/guest
        sh truncate -s {POOL * PAGE} {memfsd}/shared
        slot set 1 private gpa=0 size={POOL * PAGE} file={memfsd}/guest
        slot set 1 shared gpa=0 size={POOL * PAGE} file={memfsd}/shared
        write 0 "a"
        write 4K "b"
        write 8K "c"
        sh [ $(memfs stat --json {memfsd} | grep -o '"pending": [0-9]*' | cut -d' ' -f2) -gt 0 ]
        touch 0 {(POOL - 3) * PAGE} shared
        expect ok
        read 8K 1
        expect data "c"
        sh memfs check {memfsd}
        """,
        tmp_path,
    )
    assert exits == []


def run_guest(script: str, tmp_path: Path) -> list[dict[str, int]]:
    """The fields of its exits; every line must do what it should."""
    (tmp_path / "script").write_text(script)
    programs = Path(sys.executable).parent
    done = subprocess.run(
        [programs / "kvmsim", "run", "--json", tmp_path / "script"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [record["exit_fields"] for line in done.stdout.splitlines() if (record := json.loads(line)).get("exit")]
