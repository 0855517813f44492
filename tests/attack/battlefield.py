"""A mount that every user may use, with a sealed file whose guest runs and an ordinary file beside it."""

import fcntl
import hashlib
import os
import tempfile
from pathlib import Path

from tests.attack.guests import RunningGuest
from tests.attack.target import FILE_BYTES, OWNER, SECRET
from tests.support.real_mount import Mount

_SECRETS = hashlib.sha256(SECRET * (FILE_BYTES // len(SECRET))).hexdigest()


class Battlefield:
    """mode: strict or rw. The sealed file is the owner's, with all permissions for all: only the seal protects it."""

    def __init__(self, mode: str, directory: Path) -> None:
        self.mode = mode
        base = like_tmp(Path(tempfile.mkdtemp(dir=directory)))
        self.outside = open_for_everyone(Path(tempfile.mkdtemp(dir=directory)))
        self.mount = Mount(base, f"size=32M,allow_other,open={mode}")
        open_for_everyone(self.mount.path)
        self.sealed = self._create("sealed")
        self.ordinary = self._create("ordinary")
        self._early = os.open(self.sealed, os.O_WRONLY | os.O_CLOEXEC)
        os.setxattr(self.sealed, "user.memfsd.seals", b"guest")
        os.truncate(self.sealed, FILE_BYTES)
        self.guest = RunningGuest(self.sealed)
        self.guest.keep_secret(self.outside)
        self.frames = self._held_frames()

    def _create(self, name: str) -> Path:
        path = self.mount.path / name
        path.touch()
        path.chmod(0o777)
        os.chown(path, OWNER, OWNER)
        return path

    def _held_frames(self) -> str:
        return os.getxattr(self.sealed, "user.memfsd.frames").decode()

    @property
    def helpers(self) -> tuple[Path, Path]:
        """Where attackers may put ordinary files of their own."""
        return self.mount.path, self.outside

    def early_handle(self) -> int:
        """Opened write-only before the seal. What one attacker set on it is not there for the next."""
        fcntl.fcntl(self._early, fcntl.F_SETFL, 0)
        return self._early

    def fill_ordinary(self) -> None:
        with self.ordinary.open("wb") as file:
            file.write(SECRET * (FILE_BYTES // len(SECRET)))

    def assert_intact(self) -> None:
        """The guest has every byte of its memory as it left it, in the same frames, and the size is the same."""
        assert self.guest.digest() == _SECRETS
        assert self._held_frames() == self.frames
        assert self.sealed.stat().st_size == FILE_BYTES

    def end(self) -> None:
        self.guest.end()
        os.close(self._early)
        self.mount.remove()
        self.mount.check_log()


def open_for_everyone(directory: Path) -> Path:
    os.chmod(directory, 0o777)
    return directory


def like_tmp(directory: Path) -> Path:
    """Open for everyone, and sticky, else memfsd makes no socket there."""
    os.chmod(directory, 0o1777)
    return directory
