"""A file that a command makes as a whole: a page, a picture, a converted trace, a record of a race.

It is a new one, or comes in the place of an empty one or an older one of its kind. What else is there stays.
"""

import contextlib
import errno
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from memfsd.common.quote import quoted
from memfsd.uapi.errors import Refused

STDOUT = "-"
_HEAD_BYTES = 4096
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


class OutputFile:
    """what: its kind, as in "a page". is_ours: looks at its first 4096 bytes. used: the command's other files.

    stdout: "text" or "data" where - is standard output, which may be a terminal for text alone.
    """

    def __init__(
        self,
        path: str,
        what: str,
        is_ours: Callable[[bytes], bool],
        used: Iterable[str | None] = (),
        stdout: str = "",
    ) -> None:
        self.path = path
        self._what, self._is_ours, self._stdout = what, is_ours, stdout
        self._used = [name for name in used if name is not None and name != STDOUT]

    @property
    def is_stdout(self) -> bool:
        return self.path == STDOUT

    def refuse_unusable(self) -> None:
        """Refused when it cannot be made: called before anything is done for it."""
        self.refuse_others()
        if self.is_stdout:
            return
        target = os.path.realpath(self.path)
        parent = os.path.dirname(target)
        if not os.path.isdir(parent):
            raise self._refused(errno.ENOENT, f": directory {quoted(parent)} does not exist: create it first")
        if not os.access(parent, os.W_OK | os.X_OK) or (os.path.exists(target) and not os.access(target, os.W_OK)):
            raise self._refused(errno.EACCES, " cannot be written: name another file")

    def refuse_others(self) -> None:
        """Refused when what is there is somebody's, or this command has another use for it."""
        if not self.path:
            raise Refused(errno.EINVAL, "the name of the file to write is empty: give a path")
        if self.is_stdout:
            self._refuse_stdout()
            return
        target = os.path.realpath(self.path)
        if any(os.path.realpath(name) == target or _is_same(name, target) for name in self._used):
            raise self._refused(errno.EINVAL, " is used by this command already: name another file")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._refuse_what_is_there()

    def _refuse_stdout(self) -> None:
        if not self._stdout:
            raise Refused(
                errno.EINVAL, "- is standard output, where this command prints: name a file (./- for one of that name)"
            )
        if self._stdout == "data" and sys.stdout.isatty():
            raise Refused(errno.EINVAL, "standard output is a terminal: send it elsewhere, or name a file")

    def _refuse_what_is_there(self) -> None:
        try:
            kind = stat.S_IFMT(os.stat(self.path).st_mode)
            if kind != stat.S_IFREG:
                way_out = f"name a file, or {STDOUT} for standard output" if self._stdout else "name a file"
                raise self._refused(
                    errno.EISDIR if kind == stat.S_IFDIR else errno.EEXIST,
                    f" is {_KINDS.get(kind, 'no file')}: {way_out}",
                )
            with open(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as file:
                head = file.read(_HEAD_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            number = error.errno or errno.EIO
            raise self._refused(number, f" is there: {os.strerror(number)}: name another file") from None
        if head and not self._is_ours(head):
            raise self._refused(errno.EEXIST, f" is there and is not {self._what}: name another file")

    def _refused(self, number: int, why: str) -> Refused:
        return Refused(number, f"{quoted(self.path)}{why}")

    @contextlib.contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """Its place has it when the block ends, whole; nothing has changed when the block raises.

        Refused as `refuse_others`: something may have come meanwhile. OSErrors of standard output have no filename.
        """
        if self.is_stdout:
            sys.stdout.flush()
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
            return
        target = os.path.realpath(self.path)
        new = os.path.join(os.path.dirname(target), f".kvmsim-{secrets.token_hex(8)}")
        try:
            try:
                with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
                    yield file
                    self.refuse_others()
                    with contextlib.suppress(FileNotFoundError):
                        os.fchmod(file.fileno(), os.stat(target).st_mode & 0o777)
                os.replace(new, target)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(new)
        except OSError as error:
            if error.filename in (None, new):
                error.filename, error.filename2 = self.path, None
            raise


def _is_same(name: str, other: str) -> bool:
    try:
        return os.path.samefile(name, other)
    except OSError:
        return False
