"""The hook on a real mount: a file system of one file in its own process (see `daemon` below)."""

import array
import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.real_mount import DEADLINE_S, WITH_US

ROOT = Path(__file__).parents[2]
KEEP_SIZE, PUNCH_HOLE = 1, 2
OUT_OF_SPACE, TOO_BIG, BROKEN, WAITS, NO_ERRNO, PLACED, MORE_THAN_ASKED = (number << 20 for number in range(1, 8))
"""Offsets at which the tiny file system misbehaves."""
FOUND, FOUND_HOLE = 12345, (1 << 62) + 1
ECHO = 3 << 30 | 8 << 16 | 0xB7 << 8 | 1
"""_IOWR(0xB7, 1, __u64): eight bytes there and back."""
OVERFLOW, REFUSED, WITH_ERRNO = ECHO + 1, ECHO + 2, ECHO + 3
IN_ONLY, OUT_ONLY, BARE = 1 << 30 | ECHO & 0x3FFFFFFF, 2 << 30 | ECHO & 0x3FFFFFFF, 0xB704
FUSE_IOCTL_DIR = 16

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if libc.fallocate(fd, mode, offset, length) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def close(fd: int) -> None:
    with contextlib.suppress(OSError):  # the daemon may be gone, and with it who takes the FLUSH
        os.close(fd)


def mount_minor(mountpoint: Path) -> int | None:
    """The device minor of a mount, from mountinfo: a stat of it could hang."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(mountpoint):
            return int(fields[2].split(":")[1])
    return None


class Mounted:
    """The daemon, its mount, and its lines on stdout."""

    def __init__(self, mountpoint: Path, mode: str) -> None:
        self.mountpoint = mountpoint
        self.process = subprocess.Popen(
            [*WITH_US, sys.executable, "-X", "dev", "-W", "error", __file__, str(mountpoint), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.stderr = ""
        # A wedged mount cannot be interrupted from within: this frees whoever waits on it.
        self._watchdog = threading.Timer(DEADLINE_S, self.abort)
        self._watchdog.start()

    def line(self) -> str:
        """The next line on stdout, "" at its end; the watchdog ends the wait for a daemon that is stuck."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        """Mode "paused": let it read what poll(2) reported."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def open(self, name: str = "file", flags: int = os.O_RDWR) -> int:
        return os.open(self.mountpoint / name, flags)

    def finish(self) -> str:
        """End it as a person does; its exit status must be 0. What it wrote to stderr."""
        self.process.send_signal(signal.SIGTERM)
        _, self.stderr = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0, self.stderr
        return self.stderr

    def abort(self) -> None:
        """Free everyone who waits on the mount and take it away, never touching it."""
        minor = mount_minor(self.mountpoint)
        if minor is not None:
            subprocess.run(["umount", "-l", str(self.mountpoint)], check=False, timeout=DEADLINE_S)
            connection = Path(f"/sys/fs/fuse/connections/{minor}/abort")
            if connection.exists():
                connection.write_text("1")
        if self.process.poll() is None:
            self.process.kill()

    def close(self) -> None:
        self.abort()
        self._watchdog.cancel()
        self._watchdog.join()
        self.process.communicate(timeout=DEADLINE_S)


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    assert Path("/dev/fuse").exists(), "/dev/fuse is missing"
    path = tmp_path / "mnt"
    path.mkdir()
    return path


def start(mountpoint: Path, mode: str) -> Iterator[Mounted]:
    mounted = Mounted(mountpoint, mode)
    try:
        assert mounted.line() == "mounted", mounted.process.communicate()[1]
        yield mounted
    finally:
        mounted.close()


@pytest.fixture
def served(mountpoint: Path) -> Iterator[Mounted]:
    yield from start(mountpoint, "served")


@pytest.fixture
def unserved(mountpoint: Path) -> Iterator[Mounted]:
    yield from start(mountpoint, "unserved")


@pytest.fixture
def raw(mountpoint: Path) -> Iterator[Mounted]:
    yield from start(mountpoint, "raw")


@pytest.fixture
def paused(mountpoint: Path) -> Iterator[Mounted]:
    yield from start(mountpoint, "paused")


