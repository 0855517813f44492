"""The daemon's manners: how it starts, how it ends, and one clear line for each mistake."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memfsd.fuse.mount import check_fuse
from memfsd.uapi.errors import Refused
from tests.support.real_mount import (
    BIN,
    DEADLINE_S,
    WITH_US,
    Mount,
    MountFactory,
    mount_minor,
    opened,
    remove_mount,
    run,
    sh,
)
from tests.support.threads import until


def memfsd(arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run(f"memfsd {arguments}", cwd)


@pytest.fixture
def mnt(tmp_path: Path) -> Iterator[Path]:
    """An empty directory to mount on. Whatever a test leaves there is unmounted, and its daemon gone."""
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    pids = daemons_of(path)
    remove_mount(path)
    until(lambda: not any(map(is_running, pids)), "the daemons end with their mount")


def daemons_of(mountpoint: Path) -> list[int]:
    """Processes that were started with this mount point, or with a socket `s` beside it."""
    marks = {str(mountpoint), f"socket={mountpoint.parent}/s"}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_running(int(entry.name)):
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_text(errors="replace")
                if marks & {option for word in command.split("\0") for option in word.split(",")}:
                    found.append(int(entry.name))
    return found


def is_running(pid: int) -> bool:
    """A zombie that nobody collects has ended, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- starting


def test_it_goes_into_the_background_once_the_mount_is_live(mnt: Path) -> None:
    started = memfsd(f"-o size=16M,socket={mnt.parent}/s {mnt}", mnt.parent)
    assert (started.returncode, started.stdout) == (0, "")
    assert mount_minor(mnt) is not None
    assert sh("echo x > mnt/f; cat mnt/f; getfattr --only-values -n user.memfsd.socket mnt", mnt.parent) == (
        f"x\n{mnt.parent}/s"
    )
    (pid,) = daemons_of(mnt)
    assert os.getsid(pid) == pid != os.getsid(0)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)} == {"/dev/null"}
    sh("umount mnt", mnt.parent)
    until(lambda: not is_running(pid), "the daemon ends")
    assert not (mnt.parent / "s").exists()


def test_a_relative_mount_point_and_a_link_to_it_work(mnt: Path) -> None:
    mnt.parent.joinpath("link").symlink_to("mnt")
    for name in ("mnt/", "./link"):
        sh(f"memfsd -o size=16M,socket={mnt.parent}/s {name} && touch mnt/f && umount mnt", mnt.parent)
        until(lambda: not daemons_of(mnt), "the daemon ends")


def test_a_mount_point_may_have_odd_names(tmp_path: Path) -> None:
    mnt = tmp_path / "with space\tand\\tab"
    mnt.mkdir()
    try:
        sh(f"memfsd -o size=16M,socket={tmp_path}/s 'with space\tand\\tab'", tmp_path)
        again = memfsd("'with space\tand\\tab'", tmp_path)
        assert (again.returncode, "is mounted already" in again.stdout) == (1, True)
        sh("umount 'with space\tand\\tab'", tmp_path)
    finally:
        subprocess.run(["umount", "-l", mnt], stderr=subprocess.DEVNULL, timeout=DEADLINE_S, check=False)


def test_the_default_socket_is_told_works_and_goes(mnt: Path) -> None:
    sh(f"memfsd -o size=16M {mnt} && memfs check mnt", mnt.parent)
    path = Path(os.fsdecode(os.getxattr(mnt, "user.memfsd.socket")))
    assert path.is_socket()
    sh("umount mnt", mnt.parent)
    until(lambda: not path.exists(), "the socket goes with the daemon")


def test_fuses_own_options_are_passed_on(mount: MountFactory) -> None:
    mounted = mount("size=8M,noexec")
    line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(mounted.path) in line)
    assert "noexec" in line
    assert " - fuse.memfsd memfsd " in line
    sh("cp /bin/true mnt/true; mnt/true", mounted.path.parent, status=126)


