"""Where a program listens: its directory for sockets, and a socket in it or at a place that the user chose.

default   of root /run/NAME, else $XDG_RUNTIME_DIR/NAME or /tmp/NAME-UID: real directories, made here, in which nobody
          else can rename, or put a socket of theirs in the place of ours
chosen    any directory where others cannot replace what they do not own
"""

import contextlib
import errno
import os
import socket
import stat

from memfsd.uapi.errors import Refused

from .quote import quoted

_ROOT, _TMP = "/run", "/tmp"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_PROBE_S = 1.0


class RuntimeDirectory:
    """Of one program; its sockets are named PID.SUFFIX."""

    def __init__(self, program: str, option: str, suffix: str, kind: socket.SocketKind, *, root_mode: int) -> None:
        """option: how the user chooses another place, as it is written before the PATH. root_mode: of root's directory;
        those of others are their own."""
        self.program = program
        self.option = option
        self.suffix = suffix
        self.kind = kind
        self.root_mode = root_mode

    @property
    def path(self) -> str:
        return self._places()[1]

    def socket_path(self, pid: int) -> str:
        """Where this process of the same user listens."""
        return f"{self.path}/{pid}.{self.suffix}"

    def places_of(self, pid: int, uid: int) -> list[str]:
        """Where a process of that user may listen by default."""
        name = f"{pid}.{self.suffix}"
        if uid == 0:
            return [f"{_ROOT}/{self.program}/{name}"]
        bases = [f"/run/user/{uid}/{self.program}", f"{_TMP}/{self.program}-{uid}"]
        if uid == os.geteuid():
            bases.insert(0, self.path)
        return [f"{base}/{name}" for base in dict.fromkeys(bases)]

    def make(self) -> str:
        """The directory, made where it is missing. Refused names what is wrong with one that is there."""
        base, path = self._places()
        self._check(base, owners={0, os.geteuid()}, sticky_is_enough=True)
        try:
            os.mkdir(path, self.root_mode if os.geteuid() == 0 else 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            reason = f"{quoted(path)}: {error.strerror}: choose a {self.option}PATH"
            raise Refused(error.errno or errno.EIO, reason) from None
        self._check(path, owners={os.geteuid()}, sticky_is_enough=False)
        return path

    def check_chosen(self, directory: str) -> None:
        """Refused when everybody may replace a socket in this directory."""
        mode = os.stat(directory).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise Refused(
                errno.EPERM,
                f"{quoted(directory)} is writable by everybody: choose another {self.option}PATH, or chmod it",
            )

    def listen(self, path: str, mode: int) -> socket.socket:
        """A listening socket with this mode. One that a dead process left is replaced, a live one is not. Refused."""
        said = f"{self.option}{quoted(path)}"
        sock = socket.socket(socket.AF_UNIX, self.kind)
        try:
            if os.path.lexists(path):
                if not stat.S_ISSOCK(os.lstat(path).st_mode):
                    raise Refused(
                        errno.EEXIST,
                        f"{said}: another kind of file is there: remove it, or choose another {self.option}PATH",
                    )
                if self.is_live(path):
                    raise Refused(
                        errno.EADDRINUSE,
                        f"{said}: another {self.program} listens there: choose another {self.option}PATH",
                    )
                os.unlink(path)
            os.fchmod(sock.fileno(), mode)  # before bind(2), which makes the file with it: nobody connects in between
            sock.bind(path)
            os.chmod(path, mode)  # what the umask took
            sock.listen(128)
        except OSError as error:
            sock.close()
            raise Refused(error.errno or errno.EIO, f"{said}: {error.strerror or error}") from None
        except Refused:
            sock.close()
            raise
        return sock

    def sweep(self, directory: str) -> None:
        """Remove the sockets that processes left which did not end by themselves."""
        for name in os.listdir(directory):
            pid, _, suffix = name.partition(".")
            path = os.path.join(directory, name)
            if suffix == self.suffix and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
                with contextlib.suppress(OSError):
                    if not self.is_live(path):  # another PID namespace may share the directory
                        os.unlink(path)

    def is_live(self, path: str) -> bool:
        """Somebody listens there. OSError when that cannot be said."""
        with socket.socket(socket.AF_UNIX, self.kind) as probe:
            probe.settimeout(_PROBE_S)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                return False
            except BlockingIOError:  # its backlog is full
                return True
            return True

    def _places(self) -> tuple[str, str]:
        """The directory that must be there, and ours in it."""
        if os.geteuid() == 0:
            return _ROOT, f"{_ROOT}/{self.program}"
        base = os.environ.get("XDG_RUNTIME_DIR")
        return (base, f"{base}/{self.program}") if base else (_TMP, f"{_TMP}/{self.program}-{os.geteuid()}")

    def _check(self, path: str, *, owners: set[int], sticky_is_enough: bool) -> None:
        """A directory, no link to one, of these owners, where nobody else can rename."""
        way_out = f"remove {quoted(path)}, or choose a {self.option}PATH in a directory of yours"
        try:
            fd = os.open(path, _DIRECTORY)
        except OSError as error:
            why = error.strerror
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                why = "it is not a directory but a link or a file"
            raise Refused(error.errno or errno.EIO, f"{quoted(path)}: {why}: {way_out}") from None
        try:
            status = os.fstat(fd)
            mode = stat.S_IMODE(status.st_mode)
            if status.st_uid not in owners:
                raise Refused(errno.EPERM, f"{quoted(path)} belongs to uid {status.st_uid}: {way_out}")
            if mode & _OTHERS_WRITE and not (sticky_is_enough and mode & stat.S_ISVTX):
                raise Refused(errno.EPERM, f"{quoted(path)} is writable by others (mode {mode:o}): {way_out}")
            if not sticky_is_enough and os.geteuid() != 0 and mode & 0o077:
                os.fchmod(fd, 0o700)
        finally:
            os.close(fd)


MONITORS = RuntimeDirectory("kvmsim", "--qmp unix:", "qmp", socket.SOCK_STREAM, root_mode=0o700)
"""Where kvmsim's processes listen for QMP: `memfs vms` names the sockets, too."""
