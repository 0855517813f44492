"""How a shell and a program speak to the store: attributes, ioctls, and what cannot reach it."""

import array
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from memfsd.uapi import names
from memfsd.uapi.proof import TOKEN_BYTES
from memfsd.uapi.seals import Seal
from tests.support.real_mount import (
    PAGE,
    SEALS,
    DirectoryFactory,
    MountFactory,
    fallocate,
    opened,
    refused,
    seal,
    seals_of,
    sh,
)
from tests.support.threads import until

RESIZE_ANY = "size=64M,resize=any"
TOKEN = names.XATTR_TOKEN.decode()


def make(directory: Path, seals: str = "", size: int = 0) -> Path:
    path = directory / "f"
    path.touch()
    if seals:
        seal(path, seals)
    if size:
        os.truncate(path, size)
    return path


def attribute(path: Path, name: str) -> str:
    return os.getxattr(path, f"user.memfsd.{name}").decode()


# -- attributes


def test_getfattr_shows_a_sealed_files_attributes(shared_mount: MountFactory, place: Path) -> None:
    make(place, "guest,shrink", 4 * PAGE)
    socket = shared_mount("size=64M").socket
    assert sh("memfs fallocate -l 8K f && getfattr -d f", place) == (
        "# file: f\n"
        'user.memfsd.frames="private=2 pending=0 quarantined=0 punched=0 leaked=0 populated=0"\n'
        'user.memfsd.numa="default"\n'
        'user.memfsd.owner="none"\n'
        'user.memfsd.page_size="4096"\n'
        'user.memfsd.seals="shrink,guest"\n'
        f'user.memfsd.socket="{socket}"\n\n'
    )


def test_ordinary_files_list_nothing_of_ours_but_tell_it_by_name(place: Path) -> None:
    path = make(place)
    path.write_bytes(b"x" * PAGE)
    os.setxattr(path, SEALS, b"write")
    assert os.listxattr(path) == []
    assert [attribute(path, name) for name in ("seals", "page_size", "numa", "owner", "frames")] == [
        "write",
        "4096",
        "default",
        "none",
        "shared=1",
    ]


def test_the_root_tells_of_its_pool(mount: MountFactory) -> None:
    mounted = mount("size=1M,nodes=2")
    make(mounted.path).write_bytes(b"x" * PAGE)
    words = dict(word.split("=") for word in attribute(mounted.path, "pool").split())
    assert (words["frames"], words["free"], words["shared"], words["private"]) == ("256", "255", "1", "0")
    assert sorted(words["node_free"].split(",")) == ["127", "128"]
    assert os.listxattr(mounted.path) == [], "a copy of the mount would have them"
    assert attribute(mounted.path, "counts")
    assert attribute(mounted.path, "socket") == str(mounted.socket)


def test_directories_tell_only_where_the_socket_is(place: Path) -> None:
    assert os.listxattr(place) == []
    assert attribute(place, "socket")
    for name in ("pool", "seals", "frames", "token", "nonsense"):
        with refused(errno.ENODATA):
            attribute(place, name)


@pytest.mark.parametrize("name", ["owner", "frames", "socket", "pool", "counts", "token"])
def test_what_only_tells_can_not_be_set_or_removed(place: Path, name: str) -> None:
    path = make(place, "guest")
    before = sh("getfattr -d f", place)
    with refused(errno.EPERM):
        os.setxattr(path, f"user.memfsd.{name}", b"1")
    with refused(errno.EPERM):
        os.removexattr(path, f"user.memfsd.{name}")
    assert sh("getfattr -d f", place) == before


def test_unknown_attributes_of_ours_do_not_exist(place: Path) -> None:
    path = make(place)
    with refused(errno.EOPNOTSUPP):
        os.setxattr(path, "user.memfsd.nonsense", b"1")
    with refused(errno.ENODATA):
        os.getxattr(path, "user.memfsd.nonsense")