def test_two_nodes_split_the_pool(mount: MountFactory) -> None:
    mounted = mount("size=8M,nodes=2")
    assert b"node_free=1024,1024" in os.getxattr(mounted.path, "user.memfsd.pool")
    sh("head -c 6M /dev/urandom > f; cp f /dev/null; memfs check .", mounted.path)


def test_it_may_open_as_many_files_as_the_hard_limit_allows(mnt: Path) -> None:
    """A VM takes several for each file that it pairs with."""
    sh("ulimit -Sn 64; memfsd -o size=1M,socket=$PWD/s mnt", mnt.parent)
    (pid,) = daemons_of(mnt)
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    (limits,) = (line.split()[3:5] for line in lines if line.startswith("Max open files"))
    assert limits[0] == limits[1] != "64"


# -- ending


def by_signal(number: int) -> Callable[[Mount], None]:
    return lambda mounted: mounted.process.send_signal(number)


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(by_signal(signal.SIGTERM), id="SIGTERM"),
        pytest.param(by_signal(signal.SIGINT), id="SIGINT"),
        pytest.param(by_signal(signal.SIGHUP), id="SIGHUP"),
        pytest.param(lambda mounted: sh("umount mnt", mounted.path.parent), id="umount"),
        pytest.param(lambda mounted: sh("fusermount3 -u mnt", mounted.path.parent), id="fusermount3 -u"),
    ],
)
def test_it_ends_cleanly(mount: MountFactory, end: Callable[[Mount], None]) -> None:
    mounted = mount()
    sh("memfs create vm.mem --guest --size 64K && memfs fallocate -l 64K vm.mem && echo x > f", mounted.path)
    end(mounted)
    assert mounted.process.wait(DEADLINE_S) == 0, mounted.log
    assert not mounted.is_mounted
    assert not mounted.socket.exists()
    assert os.listdir(mounted.path) == []


def test_a_signal_ends_it_though_a_file_is_open_there(mount: MountFactory) -> None:
    mounted = mount()
    fd = os.open(mounted.path / "f", os.O_RDWR | os.O_CREAT)
    try:
        assert mounted.stop() == 0
        assert not mounted.is_mounted
        with pytest.raises(OSError, match=r"not connected|abort"):
            os.pwrite(fd, b"x", 0)
    finally:
        with pytest.raises(OSError, match=r"not connected|abort"):
            os.close(fd)


def test_umount_is_busy_while_a_file_is_open_and_nothing_ends(mount: MountFactory) -> None:
    mounted = mount()
    with opened(mounted.path / "f", os.O_RDWR | os.O_CREAT):
        assert "busy" in sh("umount mnt", mounted.path.parent, status=32)
        sh("echo alive > mnt/g", mounted.path.parent)
    assert mounted.process.poll() is None


# -- what was there before


def killed_daemon(mount: MountFactory) -> Mount:
    mounted = mount()
    mounted.process.kill()
    mounted.process.wait(DEADLINE_S)
    assert mounted.is_mounted
    return mounted


def test_the_stale_mount_and_socket_of_a_killed_daemon_are_replaced(mount: MountFactory) -> None:
    stale = killed_daemon(mount)
    assert stale.socket.exists()
    parent = stale.path.parent
    started = memfsd(f"-o size=16M,socket={stale.socket} {stale.path}", parent)
    assert (started.returncode, started.stdout) == (0, "")
    assert sh("echo x > mnt/f; cat mnt/f; memfs check mnt", parent).startswith("x\nR1-R8 hold")
    sh("umount mnt", parent)
    assert not stale.is_mounted, "the dead mount is not below"
    until(lambda: not daemons_of(stale.path), "the daemon ends")
    assert not stale.socket.exists()


def test_a_live_mount_is_refused_and_unharmed(mount: MountFactory) -> None:
    live = mount()
    (live.path / "f").write_text("kept")
    refusal = memfsd(str(live.path), live.path.parent)
    assert refusal.returncode == 1
    assert refusal.stdout == f"memfsd: {live.path} is mounted already: umount it first (EBUSY)\n"
    assert (live.path / "f").read_text() == "kept"