@pytest.fixture
def fd(request: pytest.FixtureRequest) -> Iterator[int]:
    (name,) = {"served", "unserved", "raw"} & set(request.fixturenames)
    fd = request.getfixturevalue(name).open()
    yield fd
    close(fd)


def python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=DEADLINE_S)


def test_every_argument_of_the_three_operations_arrives(served: Mounted, fd: int) -> None:
    fallocate(fd, 0, 4096, 8192)
    assert served.line() == "fallocate ino=2 fh=7 mode=0 4096+8192"
    fallocate(fd, KEEP_SIZE | PUNCH_HOLE, (1 << 40) + 1, 1 << 41)
    assert served.line() == f"fallocate ino=2 fh=7 mode=3 {(1 << 40) + 1}+{1 << 41}"
    assert os.lseek(fd, 5, os.SEEK_DATA) == FOUND
    assert served.line() == f"lseek ino=2 fh=7 5 whence={os.SEEK_DATA}"
    assert os.lseek(fd, 6, os.SEEK_HOLE) == FOUND_HOLE
    assert served.line() == f"lseek ino=2 fh=7 6 whence={os.SEEK_HOLE}"
    assert fcntl.ioctl(fd, ECHO, b"abcdefgh") == b"hgfedcba"
    assert served.line() == f"ioctl ino=2 fh=7 {ECHO:#x} flags=0 b'abcdefgh' room=8"
    assert served.finish() == ""


def test_an_ioctl_number_says_what_goes_in_and_out(served: Mounted, fd: int) -> None:
    assert fcntl.ioctl(fd, IN_ONLY, array.array("Q", [1])) == 0
    assert served.line().endswith(r"b'\x01\x00\x00\x00\x00\x00\x00\x00' room=0")
    assert fcntl.ioctl(fd, OUT_ONLY, bytes(8)) == b"ONLY OUT"
    assert served.line().endswith("b'' room=8")
    assert fcntl.ioctl(fd, BARE) == 0
    assert served.line().endswith("b'' room=0")


def test_an_ioctl_on_a_directory_is_marked(served: Mounted) -> None:
    fd = served.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert fcntl.ioctl(fd, ECHO, b"12345678") == b"87654321"
        assert served.line() == f"ioctl ino=1 fh=9 {ECHO:#x} flags={FUSE_IOCTL_DIR} b'12345678' room=8"
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("offset", "expected"),
    [(OUT_OF_SPACE, errno.ENOSPC), (TOO_BIG, errno.EFBIG), (BROKEN, errno.EIO), (NO_ERRNO, errno.EIO)],
)
def test_refusals_are_errnos_and_anything_else_is_eio(served: Mounted, fd: int, offset: int, expected: int) -> None:
    with pytest.raises(OSError, match="fallocate") as refused:
        fallocate(fd, 0, offset, 4096)
    assert refused.value.errno == expected
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the errno is what counts
        os.lseek(fd, offset, os.SEEK_DATA)
    assert refused.value.errno == expected
    fallocate(fd, 0, 0, 4096)  # and it goes on serving
    stderr = served.finish()
    assert stderr.count("Traceback") == (2 if expected == errno.EIO else 0)
    assert stderr.count("memfsd.fuse: fallocate failed") == (expected == errno.EIO)
    assert stderr.count("memfsd.fuse: lseek failed") == (expected == errno.EIO)


def test_ioctl_refusals_and_too_much_data(served: Mounted, fd: int) -> None:
    with pytest.raises(PermissionError):
        fcntl.ioctl(fd, REFUSED, bytes(8))
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the errno is what counts
        fcntl.ioctl(fd, OVERFLOW, bytes(8))
    assert refused.value.errno == errno.EIO
    stderr = served.finish()
    assert stderr.count("Traceback") == 1
    assert "room for 8 bytes, not 9" in stderr


def test_an_ioctl_that_fails_may_say_more_than_its_errno(served: Mounted, fd: int) -> None:
    data = bytearray(8)
    with pytest.raises(BlockingIOError):
        fcntl.ioctl(fd, WITH_ERRNO, data)
    assert data[:4] == b"said"


