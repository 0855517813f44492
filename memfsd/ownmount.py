"""A memfsd mount for the time of a `with` block: for tests, and programs that bring their own store."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from memfsd import files
from memfsd.common.fields import counted
from memfsd.common.mounts import memfsd_mounts
from memfsd.common.quote import quoted
from memfsd.uapi import names
from memfsd.uapi.errors import PeerLost, Refused
from memfsd.uapi.messages import CheckReply, Empty, Kind
from memfsd.uapi.units import format_size

START_DEADLINE_S = 60.0
END_DEADLINE_S = 30.0
_LOOK_UP_S = 0.01


class Mount:
    """A memfsd mount that is there. Names are those of files in it: paths that are relative to `path`."""

    def __init__(self, path: files.Path, process: "subprocess.Popen[bytes] | None" = None) -> None:
        """path: of its mount point. process: the memfsd, where it is a child of this process."""
        self.path = os.fspath(path)
        self.process = process

    def __fspath__(self) -> str:
        return self.path

    def file(self, name: files.Path) -> str:
        """The path of this file."""
        return os.path.join(self.path, name)

    def create(
        self,
        name: files.Path,
        size: int | str = 0,
        *,
        guest: bool = True,
        page_size: int | str | None = None,
    ) -> str:
        """memfsd.create(); the file's path."""
        return files.create(self.file(name), size, guest=guest, page_size=page_size)

    def seal(self, name: files.Path, seals: str = "guest") -> None:
        """memfsd.seal()."""
        files.seal(self.file(name), seals)

    def stat(self, name: files.Path) -> files.FileStat:
        """memfsd.stat()."""
        return files.stat(self.file(name))

    def punch(self, name: files.Path, offset: int, length: int) -> None:
        """memfsd.punch()."""
        files.punch(self.file(name), offset, length)

    def pool(self) -> dict[str, int]:
        """Frames (4 KiB) of the pool, by state; and what memfsd holds: as `memfs stat MOUNTPOINT`. OSError."""
        return counted(" ".join(os.getxattr(self.path, n).decode() for n in (names.XATTR_POOL, names.XATTR_COUNTS)))

    def check(self) -> list[tuple[str, str]]:
        """Do the rules R1 to R8 hold now, on both sides? (rule, text) of each that is broken.

        Refused, PeerLost: memfsd does not answer, or one of its VMs.
        """
        from memfsd.common.observer import Observer
        from memfsd.common.stores import store_of

        with Observer(store_of(self.path)) as observer:
            return [(rule, text) for rule, text in observer.ask(Kind.CHECK, Empty(), CheckReply).findings]


@contextlib.contextmanager
def mounted(path: files.Path | None = None, *, size: int | str | None = None, options: str = "") -> Iterator[Mount]:
    """Mount a memfsd of this process's own, and unmount it at the end, whatever holds it then.

    path: an existing directory; a new one if None. size: of the pool, bytes or text (None: 64M, or what options say).
    options: as -o takes them, with commas. Refused: no FUSE on this machine, or memfsd said why it does not mount.
    A program that is killed leaves its mount: `fusermount3 -u` takes it away.
    """
    from memfsd.fuse.mount import check_fuse

    check_fuse()
    with contextlib.ExitStack() as ending:
        place = tempfile.mkdtemp(prefix="memfsd-")
        ending.callback(shutil.rmtree, place, ignore_errors=True)
        if path is None:
            path = os.path.join(place, "mnt")
            os.mkdir(path)
        where = os.path.realpath(path)
        log = ending.enter_context(open(os.path.join(place, "stderr"), "w+b"))
        words = ["size=64M", f"socket={place}/sock", *([options] if options else [])]
        if size is not None:
            words.append(f"size={size if isinstance(size, str) else format_size(size)}")
        process = subprocess.Popen(
            [sys.executable, "-m", "memfsd", "-f", "-o", ",".join(words), where],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        ending.callback(_end, process, where)
        _wait(process, where, log.name)
        yield Mount(where, process)


def _wait(process: "subprocess.Popen[bytes]", where: str, log: str) -> None:
    """PeerLost, Refused: it does not mount."""
    until = time.monotonic() + START_DEADLINE_S
    while not _is_mounted(where):
        if process.poll() is not None:
            with open(log, errors="replace") as said:
                why = said.read().strip().removeprefix("memfsd: ") or f"it ended with {process.returncode}"
            raise Refused(errno.EIO, f"memfsd does not mount on {quoted(where)}: {why}")
        if time.monotonic() > until:
            raise PeerLost(f"memfsd has not mounted on {quoted(where)} within {START_DEADLINE_S:g} s")
        time.sleep(_LOOK_UP_S)


def _is_mounted(where: str) -> bool:
    return any(mount.path == where for mount in memfsd_mounts())


def _end(process: "subprocess.Popen[bytes]", where: str) -> None:
    """Asked first; then the mount is taken away from under whoever holds it, and the daemon killed."""
    process.terminate()
    try:
        process.wait(END_DEADLINE_S)
    except subprocess.TimeoutExpired:
        _unmount_lazily(where)
        process.send_signal(signal.SIGKILL)
        process.wait()
    if _is_mounted(where):
        _unmount_lazily(where)


def _unmount_lazily(where: str) -> None:
    command = ["umount", "-l", where] if os.geteuid() == 0 else ["fusermount3", "-u", "-z", where]
    subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=END_DEADLINE_S, check=False)