def test_the_socket_of_a_live_daemon_is_refused(mount: MountFactory, mnt: Path) -> None:
    live = mount()
    refusal = memfsd(f"-o size=16M,socket={live.socket} {mnt}", mnt.parent)
    assert refusal.returncode == 1
    assert (
        refusal.stdout
        == f"memfsd: socket={live.socket}: another memfsd listens there: choose another socket=PATH (EADDRINUSE)\n"
    )
    assert mount_minor(mnt) is None
    sh("memfs check mnt", live.path.parent)


# -- mistakes


def test_a_socket_path_with_another_thing_is_refused_and_unharmed(mnt: Path) -> None:
    path = mnt.parent / "precious"
    path.write_text("kept")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(mnt.parent / "other"))
        other.listen()
        for name, errno_name in (("precious", "EEXIST"), ("precious/s", "EEXIST"), ("other", "EPROTOTYPE")):
            refusal = memfsd(f"-o size=16M,socket={mnt.parent}/{name} {mnt}", mnt.parent)
            assert refusal.returncode == 1
            (line,) = refusal.stdout.splitlines()
            assert line.startswith(f"memfsd: socket={mnt.parent}/{name}: ")
            assert line.endswith(f"({errno_name})")
    assert (path.read_text(), (mnt.parent / "other").is_socket(), mount_minor(mnt)) == ("kept", True, None)


def test_a_bad_mount_point_is_one_line(tmp_path: Path) -> None:
    sh("mkdir full; touch full/f file", tmp_path)
    for name, said in (
        ("absent", f"memfsd: mount point {tmp_path}/absent: No such file or directory (ENOENT)"),
        ("file", f"memfsd: mount point {tmp_path}/file: Not a directory (ENOTDIR)"),
        ("full", f"memfsd: mount point {tmp_path}/full is not empty: choose an empty directory (ENOTEMPTY)"),
        ("''", "memfsd: the mount point has no name: give a directory (ENOENT)"),
    ):
        refusal = memfsd(name, tmp_path)
        assert (refusal.returncode, refusal.stdout) == (1, f"{said}\n")


BAD_OPTIONS = [
    *("nonsense", "nonsense=1", "max_read=100", "allow_other=1", "fsname", "guest=1"),
    *("size", "size=", "size=0", "size=100", "size=12Q", "size=-1", "size=9T"),
    *("nodes=0", "nodes=65", "nodes=two", "nodes=-1"),
    *("distances=10:20/20", "distances=11:20/20:10", "distances=10:9/20:10", "distances=10:10/20:10"),
    *("distances=10:20/20:10", "distances=ten", "distances=10:255/20:10"),
    *("resize=maybe", "open=wide", "seal_nonempty=maybe", "fixed_gfn=maybe"),
    *("socket", "socket=", f"socket=/{'x' * 107}"),
]


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_a_bad_option_is_usage_and_one_line_that_names_it(mnt: Path, options: str) -> None:
    refusal = memfsd(f"-o {options} {mnt}", mnt.parent)
    assert refusal.returncode == 2
    (line,) = refusal.stdout.splitlines()
    assert line.startswith("memfsd: ")
    assert options.partition("=")[0] in line
    assert line.endswith("(EINVAL)")
    assert mount_minor(mnt) is None


@pytest.mark.parametrize("words", ["", "one two three", "-o", "-x mnt", "-o size=16M"])
def test_a_command_line_without_sense_is_usage(tmp_path: Path, words: str) -> None:
    refusal = memfsd(words, tmp_path)
    assert refusal.returncode == 2
    (line,) = refusal.stdout.splitlines()
    assert line.startswith("memfsd: ")
    assert line.endswith(": see memfsd --help")


@pytest.mark.parametrize("background", ["", "-f "], ids=["background", "foreground"])
def test_what_turns_out_after_the_options_fails_with_1_in_both_modes(mnt: Path, background: str) -> None:
    refusal = memfsd(f"{background}-o size=4K,nodes=2,socket={mnt.parent}/s {mnt}", mnt.parent)
    assert (refusal.returncode, len(refusal.stdout.splitlines())) == (1, 1)
    assert "nodes" in refusal.stdout
    assert not (mnt.parent / "s").exists()
    assert mount_minor(mnt) is None