def test_a_write_in_place_is_done_and_pyfuse3_is_not_asked(served: Mounted, fd: int) -> None:
    for number in range(40):  # more than are taken in one go
        assert os.pwrite(fd, b"%04d" % number, PLACED + number) == 4
    os.lseek(fd, 5, os.SEEK_DATA)
    for number in range(40):
        assert served.line() == f"place fh=7 {PLACED + number} {b'%04d' % number!r} last=False"
    assert served.line().startswith("lseek"), "what is no write is served as ever"
    assert served.finish() == ""


def test_a_write_that_is_not_in_place_goes_to_pyfuse3(served: Mounted, fd: int) -> None:
    assert os.pwrite(fd, b"elsewhere", 0) == 9
    assert served.line() == "write fh=7 0 b'elsewhere'"
    assert os.pwrite(fd, b"placed", PLACED) == 6
    assert served.line().startswith("place ")
    assert os.pwrite(fd, b"elsewhere", 0) == 9
    assert served.line() == "write fh=7 0 b'elsewhere'"


def test_a_write_in_place_is_refused_at_once(served: Mounted, fd: int) -> None:
    with refuses(errno.ENOSPC):
        os.pwrite(fd, b"refused", OUT_OF_SPACE)
    for wrong in (MORE_THAN_ASKED, NO_ERRNO):
        with refuses(errno.EIO):
            os.pwrite(fd, b"wrong answer", wrong)
    assert served.finish() == ""


def test_a_write_in_place_that_raises_leaves_the_write_to_pyfuse3(served: Mounted, fd: int) -> None:
    assert os.pwrite(fd, b"kept", BROKEN) == 4
    assert served.line() == f"write fh=7 {BROKEN} b'kept'"
    assert "ZeroDivisionError: broken" in served.finish()


@contextlib.contextmanager
def refuses(number: int) -> Iterator[None]:
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the errno is what counts
        yield
    assert refused.value.errno == number


def wait_in_fallocate(fd: int, outcome: list[int]) -> threading.Thread:
    def call() -> None:
        outcome.append(libc.fallocate(fd, 0, WAITS, 4096) and ctypes.get_errno())

    thread = threading.Thread(target=call)
    thread.start()
    return thread


def test_others_are_served_while_a_fallocate_waits_and_shutdown_answers_it(served: Mounted, fd: int) -> None:
    outcome: list[int] = []
    thread = wait_in_fallocate(fd, outcome)
    assert served.line() == f"fallocate ino=2 fh=7 mode=0 {WAITS}+4096"
    second = served.open()  # the kernel locks the inode, not the file system
    os.close(second)
    assert outcome == []
    assert served.finish() == ""
    thread.join(DEADLINE_S)
    assert outcome == [errno.ENOTCONN]


def test_two_waiting_requests_are_each_answered_at_shutdown(served: Mounted, fd: int) -> None:
    other_fd = served.open("other")
    try:
        outcome: list[int] = []
        threads = [wait_in_fallocate(fd, outcome), wait_in_fallocate(other_fd, outcome)]
        assert {served.line().split()[1], served.line().split()[1]} == {"ino=2", "ino=3"}
        assert served.finish() == ""
        for thread in threads:
            thread.join(DEADLINE_S)
        assert outcome == [errno.ENOTCONN] * 2
    finally:
        close(other_fd)


def test_a_killed_daemon_leaves_nobody_waiting(served: Mounted, fd: int) -> None:
    outcome: list[int] = []
    thread = wait_in_fallocate(fd, outcome)
    served.line()
    served.process.kill()
    thread.join(DEADLINE_S)
    assert outcome == [errno.ECONNABORTED]


def test_a_request_that_vanishes_after_poll_reported_it_does_not_stop_the_daemon(paused: Mounted) -> None:
    """A caller that is killed before the daemon reads takes its request along (FUSE's queue holds nothing then)."""
    assert paused.line() == "readable", "INIT"
    paused.go_on()
    assert paused.line() == "read"
    for _ in range(3):
        caller = subprocess.Popen(["stat", str(paused.mountpoint / "file")])
        assert paused.line() == "readable"
        caller.kill()
        caller.wait(DEADLINE_S)
        paused.go_on()
        assert paused.line() == "read", "the loop runs on, though no request came"


