"""A real daemon with a live mount: other users, a thousand half-open connections, and a process that says anything."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from memfsd.uapi.limits import GREETING_DEADLINE_S, MAX_UNPAIRED_PER_UID
from tests.hostile.tally import SEED, share, tried
from tests.support.real_mount import BIN, ENVIRONMENT, Mount, sh
from tests.support.threads import DEADLINE_S, until

ROOT = Path(__file__).parents[2]
NOBODY, SOMEBODY = 65534, 65533
THOUSAND = 1000
MAX_GROWTH_BYTES = 64 << 20

HOLD = """
import os, socket, sys
path, uid, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.setgroups([]); os.setgid(uid); os.setuid(uid)
held = []
for number in range(count):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(path)
    held.append(sock)
print("held", flush=True)
sys.stdin.read()
"""


def counts(mount: Mount) -> dict[str, int]:
    report = subprocess.run(
        [BIN / "memfs", "stat", mount.path, "--json"], capture_output=True, text=True, check=True, timeout=DEADLINE_S
    ).stdout
    return {name: value for name, value in json.loads(report).items() if isinstance(value, int) and name != "lookups"}


def resident(mount: Mount) -> int:
    return int(Path(f"/proc/{mount.process.pid}/statm").read_text().split()[1]) * 4096


@contextlib.contextmanager
def holding(mount: Mount, uid: int, count: int) -> Iterator[None]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, mount.socket, str(uid), str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        yield
    finally:
        holder.kill()
        holder.communicate(timeout=DEADLINE_S)


def use_it(mount: Mount, name: str) -> None:
    """What an honest user does: a new file, a VM, a fault, a punch."""
    sh(f"memfs create mnt/{name} --size 1M --guest", mount.path.parent)
    script = f"slot set 0 private gpa=0 size=1M file=mnt/{name}\nwrite 0 'hello'\nread 0 5\nexpect data 'hello'\n"
    script += f"sh memfs fallocate -p -o 0 -l 4K mnt/{name}\nread 0 1\nexpect data 00\n"
    done = subprocess.run(
        [BIN / "kvmsim", "run", "-"],
        input=script,
        text=True,
        cwd=mount.path.parent,
        env=ENVIRONMENT,
        timeout=DEADLINE_S,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_thousand_half_open_connections_of_one_user_shut_nobody_out(mounted: Mount) -> None:
    before, memory = counts(mounted), resident(mounted)
    begun = time.monotonic()
    with holding(mounted, NOBODY, THOUSAND):
        use_it(mounted, "meanwhile")
        held = counts(mounted)
        if time.monotonic() - begun < GREETING_DEADLINE_S:
            assert held["threads"] - before["threads"] <= MAX_UNPAIRED_PER_UID + 2
        assert resident(mounted) - memory < MAX_GROWTH_BYTES
        until(lambda: f"a connection of uid {NOBODY} was refused" in mounted.log, "it is logged")
        assert mounted.log.count("was refused") < THOUSAND // 10, "one line for a flood, not one for each"
        until_counts(mounted, before, "each half-open connection ends at the greeting deadline, its client alive")
    sh("memfs check mnt", mounted.path.parent)


def until_counts(mount: Mount, wanted: dict[str, int], what: str) -> None:
    """Descriptors, threads, windows and frames; the names of files that a test made may stay, and how often they were
    punched. A thread that was idle when they were counted before may have ended."""
    keys = wanted.keys() - {"inodes", "handles", "punched"}
    deadline = time.monotonic() + DEADLINE_S
    while wrong := [
        (key, wanted[key], now)
        for key, now in counts(mount).items()
        if key in keys and (now > wanted[key] if key == "threads" else now != wanted[key])
    ]:
        assert time.monotonic() < deadline, f"{what}: {wrong}"
        time.sleep(0.1)


def test_another_user_can_neither_pair_nor_ask(mounted: Mount) -> None:
    sh("memfs create mnt/vm.mem --size 1M --guest", mounted.path.parent)
    (mounted.path / "vm.mem").chmod(0o666)
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import socket
from memfsd.uapi import messages as m
from memfsd.uapi.framing import decode_header, encode_request
from memfsd.uapi.messages import Kind
from tests.support.greeting import hello
os.setgroups([]); os.setgid({SOMEBODY}); os.setuid({SOMEBODY})
fd = os.open({str(mounted.path / "vm.mem")!r}, os.O_WRONLY)
def connect():
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect({str(mounted.socket)!r})
    return sock
print("HELLO", os.strerror(hello(connect(), fd, "thief", [32, 33])))
questions = [m.Empty(), m.Empty(), m.Map(os.fstat(fd).st_ino, 0), m.Kcore(0), m.MemoryFailure(2, 0), m.DeviceFile(2)]
for kind, body in zip((Kind.CHECK, Kind.LIST, Kind.MAP, Kind.KCORE, Kind.MEMORY_FAILURE, Kind.DEVICE_ADD), questions):
    sock = connect()
    sock.send(encode_request(1, Kind.HELLO, m.Hello(m.PROTOCOL_VERSION, m.Role.OBSERVER, "thief", [], b"", bytes(16))))
    assert decode_header(sock.recv(65536)).errno == 0
    sock.send(encode_request(2, kind, body))
    print(kind.name, os.strerror(decode_header(sock.recv(65536)).errno))
"""
    report = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE_S)
    kinds = ("HELLO", "CHECK", "LIST", "MAP", "KCORE", "MEMORY_FAILURE", "DEVICE_ADD")
    assert report.stdout.splitlines() == [f"{kind} Permission denied" for kind in kinds], report
    assert os.getxattr(mounted.path / "vm.mem", "user.memfsd.owner") == b"none"


def test_a_process_that_says_anything_and_is_killed_leaves_nothing(mounted: Mount) -> None:
    base = mounted.path.parent
    use_it(mounted, "warm")
    before = counts(mounted)
    for number in range(8):
        sh(f"memfs create mnt/target{number} --size 64K --guest", base)
    memory, count = resident(mounted), share(0.06)
    attacker = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.hostile.attacker", mounted.socket, str(SEED), str(count)),
            *(mounted.path / f"target{number}" for number in range(8)),
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert attacker.stdout is not None
    try:
        use_it(mounted, "meanwhile")
        assert attacker.stdout.readline() == b"done\n"
        tried["a live mount"] += count
        assert mounted.process.poll() is None
        use_it(mounted, "afterwards")
    finally:
        attacker.kill()
        attacker.communicate(timeout=DEADLINE_S)
    until_counts(mounted, before, "all that it held is given back")
    assert resident(mounted) - memory < MAX_GROWTH_BYTES
    assert "hold" in sh("memfs check mnt", base)
    for number in range(8):
        report = os.getxattr(mounted.path / f"target{number}", "user.memfsd.owner")
        assert b"state=ended" in report


def test_a_user_has_so_many_connections_and_another_one_has_his_own(mounted: Mount) -> None:
    """Eight users with as many as they like: the place of the ninth is free."""
    with contextlib.ExitStack() as stack:
        for uid in range(40000, 40004):
            stack.enter_context(holding(mounted, uid, 200))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(mounted.socket))
            use_it(mounted, "meanwhile")
    until(lambda: counts(mounted)["threads"] < 20, "they all end")
