"""Another user in the place of the store: he owns the directory, the socket, or the file, and must get nothing."""

import contextlib
import errno
import os
import shutil
import signal
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmsim.instruments.monitor import places
from memfsd.peers.server import SOCKETS
from memfsd.uapi import messages as m
from memfsd.uapi.errors import Refused
from memfsd.uapi.framing import decode_request_header, encode_reply
from memfsd.uapi.limits import MAX_PACKET_BYTES
from memfsd.uapi.messages import Kind
from tests.support.real_mount import Mount, run, sh
from tests.support.threads import until

VICTIM, ATTACKER = 40123, 40124
FRAMES = 4096


def as_user(uid: int, call: Callable[[], str]) -> str:
    """What call answers in a process of this user, or why it was refused."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            try:
                said = call()
            except Refused as refused:
                said = f"refused: {refused}"
            os.write(write, said.encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


@pytest.fixture
def base() -> Iterator[Path]:
    """The victim's XDG_RUNTIME_DIR."""
    path = Path(tempfile.mkdtemp(prefix="memfsd-victim-", dir="/tmp"))
    os.chown(path, VICTIM, VICTIM)
    path.chmod(0o700)
    yield path
    shutil.rmtree(path)


def made(base: Path | None) -> str:
    """The victim's memfsd makes its directory."""

    def make() -> str:
        os.environ.pop("XDG_RUNTIME_DIR", None)
        if base is not None:
            os.environ["XDG_RUNTIME_DIR"] = str(base)
        return SOCKETS.make()

    return as_user(VICTIM, make)


def test_the_directory_is_made_for_its_user_alone(base: Path) -> None:
    assert made(base) == f"{base}/memfsd"
    status = os.stat(base / "memfsd")
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (VICTIM, 0o700)
    assert made(base) == f"{base}/memfsd", "and used again"
    (base / "memfsd").chmod(0o755)
    assert made(base) == f"{base}/memfsd"
    assert stat.S_IMODE(os.stat(base / "memfsd").st_mode) == 0o700, "as an older version left it"


@pytest.fixture
def in_tmp() -> Iterator[Path]:
    """The directory that a user without XDG_RUNTIME_DIR has."""
    path = Path(f"/tmp/memfsd-{VICTIM}")
    yield path
    with contextlib.suppress(FileNotFoundError):
        path.unlink() if path.is_symlink() or path.is_file() else shutil.rmtree(path)


def test_a_directory_that_another_user_made_first_is_refused(in_tmp: Path) -> None:
    """He could rename what is in it, and listen in its place."""
    in_tmp.mkdir()
    in_tmp.chmod(0o777)
    os.chown(in_tmp, ATTACKER, ATTACKER)
    assert made(None) == (
        f"refused: EPERM: {in_tmp} belongs to uid {ATTACKER}: "
        f"remove {in_tmp}, or choose a socket=PATH in a directory of yours"
    )


def test_a_link_and_a_file_in_its_place_are_refused(in_tmp: Path, base: Path) -> None:
    in_tmp.symlink_to(base)
    os.lchown(in_tmp, ATTACKER, ATTACKER)
    assert "it is not a directory but a link or a file" in made(None)
    in_tmp.unlink()
    in_tmp.touch()
    assert "it is not a directory but a link or a file" in made(None)


def test_a_directory_of_ours_that_others_can_write_is_refused(base: Path) -> None:
    (base / "memfsd").mkdir()
    os.chown(base / "memfsd", VICTIM, VICTIM)
    for mode in (0o777, 0o770, 0o1777):
        (base / "memfsd").chmod(mode)
        assert f"is writable by others (mode {mode:o})" in made(base)


def test_a_runtime_directory_of_somebody_else_is_refused(base: Path) -> None:
    os.chown(base, ATTACKER, ATTACKER)
    base.chmod(0o777)
    assert f"{base} belongs to uid {ATTACKER}" in made(base)


def test_a_socket_where_everybody_can_replace_it_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "open"
    (place / "mnt").mkdir(parents=True)
    place.chmod(0o777)
    done = run(f"memfsd -f -o size=16M,socket={place}/s.sock {place}/mnt", tmp_path)
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 1), done.stdout
    assert "writable by everybody" in done.stdout