def test_requests_without_a_server_get_enotconn(unserved: Mounted, fd: int) -> None:
    with pytest.raises(OSError, match="fallocate") as refused:
        fallocate(fd, 0, 0, 4096)
    assert refused.value.errno == errno.ENOTCONN
    for call in (lambda: os.lseek(fd, 0, os.SEEK_DATA), lambda: fcntl.ioctl(fd, ECHO, bytes(8))):
        with pytest.raises(OSError) as refused:  # noqa: PT011 - the errno is what counts
            call()
        assert refused.value.errno == errno.ENOTCONN
    assert unserved.finish() == ""


def test_the_extension_refuses_second_and_senseless_replies(raw: Mounted, fd: int) -> None:
    assert os.lseek(fd, 0, os.SEEK_DATA) == 77
    assert raw.line() == "second reply: LookupError request 1 is not waiting for an answer"
    with pytest.raises(OSError, match="fallocate") as refused:
        fallocate(fd, 0, 0, 4096)
    assert refused.value.errno == errno.EXDEV
    assert raw.line() == "errno 512: ValueError errno 512 is not in 0..511"
    assert raw.line() == "errno -1: ValueError errno -1 is not in 0..511"
    assert raw.finish() == ""


def test_the_extension_answers_for_a_handler_that_raises(raw: Mounted, fd: int) -> None:
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the errno is what counts
        fcntl.ioctl(fd, ECHO, bytes(8))
    assert refused.value.errno == errno.EIO
    assert "ZeroDivisionError: raw" in raw.finish()


def test_pyfuse3_imported_first_is_refused() -> None:
    done = python("import pyfuse3, memfsd.fuse.hook")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: import memfsd.fuse.hook before pyfuse3")


def test_the_hook_is_not_active_without_a_session() -> None:
    done = python("from memfsd.fuse import hook; hook.check_active()")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("RuntimeError: fallocate, lseek and ioctl did not get")


def test_handlers_must_be_callable_and_unknown_requests_are_refused() -> None:
    done = python(
        "from memfsd.fuse import _hook\n"
        "for call in (lambda: _hook.set_handlers(1, None, None), lambda: _hook.reply_err(1, 0),\n"
        "             lambda: _hook.reply_lseek('x', 0), lambda: _hook.reply_ioctl(2, 0, b'')):\n"
        "    try: call()\n"
        "    except (TypeError, LookupError) as error: print(error)\n"
    )
    assert done.stdout.splitlines() == [
        "1 is neither callable nor None",
        "request 1 is not waiting for an answer",
        "request 'x' is not waiting for an answer",
        "request 2 is not waiting for an answer",
    ]
    assert done.returncode == 0


