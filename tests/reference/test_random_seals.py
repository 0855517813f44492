"""Random seals through every door (xattr, ioctl, creation, mount option) among random operations: one set of rules,
whoever asks. A model of a few lines says what each answers.

    MEMFSD_SEALING_STEPS=100000 MEMFSD_SEALING_SEED=7 pytest tests/reference/test_random_seals.py
"""

import errno
import fcntl
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import memfsd
from memfsd.uapi.names import IOC_ADD_SEALS, IOC_GET_SEALS, XATTR_SEALS
from memfsd.uapi.seals import Seal, format_seals, parse_seals
from tests.reference.mounts import memfsd_mount

STEPS = int(os.environ.get("MEMFSD_SEALING_STEPS", "2000"))
SEED = int(os.environ.get("MEMFSD_SEALING_SEED", "2"))
PAGE = 4096
DOORS = ("xattr", "ioctl", "creation", "mount option", "none")


class File:
    """A file and its model. `asker` is a write-only handle, which no seal minds."""

    def __init__(self, door: str, plain: Path, born: Path, number: int) -> None:
        self.seals = Seal.GUEST if door in ("creation", "mount option") else Seal(0)
        self.size = PAGE if door == "creation" else 0
        self.handles: list[tuple[int, int]] = []
        self.never_mapped_writable: set[int] = set()
        """fds that were opened after the seal future-write."""
        if door == "creation":
            self.asker = memfsd.memfd_encrypted(f"f{number}", PAGE)
        else:
            path = (born if door == "mount option" else plain) / f"f{number}"
            self.asker = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.unlink(path)
        if door in ("xattr", "ioctl"):
            self.add(door, Seal.GUEST)

    def close(self) -> None:
        for fd in (self.asker, *(fd for fd, _ in self.handles)):
            os.close(fd)

    @property
    def told(self) -> tuple[Seal, Seal, int]:
        by_xattr = os.getxattr(self.asker, XATTR_SEALS).decode()
        by_ioctl = fcntl.ioctl(self.asker, IOC_GET_SEALS, bytes(4))
        return (
            parse_seals(by_xattr)[0] if by_xattr else Seal(0),
            Seal(int.from_bytes(by_ioctl, "little")),
            os.fstat(self.asker).st_size,
        )

    def expect(self, number: int, call: Callable[[], object], what: str) -> bool:
        """Whether it succeeded, as the model said."""
        got = 0
        try:
            call()
        except OSError as error:
            got = error.errno or 0
        assert errno.errorcode.get(got, "ok") == errno.errorcode.get(number, "ok"), what
        return got == 0

    def add(self, door: str, seals: Seal) -> None:
        adding = seals & ~self.seals
        modes = [mode for _, mode in self.handles]
        may_store = any(mode == os.O_RDWR and fd not in self.never_mapped_writable for fd, mode in self.handles)
        number = 0
        if Seal.SEAL in self.seals:
            number = errno.EPERM
        elif (Seal.WRITE in adding and may_store) or (Seal.GUEST in adding and set(modes) - {os.O_WRONLY}):
            number = errno.EBUSY
        elif Seal.GUEST in adding and self.size:
            number = errno.EPERM if Seal.SHRINK in self.seals else errno.EBUSY
        calls: dict[str, Callable[[], object]] = {
            "xattr": lambda: os.setxattr(self.asker, XATTR_SEALS, format_seals(seals).encode()),
            "ioctl": lambda: fcntl.ioctl(self.asker, IOC_ADD_SEALS, int(seals).to_bytes(4, "little")),
        }
        if self.expect(number, calls[door], f"add {seals!r} by {door} to {self.seals!r} beside {modes}"):
            self.seals |= seals

    def open(self, mode: int) -> None:
        def call() -> None:
            fd = os.open(f"/proc/self/fd/{self.asker}", mode)
            self.handles.append((fd, mode))
            self.never_mapped_writable.discard(fd)
            if self.seals & (Seal.WRITE | Seal.FUTURE_WRITE):
                self.never_mapped_writable.add(fd)

        refused = Seal.GUEST in self.seals and mode != os.O_WRONLY
        self.expect(errno.EPERM if refused else 0, call, f"open with {mode} under {self.seals!r}")

    def close_one(self, dice: random.Random) -> None:
        if self.handles:
            os.close(self.handles.pop(dice.randrange(len(self.handles)))[0])

    def write(self) -> None:
        sealed = self.seals & (Seal.WRITE | Seal.FUTURE_WRITE | Seal.GUEST) or (
            Seal.GROW in self.seals and not self.size
        )
        if self.expect(errno.EPERM if sealed else 0, lambda: os.pwrite(self.asker, b"w", 0), f"write, {self.seals!r}"):
            self.size = max(self.size, 1)

    def truncate(self, size: int) -> None:
        if Seal.GUEST in self.seals:
            sealed = self.size > 0 or (size > 0 and Seal.GROW in self.seals)
        else:
            seal = Seal.SHRINK if size < self.size else Seal.GROW
            sealed = size != self.size and seal in self.seals
        if self.expect(
            errno.EPERM if sealed else 0,
            lambda: os.ftruncate(self.asker, size),
            f"from {self.size} to {size}, {self.seals!r}",
        ):
            self.size = size


@pytest.fixture(scope="module")
def mounts() -> Iterator[tuple[Path, Path]]:
    with memfsd_mount("size=16M") as plain, memfsd_mount("size=16M,guest") as born:
        yield plain, born


def test_random_seals_through_every_door_follow_one_set_of_rules(
    mounts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMFSD_MOUNT", str(mounts[0]))
    dice = random.Random(SEED)
    for number in range(STEPS // 20):
        file = File(DOORS[number % len(DOORS)], *mounts, number)
        try:
            for _ in range(20):
                kind = dice.randrange(10)
                if kind < 4:
                    seals = Seal(0)
                    for seal in dice.sample([*Seal], dice.choice((1, 1, 1, 2))):
                        seals |= seal
                    if Seal.SEAL not in seals or not dice.randrange(4):
                        file.add(dice.choice(("xattr", "ioctl")), seals)
                elif kind < 6:
                    file.open(dice.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR)))
                elif kind < 8:
                    file.close_one(dice)
                elif kind < 9:
                    file.write()
                else:
                    file.truncate(dice.choice((0, PAGE, 2 * PAGE)))
                assert file.told == (file.seals, file.seals, file.size)
        finally:
            file.close()
