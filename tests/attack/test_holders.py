"""While it is sealed: who could read the file afterwards stops the seal, and pinned pages show no guest."""

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memfsd.uapi.names import IOC_ADD_SEALS
from memfsd.uapi.seals import Seal
from tests.attack.battlefield import open_for_everyone
from tests.attack.conftest import MountFactory
from tests.attack.guests import RunningGuest
from tests.attack.paths import attach_loop
from tests.attack.syscalls import (
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    IoUring,
    call,
    mapped,
)
from tests.attack.target import FILE_BYTES, PAGE, SECRET
from tests.support.real_mount import Mount, refused, seal, seals_of
from tests.support.threads import until

Holder = Callable[[Path], contextlib.AbstractContextManager[None]]
OLD_CONTENTS = b"before the seal." * (FILE_BYTES // 16)


@pytest.fixture(params=["strict", "rw"])
def file(request: pytest.FixtureRequest, mount: MountFactory, directory: Callable[[Mount], Path]) -> Path:
    path = directory(mount(f"open={request.param}")) / "file"
    path.write_bytes(OLD_CONTENTS)
    path.chmod(0o777)
    return path


def handle(flags: int) -> Holder:
    @contextlib.contextmanager
    def hold(path: Path) -> Iterator[None]:
        fd = os.open(path, flags)
        yield
        os.close(fd)

    return hold


def mapping(protection: int, sharing: int, flags: int) -> Holder:
    """Its handle is closed: only the mapping is left."""

    @contextlib.contextmanager
    def hold(path: Path) -> Iterator[None]:
        fd = os.open(path, flags)
        at = mapped(fd, PAGE, protection, sharing)
        os.close(fd)
        yield
        call("munmap", at, PAGE)

    return hold


@contextlib.contextmanager
def in_flight(path: Path) -> Iterator[None]:
    """Sent over a socket and not received: no process has it."""
    ours, theirs = socket.socketpair()
    fd = os.open(path, os.O_RDONLY)
    socket.send_fds(ours, [b"x"], [fd])
    os.close(fd)
    yield
    ours.close()
    theirs.close()


@contextlib.contextmanager
def in_a_child(path: Path) -> Iterator[None]:
    with path.open("rb") as held:
        process = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, pass_fds=[held.fileno()])
    yield
    process.communicate()


@contextlib.contextmanager
def duplicated(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    second = os.dup(fd)
    os.close(fd)
    yield
    os.close(second)


@contextlib.contextmanager
def on_a_loop_device(path: Path) -> Iterator[None]:
    backing = os.open(path, os.O_RDONLY)
    device = attach_loop(backing)
    os.close(backing)
    yield
    os.close(device)


@contextlib.contextmanager
def registered_with_io_uring(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDONLY)
    ring = IoUring()
    ring.register_file(fd)
    os.close(fd)
    yield
    ring.close()


HOLDERS: dict[str, Holder] = {
    "open(O_RDONLY)": handle(os.O_RDONLY),
    "open(O_RDWR)": handle(os.O_RDWR),
    "open(O_RDONLY|O_DIRECT)": handle(os.O_RDONLY | os.O_DIRECT),
    "a shared mapping": mapping(PROT_READ, MAP_SHARED, os.O_RDONLY),
    "a shared writable mapping": mapping(PROT_READ | PROT_WRITE, MAP_SHARED, os.O_RDWR),
    "a private mapping": mapping(PROT_READ | PROT_WRITE, MAP_PRIVATE, os.O_RDONLY),
    "an executable mapping": mapping(PROT_READ | PROT_EXEC, MAP_PRIVATE, os.O_RDONLY),
    "a mapping without access": mapping(PROT_NONE, MAP_PRIVATE, os.O_RDONLY),
    "a handle in flight in a Unix socket": in_flight,
    "a handle in another process": in_a_child,
    "a duplicated, locked handle": duplicated,
    "a read-only loop device": on_a_loop_device,
    "a file registered with io_uring": registered_with_io_uring,
}


@pytest.mark.parametrize("name", HOLDERS)
@pytest.mark.parametrize("how", ["setxattr", "ioctl"])
def test_what_could_read_the_file_afterwards_keeps_it_from_being_sealed(file: Path, name: str, how: str) -> None:
    with HOLDERS[name](file), refused(errno.EBUSY):
        add_guest_seal(file, how)
    assert file.read_bytes() == OLD_CONTENTS, "a seal that is refused truncates nothing"
    until(lambda: is_sealed_now(file), "the file is sealed once nobody holds it")


def add_guest_seal(file: Path, how: str) -> None:
    if how == "setxattr":
        seal(file, "guest,truncate")
        return
    fd = os.open(file, os.O_WRONLY)
    try:
        fcntl.ioctl(fd, IOC_ADD_SEALS, struct.pack("I", Seal.GUEST))
    finally:
        os.close(fd)


def is_sealed_now(file: Path) -> bool:
    """close(2) does not wait for the daemon to hear of it, so the seal may find the handle there a little longer."""
    try:
        seal(file, "guest,truncate")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return seals_of(file) == "guest"


HARMLESS: dict[str, Holder] = {
    "open(O_PATH)": handle(os.O_PATH),
    "open(O_WRONLY)": handle(os.O_WRONLY),
    "open(O_WRONLY|O_APPEND|O_DIRECT)": handle(os.O_WRONLY | os.O_APPEND | os.O_DIRECT),
    "open with access mode 3": handle(3),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_can_not_read_does_not_hinder_the_seal(file: Path, name: str) -> None:
    with HARMLESS[name](file):
        seal(file, "guest,truncate")
        assert seals_of(file) == "guest"


def test_pages_pinned_before_the_seal_show_what_was_before_it_and_never_the_guest(
    file: Path, anyones_directory: Path
) -> None:
    """A pipe can hold pages of the page cache after the file was closed. Guest memory lives in other pages."""
    out, into = os.pipe()
    with file.open("rb") as reader:
        os.splice(reader.fileno(), into, PAGE, offset_src=0)
    until(lambda: is_sealed_now(file), "sealed")
    os.truncate(file, FILE_BYTES)
    guest = RunningGuest(file)
    try:
        guest.keep_secret(open_for_everyone(anyones_directory))
        loot = ctypes.create_string_buffer(PAGE)
        assert call("read", out, loot, PAGE) == PAGE
        assert loot.raw == OLD_CONTENTS[:PAGE]
        assert SECRET not in loot.raw
    finally:
        guest.end()
        os.close(out)
        os.close(into)