@pytest.mark.parametrize(("text", "size"), [("4K", 4096), ("2M", 2 << 20), ("1G", 1 << 30), ("2097152", 2 << 20)])
def test_the_page_size_of_an_empty_sealed_file_is_chosen(place: Path, text: str, size: int) -> None:
    path = make(place, "guest")
    sh(f"setfattr -n user.memfsd.page_size -v {text} f", place)
    assert attribute(path, "page_size") == str(size)
    with refused(errno.EINVAL):
        os.truncate(path, size + PAGE // 2)
    os.truncate(path, size)
    assert os.stat(path).st_size == size


def test_large_pages_are_allocated_whole(place: Path) -> None:
    path = make(place, "guest")
    os.setxattr(path, "user.memfsd.page_size", b"2M")
    os.truncate(path, 8 << 20)
    with opened(path, os.O_WRONLY) as fd:
        with refused(errno.EINVAL):
            fallocate(fd, 0, 0, PAGE)
        fallocate(fd, 0, 2 << 20, 2 << 20)
    assert (
        attribute(path, "frames")
        == "private=512 pending=0 quarantined=0 punched=0 leaked=0 populated=0 splits=0 merges=0"
    )


@pytest.mark.parametrize(
    ("name", "value", "number"),
    [
        ("page_size", "8K", errno.EINVAL),
        ("page_size", "0", errno.EINVAL),
        ("page_size", "", errno.EINVAL),
        ("page_size", "large", errno.EINVAL),
        ("numa", "1", errno.EINVAL),
        ("numa", "-1", errno.EINVAL),
        ("numa", "", errno.EINVAL),
        ("numa", "0,0", errno.EINVAL),
    ],
)
def test_values_that_make_no_sense_are_refused(place: Path, name: str, value: str, number: int) -> None:
    path = make(place, "guest")
    with refused(number):
        os.setxattr(path, f"user.memfsd.{name}", value.encode())
    assert (attribute(path, "page_size"), attribute(path, "numa")) == ("4096", "default")


def test_the_page_size_is_fixed_once_the_file_has_a_size_and_large_needs_the_seal(place: Path) -> None:
    path = make(place)
    with refused(errno.EINVAL):
        os.setxattr(path, "user.memfsd.page_size", b"2M")
    seal(path)
    os.truncate(path, 2 << 20)
    with refused(errno.EBUSY):
        os.setxattr(path, "user.memfsd.page_size", b"2M")


def test_the_node_is_chosen_and_frames_come_from_it(mount: MountFactory) -> None:
    directory = mount("size=2M,nodes=2").path
    path = make(directory, "guest", 8 * PAGE)
    sh("setfattr -n user.memfsd.numa -v 1 f && memfs fallocate -l 32K f", directory)
    assert attribute(path, "numa") == "preferred:1"
    assert "node_free=256,248" in attribute(directory, "pool")


# -- seal lists


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("guest", "guest"),
        ("shrink,grow", "shrink,grow"),
        (" Guest , SEAL ", "seal,guest"),
        ("write,future-write,grow,shrink,seal", "seal,shrink,grow,write,future-write"),
        ("guest,guest", "guest"),
        ("guest,truncate", "guest"),
    ],
)
def test_seal_lists(place: Path, text: str, shown: str) -> None:
    path = make(place)
    os.setxattr(path, SEALS, text.encode())
    assert seals_of(path) == shown


def test_seals_add_up(place: Path) -> None:
    path = make(place, "grow")
    seal(path, "shrink")
    seal(path, "guest")
    assert seals_of(path) == "shrink,grow,guest"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b",",
        b"guest,",
        b"guess",
        b"guest shrink",
        b"guest;shrink",
        b"truncate",
        b"shrink,truncate",
        b"0x1000",
        b"\xff\xfe",
        b"guest\0",
        b"x" * 65536,
    ],
)
def test_a_bad_seal_list_is_refused_whole(place: Path, text: bytes) -> None:
    path = make(place)
    with refused(errno.EINVAL):
        os.setxattr(path, SEALS, text)
    assert seals_of(path) == ""


def test_only_regular_files_have_seals(place: Path) -> None:
    sh("mkdir d; mkfifo p", place)
    with refused(errno.EISDIR):
        os.setxattr(place / "d", SEALS, b"guest")
    for change in (lambda: os.setxattr(place / "p", SEALS, b"guest"), lambda: os.getxattr(place / "d", SEALS)):
        with pytest.raises(OSError):  # noqa: PT011 - the kernel refuses some of these before they reach us
            change()


def test_other_namespaces_of_attributes(place: Path) -> None:
    path = make(place)
    os.setxattr(path, "trusted.note", b"kept")
    assert os.getxattr(path, "trusted.note") == b"kept"
    acl = struct.pack("<I" + "HHI" * 3, 2, 1, 6, 0xFFFFFFFF, 4, 4, 0xFFFFFFFF, 0x20, 4, 0xFFFFFFFF)
    for name, value in (("system.posix_acl_access", acl), ("nonsense.note", b"x")):
        with refused(errno.EOPNOTSUPP):
            os.setxattr(path, name, value)


# -- ioctls


def get_seals(fd: int) -> int:
    bits = array.array("I", [0])
    fcntl.ioctl(fd, names.IOC_GET_SEALS, bits, True)
    return bits[0]


def add_seals(fd: int, bits: int) -> None:
    fcntl.ioctl(fd, names.IOC_ADD_SEALS, array.array("I", [bits]))