def daemon(mountpoint: str, mode: str) -> None:
    """One directory with the files `file` and `other`; modes: served, unserved, raw (handlers in _hook itself), paused
    (between poll(2) and read(2), until a line comes on stdin)."""
    import stat

    from memfsd.fuse import hook
    from memfsd.uapi.errors import Refused

    # isort: split
    import pyfuse3
    import trio

    from memfsd.fuse import _hook

    def say(text: str) -> None:
        print(text, flush=True)

    def misbehave(offset: int) -> None:
        if offset == OUT_OF_SPACE:
            raise Refused(errno.ENOSPC, "the pool is full")
        if offset == TOO_BIG:
            raise pyfuse3.FUSEError(errno.EFBIG)
        if offset == NO_ERRNO:
            raise Refused(0, "success is not a refusal")
        if offset == BROKEN:
            raise ZeroDivisionError("broken")

    kept = memoryview(b"")
    kept.release()

    def is_readable(data: memoryview) -> bool:
        try:
            return data.nbytes > 0
        except ValueError:
            return False

    class Handlers:
        async def fallocate(self, ino: int, fh: int, mode: int, offset: int, length: int, clears_setid: bool) -> None:
            misbehave(offset)
            say(f"fallocate {ino=} {fh=} {mode=} {offset}+{length}")
            if offset == WAITS:
                await trio.sleep_forever()

        def write_in_place(self, fh: int, offset: int, data: memoryview) -> int | None:
            nonlocal kept
            if offset in (OUT_OF_SPACE, BROKEN):
                if offset == OUT_OF_SPACE:
                    return -errno.ENOSPC
                raise ZeroDivisionError("broken")
            if offset == MORE_THAN_ASKED:
                return len(data) + 1
            if offset == NO_ERRNO:
                return -600
            if offset < PLACED:
                return None
            say(f"place {fh=} {offset} {bytes(data)!r} last={is_readable(kept)}")
            kept = data
            return len(data)

        async def lseek(self, ino: int, fh: int, offset: int, whence: int) -> int:
            misbehave(offset)
            say(f"lseek {ino=} {fh=} {offset} {whence=}")
            return FOUND if whence == os.SEEK_DATA else FOUND_HOLE

        async def ioctl(self, ino: int, fh: int, cmd: int, flags: int, data: bytes, out_size: int) -> hook.IoctlReply:
            if cmd == OVERFLOW:
                return hook.IoctlReply(bytes(out_size + 1))
            if cmd == WITH_ERRNO:
                return hook.IoctlReply(b"said"[:out_size], errno.EAGAIN)
            if cmd == REFUSED:
                raise Refused(errno.EPERM, "sealed")
            say(f"ioctl {ino=} {fh=} {cmd:#x} {flags=} {data!r} room={out_size}")
            return hook.IoctlReply((data[::-1] or b"ONLY OUT")[:out_size])

    class Tiny(pyfuse3.Operations):
        async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
            entry = pyfuse3.EntryAttributes()
            entry.st_ino = inode
            entry.st_mode = (stat.S_IFDIR | 0o755) if inode == pyfuse3.ROOT_INODE else (stat.S_IFREG | 0o644)
            return entry

        async def lookup(self, parent_inode, name, ctx=None):  # type: ignore[no-untyped-def]
            if name not in (b"file", b"other"):
                raise pyfuse3.FUSEError(errno.ENOENT)
            return await self.getattr(2 if name == b"file" else 3)

        async def open(self, inode, flags, ctx):  # type: ignore[no-untyped-def]
            return pyfuse3.FileInfo(fh=7)

        async def opendir(self, inode, ctx):  # type: ignore[no-untyped-def]
            return 9

        async def write(self, fh, off, buf):  # type: ignore[no-untyped-def]
            say(f"write {fh=} {off} {buf!r}")
            return len(buf)

    def attempt(what: str, *args: int) -> None:
        try:
            _hook.reply_err(*args)
        except (LookupError, ValueError) as error:
            say(f"{what}: {type(error).__name__} {error}")

    def raw_lseek(request: int, *_: object) -> None:
        _hook.reply_lseek(request, 77)
        attempt("second reply", request, 0)

    def raw_fallocate(request: int, *_: object) -> None:
        attempt("errno 512", request, 512)
        attempt("errno -1", request, -1)
        _hook.reply_err(request, errno.EXDEV)

    def raw_ioctl(*_: object) -> None:
        raise ZeroDivisionError("raw")

    wait_readable = trio.lowlevel.wait_readable

    async def wait_readable_and_pause(fd: int) -> None:
        await wait_readable(fd)
        say("readable")
        sys.stdin.readline()
        trio.lowlevel.spawn_system_task(say_read)

    async def say_read() -> None:
        say("read")

    if mode == "paused":
        trio.lowlevel.wait_readable = wait_readable_and_pause  # type: ignore[assignment]

    async def until_signalled() -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pyfuse3.main)
                say("mounted")
                async for _ in signals:
                    break
                pyfuse3.terminate()

    async def main() -> None:
        server = hook.serving(Handlers()) if mode == "served" else contextlib.nullcontext()
        async with server:
            if mode == "raw":
                _hook.set_handlers(raw_fallocate, raw_lseek, raw_ioctl)
            await until_signalled()

    import logging

    logging.basicConfig(format="%(name)s: %(message)s")
    pyfuse3.init(Tiny(), mountpoint, {"fsname=hooktest", *pyfuse3.default_options})
    hook.check_active()
    trio.run(main)
    pyfuse3.close()


if __name__ == "__main__":
    daemon(*sys.argv[1:])
