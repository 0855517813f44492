"""memfsd as mount(8), fstab(5) and mount.fuse3 call it, and two of it at once on one directory."""

import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from memfsd.fuse import mounting
from memfsd.fuse.mount import parse_options
from tests.support.real_mount import BIN, DEADLINE_S, ENVIRONMENT, remove_mount, run, sh
from tests.support.threads import until


@pytest.fixture
def mnt(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    remove_mount(path)


def as_mount_sees_it(commands: str, cwd: Path, status: int = 0) -> str:
    """mount(8) gives its helper a PATH of its own: memfsd is put there for these commands, and their mounts end with
    them."""
    (cwd / "commands").write_text(f"set -e\nmount --bind {BIN} /usr/local/bin\n{commands}\n")
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "/bin/bash", "commands"],
        cwd=cwd,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


USE = "echo hello > mnt/f; cat mnt/f; findmnt -no SOURCE,FSTYPE,OPTIONS mnt; umount mnt"


@pytest.mark.parametrize(
    ("command", "source"),
    [
        ("mount -t fuse.memfsd none mnt -o size=16M,socket=$PWD/s", "none"),
        ("mount -t fuse.memfsd 'a,b c' mnt -o size=16M,socket=$PWD/s", "a,b c"),
        ("mount -t fuse memfsd#pool mnt -o size=16M,socket=$PWD/s", "pool"),
        ("mount.fuse3 memfsd#pool mnt -o size=16M,socket=$PWD/s", "pool"),
        ("memfsd pool mnt -o size=16M,socket=$PWD/s,fsname=other", "other"),
        ("memfsd mnt -o size=16M,socket=$PWD/s", "memfsd"),
    ],
)
def test_a_source_names_the_mount(tmp_path: Path, mnt: Path, command: str, source: str) -> None:
    hello, shown = as_mount_sees_it(f"{command}\n{USE}", tmp_path).splitlines()
    assert hello == "hello"
    assert shown.startswith(f"{source} ")
    assert shown.split()[-2] == "fuse.memfsd"


def test_fstab(tmp_path: Path, mnt: Path) -> None:
    options = f"size=16M,socket={tmp_path}/s,defaults,noauto,nofail,user,x-systemd.automount,comment=x"
    (tmp_path / "fstab").write_text(f"none {mnt} fuse.memfsd {options} 0 0\n")
    report = as_mount_sees_it(f"mount --fstab $PWD/fstab {mnt}\n{USE}", tmp_path)
    assert report.startswith("hello\nnone")
    assert "noexec" in report, "what user implies"


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        *((word, word) for word in ("noatime", "nodiratime", "nosymfollow", "noexec", "nosuid", "nodev", "ro")),
        *((word, "relatime") for word in ("relatime", "lazytime", "diratime", "silent", "mand", "iversion", "atime")),
        ("nosymfollow,symfollow", "relatime"),
        ("strictatime", "rw"),
    ],
)
def test_options_of_mount_are_taken_and_shown(tmp_path: Path, mnt: Path, option: str, shown: str) -> None:
    report = as_mount_sees_it(
        f"mount -t fuse.memfsd none mnt -o size=16M,socket=$PWD/s,{option}\nfindmnt -no VFS-OPTIONS mnt; umount mnt",
        tmp_path,
    )
    words = report.strip().split(",")
    assert shown in words
    assert ("relatime" in words) == (option not in ("noatime", "strictatime"))
    assert ("nosymfollow" in words) == (option == "nosymfollow")


def test_nosymfollow_is_kept(tmp_path: Path, mnt: Path) -> None:
    script = "memfsd -o size=16M,socket=$PWD/s,nosymfollow mnt; ln -s /etc/passwd mnt/l; cat mnt/l"
    assert "Too many levels of symbolic links" in run(f"{script}; umount mnt", tmp_path).stdout


def test_remount_is_refused_with_the_way_out(tmp_path: Path, mnt: Path) -> None:
    report = as_mount_sees_it(
        "mount -t fuse.memfsd none mnt -o size=16M,socket=$PWD/s\n"
        "mount -o remount,ro mnt && exit 1\n"
        "mount -i -o remount,ro mnt; touch mnt/f && exit 1\numount mnt",
        tmp_path,
    )
    assert "memfsd: remount is not supported: unmount and mount again" in report
    assert "Read-only file system" in report


def stacked(mountpoint: Path) -> int:
    return sum(line.split()[4] == str(mountpoint) for line in Path("/proc/self/mountinfo").read_text().splitlines())


@pytest.mark.parametrize("before", ["nothing", "a dead mount"])
def test_of_two_at_once_one_wins_and_the_others_say_ebusy(tmp_path: Path, mnt: Path, before: str) -> None:
    if before == "a dead mount":
        dead = subprocess.Popen([BIN / "memfsd", "-f", "-o", f"size=1M,socket={tmp_path}/dead", mnt], env=ENVIRONMENT)
        until(lambda: stacked(mnt) == 1, "it is mounted")
        dead.kill()
        dead.wait()
    daemons = [
        subprocess.Popen(
            [BIN / "memfsd", "-o", f"size=16M,socket={tmp_path}/s{number}", mnt],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    report = [process.communicate(timeout=DEADLINE_S)[1] for process in daemons]
    assert sorted(process.returncode for process in daemons) == [0, 1, 1, 1], report
    assert [line.endswith("(EBUSY)\n") for line in report if line] == [True] * 3
    assert stacked(mnt) == 1
    assert sh("echo hello > mnt/f; cat mnt/f", tmp_path) == "hello\n"


def test_a_lock_that_others_hold_does_not_keep_a_mount_away(
    tmp_path: Path, mnt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounting, "_LOCK_DEADLINE_S", 0.05)
    above = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(above, fcntl.LOCK_EX)
    with mounting.alone_at(str(mnt)):
        pass
    os.close(above)


@pytest.mark.parametrize("pair", ["ro,rw", "suid,nosuid", "dev,nodev", "exec,noexec", "sync,async"])
def test_of_contrary_options_the_last_counts(pair: str) -> None:
    one, other = pair.split(",")
    for words, kept, gone in (([pair], other, one), ([other, one], one, other), ([f"{pair},{one}"], one, other)):
        fuse = parse_options(words, 1 << 20).fuse
        assert kept in fuse and gone not in fuse, words