class Impostor:
    """A process of the attacker that listens where the store did, answers all, and keeps a window it can read."""

    def __init__(self, path: Path, uid: int) -> None:
        self.window = os.memfd_create("stolen", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.window, FRAMES * 4096)
        self.asked, writing = os.pipe()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                listener.bind(str(path))
                os.chmod(path, 0o666)
                listener.listen()
                while True:
                    self._serve(listener.accept()[0], writing)
            finally:
                os._exit(0)
        listener.close()
        os.close(writing)
        until(path.exists, "the impostor listens")

    def _serve(self, sock: socket.socket, writing: int) -> None:
        up, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        answers: dict[Kind, m.Body] = {
            Kind.HELLO: m.HelloReply(m.PROTOCOL_VERSION, sorted(m.STORE_OPERATIONS), bytes(16), bytes(32)),
            Kind.PAIR: m.PairReply(2, 65536, 0, 0, FRAMES, m.MemoryType.WB, 0, 0, 0),
            Kind.GET_PFN: m.GetPfnReply(0, 1, 0, 0),
            Kind.CHECK: m.CheckReply([], 2, 0, FRAMES),
            Kind.LIST: m.ListReply({"free": FRAMES}, 0, 0, [], 0),
        }
        while packet := sock.recv(MAX_PACKET_BYTES):
            id_, kind = decode_request_header(packet)
            os.write(writing, kind.name.encode() + b" ")
            reply = encode_reply(id_, kind, answers.get(kind, m.Empty()))
            socket.send_fds(sock, [reply], [self.window, theirs.fileno()] if kind is Kind.PAIR else [])
        sock.close()
        up.close()

    def end(self) -> str:
        """What was said to it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        with open(self.asked, encoding="utf-8") as pipe:
            said = pipe.read()
        assert os.lseek(self.window, 0, os.SEEK_END) == FRAMES * 4096
        assert os.fstat(self.window).st_blocks == 0, "nothing that a guest wrote is in the attacker's window"
        os.close(self.window)
        return said


def test_kvmsim_and_the_tools_say_nothing_to_an_impostor(mounted: Mount) -> None:
    """The socket was renamed away, and another user listens there. Before, kvmsim took his memfd for its window."""
    base = mounted.path.parent
    sh("memfs create mnt/secret.mem --size 64K --guest", base)
    aside = mounted.socket.with_name("aside")
    mounted.socket.rename(aside)
    base.chmod(0o777)
    impostor = Impostor(mounted.socket, ATTACKER)
    try:
        attached = run("echo 'write 0 \"the guest its secret\"' | kvmsim attach mnt/secret.mem", base)
        assert attached.returncode == 1
        assert f"is of uid {ATTACKER}, not the memfsd of {mounted.path} (uid 0)" in attached.stdout
        for command in ("memfs check mnt", "memfs top -n 1 mnt", "memfs map mnt/secret.mem"):
            done = run(command, base)
            assert done.returncode in (1, 3), done.stdout
            assert "an impostor" in done.stdout
            assert len(done.stdout.splitlines()) == 1
    finally:
        said = impostor.end()
        base.chmod(0o700)
        mounted.socket.unlink()
        aside.rename(mounted.socket)
    assert said == "", "not even HELLO"
    assert os.getxattr(mounted.path / "secret.mem", "user.memfsd.owner") == b"none"
    assert "|secret|" in sh("printf 'write 0 \"secret\"\\nread 0 6\\n' | kvmsim attach mnt/secret.mem", base)


def test_an_impostor_of_the_right_user_fails_at_the_proof(mounted: Mount) -> None:
    """Root's, so that SO_PEERCRED lets it: it cannot know the key of a token that it did not make."""
    base = mounted.path.parent
    sh("memfs create mnt/proof.mem --size 64K --guest", base)
    aside = mounted.socket.with_name("aside")
    mounted.socket.rename(aside)
    impostor = Impostor(mounted.socket, 0)
    try:
        attached = run("echo 'write 0 \"secret\"' | kvmsim attach mnt/proof.mem", base)
        assert attached.returncode == 1
        assert "whose token it cannot prove" in attached.stdout
    finally:
        said = impostor.end()
        mounted.socket.unlink()
        aside.rename(mounted.socket)
    assert said == "HELLO ", "and not PAIR"


def test_attributes_on_a_file_of_another_file_system_make_no_guest_memory(mounted: Mount) -> None:
    base = mounted.path.parent
    fake = base / "fake.mem"
    fake.write_bytes(bytes(65536))
    for name, value in (("seals", b"guest"), ("socket", os.fsencode(mounted.socket)), ("token", bytes(32))):
        os.setxattr(fake, f"user.memfsd.{name}", value)
    attached = run("echo 'read 0 1' | kvmsim attach fake.mem", base)
    assert attached.returncode == 1
    assert "not a file on a memfsd mount" in attached.stdout
    slot = run("echo 'slot set 0 private gpa=0 size=64K file=fake.mem' | kvmsim run -", base)
    assert slot.returncode == 1
    assert "not a file on a memfsd mount" in slot.stdout
    for command in ("check", "stat", "map", "top -n 1"):
        done = run(f"memfs {command} fake.mem", base)
        assert done.returncode in (1, 3)
        assert "is not on a memfsd mount" in done.stdout
    assert "is not on a memfsd mount" in run("memfs seal fake.mem guest", base).stdout


def test_the_monitor_of_a_vm_is_its_users_alone() -> None:
    """Another user cannot even reach the socket, and what he puts in the place of its directory is not used."""
    directory = Path(f"/tmp/kvmsim-{VICTIM}")

    def listen() -> str:
        os.environ.pop("XDG_RUNTIME_DIR", None)
        return " ".join(listener.path for listener in places.listen([]))

    def connect() -> str:
        with socket.socket(socket.AF_UNIX) as sock:
            return errno.errorcode[sock.connect_ex(path)]

    try:
        path = as_user(VICTIM, listen)
        assert path.startswith(f"{directory}/") and path.endswith(".qmp")
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert as_user(ATTACKER, connect) == "EACCES"
        assert as_user(VICTIM, connect) == "ECONNREFUSED", "its process has ended"
        os.chown(directory, ATTACKER, ATTACKER)
        assert as_user(VICTIM, listen) == "", "a run goes on without a monitor"
    finally:
        shutil.rmtree(directory)
