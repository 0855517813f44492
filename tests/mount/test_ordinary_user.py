"""Mounting without root, through fusermount3, as `nobody`.

In its own namespaces: a machine may keep /dev/fuse from its users, so here is one that does not; what is left
running ends with the namespace, and no other memfsd mount is seen. The user may read and search every directory,
because the checkout may lie in root's.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.real_mount import run

NOBODY = 65534
AS_NOBODY = f"""\
# Other mounts of the machine are not held here.
grep " fuse.memfsd " /proc/mounts | while read -r _ path _; do umount -l "$(printf "$path")"; done
mount -t tmpfs none /mnt && mknod -m 666 /mnt/fuse c 10 229 && mount --bind /mnt/fuse /dev/fuse || exit
if [ -e /etc/fuse.conf ]; then mount --bind /dev/null /etc/fuse.conf; fi
exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --inh-caps +dac_read_search \
    --ambient-caps +dac_read_search bash -c "$COMMAND"
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """The user's own directory; fusermount3 must reach it as that user."""
    path = Path(tempfile.mkdtemp(prefix="memfsd-nobody-", dir="/tmp"))
    (path / "mnt").mkdir()
    for directory in (path, path / "mnt"):
        os.chown(directory, NOBODY, NOBODY)
    yield path
    shutil.rmtree(path)


def as_nobody(command: str, home: Path) -> str:
    """What it printed; it must succeed."""
    done = run(
        f"unshare --mount --propagation private --pid --fork --kill-child --mount-proc bash -c '{AS_NOBODY}'",
        home,
        COMMAND=command,
        XDG_RUNTIME_DIR=str(home),
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_user_mounts_seals_runs_a_guest_and_unmounts(home: Path) -> None:
    report = as_nobody(
        """
        set -e
        memfsd -o size=16M mnt
        stat -c '%U %a' mnt; grep " $PWD/mnt " /proc/mounts
        memfs create mnt/vm.mem --guest --size 64K
        printf '%s\\n' 'write 0 "hi"' 'read 0 2' 'sh memfs check mnt' | kvmsim attach mnt/vm.mem
        cat mnt/vm.mem || echo refused
        fusermount3 -u mnt
        while pgrep -x memfsd > /dev/null; do :; done
        ls mnt memfsd
        """,
        home,
    )
    for line in (
        "nobody 755",
        "user_id=65534,group_id=65534",
        "mnt/vm.mem: sealed, 64K",
        "|hi|",
        "R1-R8 hold: 2 inodes, 1 paired",
        "refused",
    ):
        assert line in report


def test_the_dead_mount_of_a_user_is_replaced(home: Path) -> None:
    report = as_nobody(
        """
        memfsd -f -o size=16M mnt &
        until grep -q " $PWD/mnt " /proc/mounts; do :; done
        kill -9 $!; wait
        ls mnt
        memfsd -o size=16M mnt && touch mnt/alive && ls mnt && grep -c " $PWD/mnt " /proc/mounts
        fusermount3 -u mnt
        """,
        home,
    )
    assert "Transport endpoint is not connected" in report
    assert report.endswith("alive\n1\n")


def test_what_only_root_may_is_one_line(home: Path) -> None:
    report = as_nobody(
        "memfsd -o size=16M,allow_other mnt; mkdir full; touch full/f; memfsd full; memfsd /usr; true", home
    )
    assert report.splitlines() == [
        "memfsd: allow_other and allow_root are root's: put user_allow_other into /etc/fuse.conf (EPERM)",
        f"memfsd: mount point {home}/full is not empty: choose an empty directory (ENOTEMPTY)",
        "memfsd: mount point /usr: you may not write there, and so not mount there (EACCES)",
    ]


def test_a_dev_fuse_that_is_kept_from_users_is_one_line(home: Path) -> None:
    command = "chmod 600 /dev/fuse; exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps +dac_read_search"
    command += " --ambient-caps +dac_read_search memfsd mnt"
    done = run(
        "unshare -m bash -c 'mount -t tmpfs none /mnt; mknod /mnt/fuse c 10 229;"
        f" mount --bind /mnt/fuse /dev/fuse; {command}'",
        home,
    )
    assert done.stdout == (
        "memfsd: /dev/fuse cannot be opened: Permission denied:"
        " mount as root, or let users open it (chmod 666 /dev/fuse) (EACCES)\n"
    )