def test_the_ioctl_pair_adds_and_gets_seals_as_bits(place: Path) -> None:
    path = place / "f"
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        assert get_seals(fd) == 0
        add_seals(fd, Seal.GUEST | Seal.SHRINK)
        assert get_seals(fd) == Seal.GUEST | Seal.SHRINK == 0x1002
        add_seals(fd, Seal.SEAL)
        with refused(errno.EPERM):
            add_seals(fd, Seal.GROW)
        assert get_seals(fd) == 0x1003
    assert seals_of(path) == "seal,shrink,guest"


@pytest.mark.parametrize("bits", [0x20, 0x2000, 0xFFFFFFFF, Seal.GUEST | 0x40])
def test_the_ioctl_refuses_bits_that_do_not_exist(place: Path, bits: int) -> None:
    with opened(place / "f", os.O_WRONLY | os.O_CREAT) as fd:
        with refused(errno.EINVAL):
            add_seals(fd, bits)
        assert get_seals(fd) == 0


def test_the_ioctl_has_the_rules_of_the_attribute(place: Path) -> None:
    path = place / "f"
    path.write_bytes(b"contents")
    with opened(path, os.O_WRONLY) as fd, refused(errno.EBUSY):
        add_seals(fd, Seal.GUEST)
    os.truncate(path, 0)
    with opened(path, os.O_RDWR) as fd, refused(errno.EBUSY):
        add_seals(fd, Seal.GUEST)
    with opened(path, os.O_RDONLY) as fd, refused(errno.EPERM):
        add_seals(fd, Seal.SHRINK)
    assert seals_of(path) == ""


def test_unknown_ioctls_are_enotty(place: Path) -> None:
    path = make(place)
    with opened(path, os.O_RDWR) as fd:
        for number in (names.IOC_ADD_SEALS + 5, names.IOC_GET_SEALS + 5, 0xB703, 0x5401):
            with refused(errno.ENOTTY):
                fcntl.ioctl(fd, number, array.array("I", [0]))
    with opened(place, os.O_RDONLY | os.O_DIRECTORY) as fd, refused(errno.ENOTTY):
        get_seals(fd)


def test_f_add_seals_does_not_reach_a_fuse_server(place: Path) -> None:
    path = make(place)
    with opened(path, os.O_RDWR) as fd:
        with refused(errno.EINVAL):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        with refused(errno.EINVAL):
            fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    assert seals_of(path) == ""


# -- the pairing token


def test_each_read_of_the_token_makes_another_and_none_is_listed(place: Path) -> None:
    path = make(place, "guest", PAGE)
    with opened(path, os.O_WRONLY) as fd:
        tokens = {os.getxattr(fd, TOKEN) for _ in range(100)}
        assert len(tokens) == 100 and {len(token) for token in tokens} == {TOKEN_BYTES}
        assert TOKEN not in os.listxattr(fd)
    assert TOKEN not in sh("getfattr -d -m - f", place)


def test_only_sealed_files_have_tokens(place: Path) -> None:
    with refused(errno.ENODATA):
        os.getxattr(make(place), TOKEN)


# -- st_blocks, lseek


def test_sealed_files_tell_what_they_hold_however_often_they_are_asked(own_directory: DirectoryFactory) -> None:
    directory = own_directory(RESIZE_ANY)
    make(directory, "guest", 16 * PAGE)
    asked: tuple[Callable[[], str], ...] = (
        lambda: sh("stat -c %b f", directory).strip(),
        lambda: sh("ls -s --block-size=512 f", directory).split()[0],
        lambda: sh("du --block-size=512 f", directory).split()[0],
    )
    for command, blocks in (
        ("true", 0),
        ("memfs fallocate -l 64K f", 128),
        ("memfs fallocate -p -o 16K -l 16K f", 96),
        ("truncate -s 32K f", 32),
    ):
        sh(command, directory)
        assert [ask() for ask in asked] == [str(blocks)] * 3, command


def test_seek_in_a_sealed_file_finds_what_is_allocated(place: Path) -> None:
    path = make(place, "guest", 8 * PAGE)
    with opened(path, os.O_WRONLY) as fd:
        with refused(errno.ENXIO):
            os.lseek(fd, 0, os.SEEK_DATA)
        fallocate(fd, 0, 2 * PAGE, 3 * PAGE)
        assert (os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 2 * PAGE, os.SEEK_HOLE)) == (2 * PAGE, 5 * PAGE)
        with refused(errno.ENXIO):
            os.lseek(fd, 8 * PAGE, os.SEEK_HOLE)
    expected = "private=3 pending=0 quarantined=0 punched=0 leaked=0 populated=0"
    until(lambda: attribute(path, "frames") == expected, "the attribute agrees")