def test_a_missing_dev_fuse_is_one_line(mnt: Path) -> None:
    """In a mount namespace of its own, whose /dev is empty."""
    refusal = run(f"unshare -m sh -c 'mount -t tmpfs none /dev && exec memfsd {mnt}'", mnt.parent)
    assert refusal.returncode == 1
    assert refusal.stdout == "memfsd: /dev/fuse is missing: load the fuse module (modprobe fuse) (ENODEV)\n"


def test_a_missing_fusermount3_is_told_to_those_who_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Refused, match="fusermount3 is missing: install the package fuse3") as refusal:
        check_fuse()
    assert refusal.value.errno == errno.ENOENT


def test_help_and_version(tmp_path: Path) -> None:
    text = sh("memfsd --help", tmp_path)
    for option in ("size=", "nodes=", "guest", "resize=", "seal_nonempty=", "open=", "fixed_gfn=", "socket="):
        assert option in text
    assert sh("memfsd --version", tmp_path).startswith("memfsd ")


def test_signals_as_soon_as_the_mount_is_there_end_it_and_leave_no_mount(mount: MountFactory) -> None:
    """Also a second one, which comes while it ends."""
    for _ in range(5):
        made = mount("size=16M")
        made.process.send_signal(signal.SIGTERM)
        made.process.send_signal(signal.SIGINT)
        assert made.process.wait(DEADLINE_S) == 0
        assert not made.is_mounted


def test_a_log_that_nobody_reads_holds_up_neither_the_mount_nor_its_end(mnt: Path) -> None:
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write_end, bytes(4096))
    os.set_blocking(write_end, True)
    daemon = subprocess.Popen(
        [*WITH_US, BIN / "memfsd", "-d", "-o", "size=1M", str(mnt)], stderr=write_end, stdout=write_end
    )
    os.close(write_end)
    try:
        until(lambda: mount_minor(mnt) is not None, "it is mounted")
        sh("for n in 1 2 3; do mkdir d d/d/d; cat nothing; done; true", mnt)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(DEADLINE_S) == 0
    finally:
        daemon.kill()
        daemon.wait()
        os.close(read_end)


def test_a_refused_write_is_logged_with_its_reason(mnt: Path) -> None:
    log = mnt.parent / "log"
    with log.open("wb") as out:
        daemon = subprocess.Popen([*WITH_US, BIN / "memfsd", "-d", "-o", "size=1M", str(mnt)], stdout=out, stderr=out)
    try:
        until(lambda: mount_minor(mnt) is not None, "it is mounted")
        sh("touch file; setfattr -n user.memfsd.seals -v guest file; truncate -s 4K file", mnt)
        assert "Operation not permitted" in sh("echo x >>file", mnt, status=1)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(DEADLINE_S) == 0
    finally:
        daemon.kill()
        daemon.wait()
    assert "write: " in log.read_text() and "is guest private memory: only its VM may access it" in log.read_text()


def test_a_daemon_whose_starter_was_interrupted_ends_and_says_nothing(tmp_path: Path) -> None:
    """Ctrl-C reaches the starter alone; the prompt is back then, and nobody waits for the mount."""
    serving = (
        "import os, signal, sys, time\n"
        "import memfsd.daemon\n"
        "from memfsd.commands import memfsd as cli\n"
        "def serve(mountpoint, options, ready):\n"
        "    starter = os.getppid()\n"
        "    os.kill(starter, signal.SIGKILL)\n"
        "    while os.getppid() == starter:\n"
        "        time.sleep(0.01)\n"
        "    ready()\n"
        "memfsd.daemon.serve = serve\n"
        f"sys.exit(cli.run(['-o', 'size=1M', {str(tmp_path)!r}]))\n"
    )
    done = subprocess.run([BIN / "python", "-c", serving], capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGKILL, "", "")
