"""One mount, and the words for what is checked on it. Only a store that is alive is ever asked about anything."""

import ctypes
import errno
import hashlib
import json
import os
import signal
import stat
import time
from pathlib import Path

from memfsd.uapi.names import XATTR_COUNTS, XATTR_FRAMES, XATTR_OWNER, XATTR_SEALS

from .launcher import Child, TooLate, launch, until
from .scenarios import FILE_PAGES, POOL_PAGES
from .traps import Board, children

PAGE = 4096
SETTLE_S = 60.0
"""For what needs no deadline of its own to pass: only what never happens takes so long."""
_PUNCH = 1 | 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Broken(AssertionError):
    """What must hold after a fault does not."""


def must(condition: bool, what: str) -> None:
    if not condition:
        raise Broken(what)


class Bench:
    """Starts the store when there is none."""

    def __init__(self, base: Path, *, page_map: bool = True) -> None:
        self.base = base
        self._switches = [] if page_map else ["--no-op", "page-map"]
        self.mount = base / "mnt"
        self.mount.mkdir()
        self.socket = base / "store.sock"
        self.board = Board()
        self.store: Child | None = None
        self.options = ""
        """Of the store, on top of those of every one."""
        self.settle_s = SETTLE_S
        """For what a fault leaves to go again."""
        self._number = 0
        self._logged = 0

    # -- the store

    def start(self) -> None:
        """On the same mount point, whatever the last one left there."""
        options = f"size={POOL_PAGES * PAGE},resize=any,open=rw,socket={self.socket}{self.options}"
        journal = self.base / "journal"
        journal.unlink(missing_ok=True)
        arguments = ["-f", "--journal", str(journal), *self._switches, "-o", options, str(self.mount)]
        self.store = launch("memfsd", arguments, self.base, self.board)
        until(lambda: self.is_live() or self.ended(), "memfsd mounts", SETTLE_S)
        must(not self.ended(), f"memfsd ended with {self.store.status}: {self.store.err}")
        self._logged = 0

    def offer(self, options: str) -> None:
        """A store with these options runs."""
        options = options.format(base=self.base)
        if self.store is not None and not self.ended() and options != self.options:
            self.stop()
        if self.store is None or self.ended():
            self.options = options
            self.start()

    def is_live(self) -> bool:
        try:
            return os.stat(self.mount).st_dev != os.stat(self.base).st_dev and bool(self.counts())
        except OSError as error:
            if error.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.ENOTSUP, errno.ENODATA):
                return False
            raise

    def ended(self) -> bool:
        assert self.store is not None
        return self.store.poll() is not None

    def stop(self) -> None:
        """As a person does it: nothing stays."""
        store = self.store
        assert store is not None
        store.kill(signal.SIGTERM)
        until(self.ended, "memfsd ends at SIGTERM", SETTLE_S)
        must(store.status == 0, f"memfsd ended with {store.status}: {store.err}")
        self.check_gone()

    def check_gone(self) -> None:
        must(not self.is_mounted(), "a mount stays")
        must(not self.socket.exists(), "the socket file stays")
        must(os.listdir(self.mount) == [], "the mount point is not empty")

    def is_mounted(self) -> bool:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return any(line.split()[4] == str(self.mount) for line in lines)

    def check_log(self) -> None:
        """memfsd's own words since it was last looked at."""
        assert self.store is not None
        new = self.store.err[self._logged :]
        self._logged += len(new)
        must("Traceback" not in new and "failed" not in new, f"memfsd's log: {new}")

    # -- what it holds

    def counts(self) -> dict[str, int]:
        line = os.getxattr(self.mount, XATTR_COUNTS).decode()
        return {name: int(count) for name, _, count in (word.partition("=") for word in line.split())}

    def level(self) -> dict[str, int]:
        return {**self.counts(), "free frames": os.statvfs(self.mount).f_bfree}

    def settle_at(self, level: dict[str, int]) -> None:
        try:
            until(lambda: self.level() == level, "", self.settle_s)
        except TooLate:
            now = self.level()
            changed = ", ".join(f"{name} {level[name]} -> {now[name]}" for name in level if level[name] != now[name])
            raise Broken(f"memfsd keeps what it should not: {changed}") from None

    def sealed(self, name: str, pages: int) -> Path:
        path = self.mount / f"{name}{self._number}"
        self._number += 1
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        os.setxattr(path, XATTR_SEALS, b"guest")
        os.truncate(path, pages * PAGE)
        return path

    @staticmethod
    def quarantined(path: Path) -> int:
        fields = dict(word.split("=") for word in os.getxattr(path, XATTR_FRAMES).decode().split())
        return int(fields["quarantined"])

    @staticmethod
    def owner_state(path: Path) -> str:
        """none, paired, cut or ended."""
        return os.getxattr(path, XATTR_OWNER).decode().rpartition("state=")[2]

    def is_bound(self, path: Path) -> bool:
        """A slot of its VM shows a page that the file holds."""
        report = self.command("memfs", "map", "--json", str(path))
        must(report.status == 0, f"memfs map: {report.err}")
        return any(run["gpa"] is not None for run in json.loads(report.out)["runs"])

    @staticmethod
    def unlink_beside(path: Path) -> None:
        """On its own process: the store may stop in the middle of it."""
        if os.fork() == 0:
            try:
                path.unlink(missing_ok=True)
            finally:
                os._exit(0)

    @staticmethod
    def punch(path: Path, pages: int) -> int:
        """Its errno, or 0."""
        fd = os.open(path, os.O_WRONLY)
        try:
            return 0 if _libc.fallocate(fd, _PUNCH, 0, pages * PAGE) == 0 else ctypes.get_errno()
        finally:
            os.close(fd)

    # -- checks

    def check_processes(self) -> None:
        """None but the store. What a dead VM's script had started is ours now, and ends by itself."""

        def alone() -> bool:
            orphans = set(children(os.getpid())) - {self.store.pid if self.store else 0}
            for pid in orphans:
                os.waitpid(pid, os.WNOHANG)
            return not orphans

        until(alone, "no process is left", SETTLE_S)

    def command(self, name: str, *arguments: str, stdin: str = "") -> Child:
        child = launch(name, list(arguments), self.base / "tools", stdin=stdin)
        try:
            until(lambda: child.poll() is not None, f"{name} {' '.join(arguments)} ends", SETTLE_S)
        except TooLate:
            child.kill()
            raise
        return child

    def check_works(self) -> None:
        """An ordinary file from its creation to its end."""
        path = self.mount / "ordinary"
        data = os.urandom(3 * PAGE + 5) if os.statvfs(self.mount).f_bfree >= 4 else b""
        path.write_bytes(data)
        must(path.read_bytes() == data, "an ordinary file does not read as written")
        must(stat.S_ISREG(path.stat().st_mode) and path.stat().st_size == len(data), "stat of an ordinary file")
        path.unlink()
        must(not path.exists(), "an unlinked file is there")

    def check_rules(self) -> None:
        check = self.command("memfs", "check", str(self.mount))
        must(check.status == 0, f"memfs check: {check.out}{check.err}")

    def check_zeros(self) -> None:
        """A new VM gets every frame that is free, and sees nothing but zeros."""
        pages = os.statvfs(self.mount).f_bfree
        if not pages:
            return  # all are in quarantine
        path = self.sealed("new", pages)
        script = f"slot set 0 private gpa=0 size={pages * PAGE} file={path}\nsha256 0 {pages * PAGE}\n"
        child = self.command("kvmsim", "run", "--json", "-", stdin=script)
        must(child.status == 0, f"a new VM cannot run: {child.out}{child.err}")
        digest = json.loads(child.out.splitlines()[-1])["data"]
        must(digest == hashlib.sha256(bytes(pages * PAGE)).hexdigest(), "a new VM sees data of another one")
        path.unlink()
        until(lambda: os.statvfs(self.mount).f_bfree >= pages, "the new VM's frames come back", SETTLE_S)

    def check_all(self) -> None:
        self.check_works()
        self.check_zeros()
        self.check_rules()
        self.check_log()


def now() -> float:
    return time.monotonic()


__all__ = ["FILE_PAGES", "PAGE", "SETTLE_S", "Bench", "Broken", "must", "now"]
