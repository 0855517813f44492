"""/proc/self/mountinfo, as the kernel writes it: which lines are memfsd mounts, and whose."""

import errno
import os

import pytest

from memfsd.common import mounts
from memfsd.common.mounts import Mount, check_serves, memfsd_mounts, mount_of
from memfsd.uapi.errors import Refused

LINES = [
    b"22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda rw\n",
    b"40 22 0:45 / /mnt/a rw,nosuid shared:2 master:1 - fuse.memfsd memfsd rw,user_id=0,group_id=0\n",
    b"41 22 0:46 / /mnt/b\\040c\\134d rw,nosuid - fuse.memfsd memfsd rw,user_id=1000,group_id=1000,allow_other\n",
    b"42 22 0:47 / /mnt/e rw - fuse.sshfs memfsd rw,user_id=0,group_id=0\n",
    b"43 22 0:48 / /mnt/f rw - fuse.memfsd memfsd rw,group_id=0\n",
]


def test_memfsd_mounts_are_those_of_the_type_with_their_owner_and_place() -> None:
    """Not those of another type that are called so. A blank and a backslash are escaped in octal."""
    assert list(mounts._parse(iter(LINES))) == [
        Mount(os.makedev(0, 45), "/mnt/a", 0),
        Mount(os.makedev(0, 46), "/mnt/b c\\d", 1000),
    ]


def test_the_kernels_own_list_is_understood() -> None:
    assert isinstance(memfsd_mounts(), list)


def test_a_file_elsewhere_is_refused_with_the_way_out() -> None:
    with pytest.raises(Refused, match="not a file on a memfsd mount: use one of a directory that memfsd serves") as no:
        mount_of("/proc/self/mountinfo")
    assert no.value.errno == errno.EINVAL
    with pytest.raises(FileNotFoundError):
        mount_of("/nowhere")


@pytest.mark.parametrize(("uid", "serves"), [(0, True), (1000, True), (1001, False)])
def test_root_and_who_mounted_may_serve_a_mount(uid: int, serves: bool) -> None:
    mount = Mount(45, "/mnt/a", 1000)
    assert mount.serves(uid) is serves
    if serves:
        check_serves(mount, uid, "/run/s")
        return
    with pytest.raises(Refused, match="what listens at /run/s is of uid 1001, not the memfsd of /mnt/a") as no:
        check_serves(mount, uid, "/run/s")
    assert no.value.errno == errno.EPERM
