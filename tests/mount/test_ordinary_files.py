"""Files that are not sealed, on a real mount: what a shell session and a program expect of tmpfs."""

import errno
import fcntl
import mmap
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kvmsim
import memfsd
from tests.support.real_mount import (
    KEEP_SIZE,
    PAGE,
    PUNCH_HOLE,
    ZERO_RANGE,
    DirectoryFactory,
    MountFactory,
    block_count,
    fallocate,
    free_frames,
    linkat,
    opened,
    refused,
    renameat2,
    run,
    seal,
    sh,
)
from tests.support.threads import DEADLINE_S, until

OTHERS = "size=64M,allow_other"
NOBODY = "setpriv --reuid 65534 --regid 65534 --clear-groups"
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2


# -- bytes


def test_what_is_written_is_read_back(place: Path) -> None:
    sh("echo one > f && echo two >> f && printf X | dd of=f bs=1 seek=1 conv=notrunc status=none", place)
    assert sh("cat f; wc -c < f", place) == "oXe\ntwo\n8\n"


def test_a_write_behind_the_end_leaves_a_hole_of_zeros(place: Path) -> None:
    path = place / "f"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"end", 10 * PAGE)
        assert os.pread(fd, 11 * PAGE, 0) == bytes(10 * PAGE) + b"end"
    assert (os.stat(path).st_size, block_count(path)) == (10 * PAGE + 3, PAGE // 512)


def test_append_finds_the_end_of_two_writers(place: Path) -> None:
    path = place / "log"
    with (
        opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as one,
        opened(path, os.O_WRONLY | os.O_APPEND) as two,
    ):
        for number in range(10):
            os.write((one, two)[number % 2], b"%d" % number)
    assert path.read_bytes() == b"0123456789"


def test_a_cut_file_has_zeros_where_its_tail_was(place: Path) -> None:
    path = place / "f"
    path.write_bytes(b"x" * (3 * PAGE))
    assert path.read_bytes() == b"x" * (3 * PAGE)
    sh(f"truncate -s {PAGE + 5} f", place)
    assert block_count(path) == 2 * PAGE // 512
    sh(f"truncate -s {3 * PAGE} f", place)
    assert path.read_bytes() == b"x" * (PAGE + 5) + bytes(2 * PAGE - 5)
    assert block_count(path) == 2 * PAGE // 512


def test_o_excl_refuses_and_o_trunc_empties(place: Path) -> None:
    path = place / "f"
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
        os.write(fd, b"old")
    with refused(errno.EEXIST), opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL):
        pass
    with opened(path, os.O_RDWR | os.O_TRUNC) as fd:
        assert os.read(fd, 10) == b""
    assert (os.stat(path).st_size, block_count(path)) == (0, 0)


def test_an_unlinked_file_lives_until_it_is_closed(place: Path) -> None:
    free = free_frames(place)
    path = place / "f"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"x" * PAGE)
        path.unlink()
        os.pwrite(fd, b"y", PAGE)
        assert os.pread(fd, 2 * PAGE, 0) == b"x" * PAGE + b"y"
        assert (os.fstat(fd).st_nlink, os.fstat(fd).st_size) == (0, PAGE + 1)
        assert free_frames(place) == free - 2
    until(lambda: free_frames(place) == free, "the frames come back after the last close")


def test_o_tmpfile_has_no_name_until_it_is_linked(place: Path) -> None:
    free = free_frames(place)
    with opened(place, os.O_TMPFILE | os.O_RDWR) as fd:
        os.write(fd, b"x" * PAGE)
        assert (os.fstat(fd).st_nlink, os.listdir(place)) == (0, [])
        linkat(fd, place / "named")
        assert os.fstat(fd).st_nlink == 1
    assert (place / "named").read_bytes() == b"x" * PAGE
    (place / "named").unlink()
    until(lambda: free_frames(place) == free, "the frames come back")


def test_o_tmpfile_that_is_never_linked_leaves_nothing(place: Path) -> None:
    free = free_frames(place)
    with opened(place, os.O_TMPFILE | os.O_RDWR | os.O_EXCL) as fd:
        os.write(fd, b"x" * PAGE)
        assert free_frames(place) == free - 1
        with refused(errno.ENOENT):
            linkat(fd, place / "named")
    until(lambda: free_frames(place) == free, "the frames come back")


def test_fsync_and_o_sync_work(place: Path) -> None:
    with opened(place / "f", os.O_WRONLY | os.O_CREAT | os.O_SYNC) as fd:
        os.write(fd, b"x")
        os.fsync(fd)
        os.fdatasync(fd)
    with opened(place, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)
    sh("sync f", place)


def test_locks_of_two_handles_exclude_each_other(place: Path) -> None:
    path = place / "f"
    with opened(path, os.O_RDWR | os.O_CREAT) as one, opened(path, os.O_RDWR) as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with refused(errno.EWOULDBLOCK):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(one, fcntl.LOCK_UN)
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_copied_program_runs(place: Path) -> None:
    sh("cp /bin/true program && ./program", place)
    assert sh("cp /bin/echo program && ./program it runs", place) == "it runs\n"


# -- mappings


def test_a_shared_mapping_and_the_file_are_the_same_bytes(place: Path) -> None:
    path = place / "f"
    path.write_bytes(b"a" * (2 * PAGE))
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 2 * PAGE) as mapping:
        mapping[PAGE : PAGE + 3] = b"map"
        assert os.pread(fd, 3, PAGE) == b"map"
        os.pwrite(fd, b"file", 0)
        assert mapping[:4] == b"file"
        mapping.flush()
    assert sh("head -c 4 f; tail -c 4096 f | head -c 3", place) == "filemap"


def test_what_a_mapping_stored_in_a_hole_is_allocated_by_msync(place: Path) -> None:
    path = place / "f"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, 4 * PAGE)
        with mmap.mmap(fd, 4 * PAGE) as mapping:
            mapping[2 * PAGE] = 7
            mapping.flush()
            assert block_count(path) == PAGE // 512
            assert os.lseek(fd, 0, os.SEEK_DATA) == 2 * PAGE


def test_a_private_mapping_keeps_its_stores_to_itself(place: Path) -> None:
    path = place / "f"
    path.write_bytes(b"a" * PAGE)
    with opened(path, os.O_RDONLY) as fd, mmap.mmap(fd, PAGE, access=mmap.ACCESS_COPY) as mapping:
        mapping[0] = ord("b")
        assert mapping[:2] == b"ba"
    assert path.read_bytes() == b"a" * PAGE


def test_a_mapping_behind_the_end_of_the_file_is_sigbus(place: Path) -> None:
    (place / "f").write_bytes(b"a" * PAGE)
    script = "import mmap; f = open('f', 'r+b'); m = mmap.mmap(f.fileno(), 4096); f.truncate(0); print(m[0])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=place, capture_output=True, timeout=DEADLINE_S, check=False
    )
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, b"")


# -- holes


def test_fallocate_allocates_grows_and_keeps_the_size(place: Path) -> None:
    path = place / "f"
    sh("fallocate -l 10000 f", place)
    assert (os.stat(path).st_size, block_count(path)) == (10000, 3 * PAGE // 512)
    sh("fallocate -n -o 10000 -l 10000 f", place)
    assert (os.stat(path).st_size, block_count(path)) == (10000, 5 * PAGE // 512)


def test_a_hole_reads_as_zeros_and_only_the_hole(place: Path) -> None:
    path = place / "f"
    path.write_bytes(b"x" * (4 * PAGE))
    assert path.read_bytes() == b"x" * (4 * PAGE)
    sh(f"fallocate -p -o 100 -l {2 * PAGE} f", place)
    assert path.read_bytes() == b"x" * 100 + bytes(2 * PAGE) + b"x" * (2 * PAGE - 100)
    assert block_count(path) == 3 * PAGE // 512


def test_fallocate_refuses_what_tmpfs_refuses(place: Path) -> None:
    with opened(place / "f", os.O_RDWR | os.O_CREAT) as fd:
        for mode, offset, length, number in (
            (0, 0, 0, errno.EINVAL),
            (0, -1, 1, errno.EINVAL),
            (KEEP_SIZE | PUNCH_HOLE, 0, 0, errno.EINVAL),
            (PUNCH_HOLE, 0, PAGE, errno.EOPNOTSUPP),
            (ZERO_RANGE, 0, PAGE, errno.EOPNOTSUPP),
            (0, 0, 1 << 50, errno.ENOSPC),
        ):
            with refused(number):
                fallocate(fd, mode, offset, length)
    with opened(place / "f", os.O_RDONLY) as fd, refused(errno.EBADF):
        fallocate(fd, 0, 0, PAGE)
    assert (os.stat(place / "f").st_size, block_count(place / "f")) == (0, 0)


def test_seek_finds_data_and_holes(place: Path) -> None:
    with opened(place / "f", os.O_RDWR | os.O_CREAT) as fd:
        for page in (2, 3, 6):
            os.pwrite(fd, b"x", page * PAGE)
        os.ftruncate(fd, 10 * PAGE)
        assert [os.lseek(fd, at * PAGE, os.SEEK_DATA) // PAGE for at in (0, 2, 3, 4)] == [2, 2, 3, 6]
        assert [os.lseek(fd, at * PAGE, os.SEEK_HOLE) // PAGE for at in (0, 2, 5, 6)] == [0, 4, 5, 7]
        assert os.lseek(fd, 2 * PAGE + 5, os.SEEK_DATA) == 2 * PAGE + 5
        for whence, at in ((os.SEEK_DATA, 7), (os.SEEK_DATA, 10), (os.SEEK_HOLE, 10)):
            with refused(errno.ENXIO):
                os.lseek(fd, at * PAGE, whence)
        os.ftruncate(fd, 6 * PAGE + 1)
        assert os.lseek(fd, 6 * PAGE, os.SEEK_HOLE) == 6 * PAGE + 1


def test_sparse_files_cost_what_they_hold(place: Path) -> None:
    sh("truncate -s 1T sparse && printf x | dd of=sparse bs=1 seek=512G conv=notrunc status=none", place)
    assert sh("stat -c '%s %b' sparse; du -k sparse; du -k --apparent-size sparse", place) == (
        "1099511627776 8\n4\tsparse\n1073741824\tsparse\n"
    )
    sh("truncate -s 8M other && cp --sparse=always other copy && cmp other copy", place)
    assert block_count(place / "copy") == 0


# -- space


def test_df_counts_frames(mount: MountFactory) -> None:
    path = mount("size=16M").path
    before = os.statvfs(path)
    (path / "f").write_bytes(b"x" * (10 * PAGE))
    after = os.statvfs(path)
    assert (before.f_bsize, before.f_blocks, before.f_bfree) == (PAGE, 4096, 4096)
    assert (after.f_bfree, after.f_bavail, after.f_ffree) == (4086, 4086, before.f_ffree - 1)
    assert sh("df --output=size,used,avail -k .", path).splitlines()[1].split() == ["16384", "40", "16344"]
    (path / "f").unlink()
    until(lambda: os.statvfs(path).f_bfree == 4096, "the frames come back")


def test_a_full_pool_is_enospc_for_writers_and_nothing_is_lost(mount: MountFactory) -> None:
    path = mount("size=1M").path
    (path / "old").write_bytes(b"old")
    assert "No space left on device" in sh("head -c 2M /dev/urandom > big", path, status=1)
    assert os.stat(path / "big").st_size == 1024 * 1024 - PAGE
    assert free_frames(path) == 0
    assert "No space left on device" in sh("echo new > new", path, status=1)
    with opened(path / "mapped", os.O_RDWR | os.O_CREAT) as fd:
        with refused(errno.ENOSPC):
            fallocate(fd, 0, 0, PAGE)
        assert (os.fstat(fd).st_size, os.fstat(fd).st_blocks) == (0, 0)
    sh("echo overwrites >> old; rm big; echo new > new", path)
    assert sh("cat old new", path) == "oldoverwrites\nnew\n"


# -- names


def test_rename_over_a_file_replaces_it_at_once(place: Path) -> None:
    sh("echo new > new; echo old > old", place)
    with (place / "old").open() as reader:
        sh("mv new old", place)
        assert reader.read() == "old\n"
    assert sh("cat old; ls", place) == "new\nold\n"


def test_rename_of_directories_obeys_posix(place: Path) -> None:
    sh("mkdir -p a/b empty full/x; touch file", place)
    for old, new, number in (
        ("a", "a/b/c", errno.EINVAL),
        ("a", "full", errno.ENOTEMPTY),
        ("a", "file", errno.ENOTDIR),
        ("file", "empty", errno.EISDIR),
        ("absent", "file", errno.ENOENT),
    ):
        with refused(number):
            os.rename(place / old, place / new)
    os.rename(place / "a", place / "empty")
    os.rename(place / "empty/b", place / "full/b")
    assert sh("find . | sort; stat -c '%n %h' empty full", place) == (
        ".\n./empty\n./file\n./full\n./full/b\n./full/x\nempty 2\nfull 4\n"
    )


def test_renameat2_refuses_to_replace_and_exchanges(place: Path) -> None:
    sh("echo one > one; mkdir two; echo inner > two/f", place)
    with refused(errno.EEXIST):
        renameat2(place / "one", place / "two", RENAME_NOREPLACE)
    renameat2(place / "one", place / "two", RENAME_EXCHANGE)
    assert sh("cat two one/f", place) == "one\ninner\n"
    with refused(errno.ENOENT):
        renameat2(place / "one", place / "three", RENAME_EXCHANGE)


def test_hard_links_are_one_file(place: Path) -> None:
    sh("echo one > a && ln a b && echo two >> b", place)
    assert os.stat(place / "a").st_ino == os.stat(place / "b").st_ino
    assert sh("rm a; cat b; stat -c %h b", place) == "one\ntwo\n1\n"
    with refused(errno.EPERM):
        os.link(place, place / "c")


def test_symbolic_links_point_anywhere(place: Path) -> None:
    sh("echo text > f; ln -s f s; ln -s absent dangling; ln -s loop loop", place)
    assert sh("cat s; readlink s dangling; stat -c '%F %s' s", place) == "text\nf\nabsent\nsymbolic link 1\n"
    for name, number in (("dangling", errno.ENOENT), ("loop", errno.ELOOP)):
        with refused(number), opened(place / name, os.O_RDONLY):
            pass
    with refused(errno.EINVAL):
        os.readlink(place / "f")


@pytest.mark.parametrize(("length", "number"), [(255, 0), (256, errno.ENAMETOOLONG)])
def test_a_name_has_at_most_255_bytes(place: Path, length: int, number: int) -> None:
    makers: tuple[Callable[[Path], None], ...] = (Path.touch, Path.mkdir, lambda path: path.symlink_to("x"))
    for letter, make in zip("abc", makers, strict=True):
        if number:
            with refused(number):
                make(place / (letter * length))
        else:
            make(place / (letter * length))
    assert len(os.listdir(place)) == (0 if number else 3)


def test_names_may_hold_any_byte_but_two(place: Path) -> None:
    names = [b"with space", b"new\nline", b"\xff\xfe not utf-8", b"-r", b"quote'\"", "größe".encode()]
    for name in names:
        with opened(Path(os.fsdecode(os.fsencode(place) + b"/" + name)), os.O_WRONLY | os.O_CREAT):
            pass
    assert sorted(os.listdir(os.fsencode(place))) == sorted(names)


def test_a_directory_of_5000_entries_is_listed_whole(place: Path) -> None:
    sh("mkdir big && cd big && seq -f 'name%g' 5000 | xargs touch", place)
    assert sorted(os.listdir(place / "big")) == sorted(f"name{n}" for n in range(1, 5001))
    assert sh("ls big | wc -l; find big -type f | wc -l", place) == "5000\n5000\n"
    sh("rm -r big", place)
    assert os.listdir(place) == []


def test_a_directory_lists_itself_and_its_parent_first(place: Path) -> None:
    sh("mkdir -p d/e; touch d/f", place)
    inodes = (os.stat(place / name).st_ino for name in ("d", "", "d/e", "d/f"))
    expected = [f"{ino} {name}" for ino, name in zip(inodes, (".", "..", "e", "f"), strict=True)]
    assert [" ".join(line.split()) for line in sh("ls -ai1 d", place).splitlines()] == expected
    assert sh("find d -empty | sort", place) == "d/e\nd/f\n"


def test_directories_count_their_children_and_go_only_when_empty(place: Path) -> None:
    sh("mkdir -p d/e; touch d/e/f", place)
    assert sh("stat -c '%n %h' d d/e", place) == "d 3\nd/e 2\n"
    for path, number in (("d", errno.ENOTEMPTY), ("d/e/f", errno.ENOTDIR), ("d/x", errno.ENOENT)):
        with refused(number):
            os.rmdir(place / path)
    with refused(errno.EISDIR):
        os.unlink(place / "d/e")
    sh("rm -r d/e && rmdir d", place)
    assert os.listdir(place) == []


def test_fifos_and_sockets_work(place: Path) -> None:
    sh("mkfifo fifo; (echo through > fifo &); test $(timeout 10 cat fifo) = through", place)
    with (
        opened(place, os.O_RDONLY | os.O_DIRECTORY) as fd,
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as client,
    ):
        listener.bind(f"/proc/self/fd/{fd}/socket")
        listener.listen(1)
        client.connect(f"/proc/self/fd/{fd}/socket")
    assert stat.S_ISSOCK(os.stat(place / "socket").st_mode)


# -- permissions, times, attributes


def test_the_umask_and_the_mode_make_the_permissions(place: Path) -> None:
    sh("umask 027; touch f; mkdir d; mkfifo p; install -m 604 /dev/null i", place)
    assert sh("stat -c '%n %a' f d p i", place) == "f 640\nd 750\np 640\ni 604\n"


def test_permissions_are_enforced(own_directory: DirectoryFactory) -> None:
    directory = own_directory(OTHERS)
    sh("mkdir closed sticky; chmod 700 closed; chmod 1777 sticky; echo s > secret; chmod 600 secret", directory)
    sh("touch closed/f sticky/f; cp /bin/true noexec; chmod 644 noexec", directory)
    for denied in ("cat secret", "echo x >> secret", "cat closed/f", "touch new", "chmod 777 secret"):
        refusal = run(f"{NOBODY} sh -c '{denied}'", directory)
        assert refusal.returncode != 0 and ("denied" in refusal.stdout or "not permitted" in refusal.stdout), denied
    sh(f"{NOBODY} rm -f sticky/f", directory, status=1)
    sh("./noexec", directory, status=126)
    assert sh(f"{NOBODY} sh -c 'echo mine > sticky/mine; stat -c %u:%g sticky/mine'", directory) == "65534:65534\n"


def test_a_set_gid_directory_hands_down_its_group(place: Path) -> None:
    sh("mkdir d; chgrp 65534 d; chmod 2755 d; touch d/f; mkdir d/e", place)
    assert sh("stat -c '%g %A' d/f d/e", place) == "65534 -rw-r--r--\n65534 drwxr-sr-x\n"


def test_a_change_of_owner_or_contents_takes_the_set_uid_bit(own_directory: DirectoryFactory) -> None:
    directory = own_directory(OTHERS)
    sh("cp /bin/true f; chmod 6755 f; chown 65534:65534 f", directory)
    assert sh("stat -c %a f", directory) == "755\n"
    sh(f"chmod 4777 f; {NOBODY} sh -c 'echo x >> f'", directory)
    assert sh("stat -c %a f", directory) == "777\n"


def test_times_are_kept_to_the_nanosecond(place: Path) -> None:
    path = place / "f"
    path.touch()
    for times in ((1_000_000_001, 2_999_999_999), (-500_000_000, -(10**18)), (10**19, 10**19 + 1)):
        os.utime(path, ns=times)
        assert (os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns) == times
    sh("touch -a -d @5 f; ln -s f s; touch -h -d @7 s", place)
    assert sh("stat -c '%X %Y' f s", place) == "5 10000000000\n7 7\n"


def test_writes_and_changes_move_the_right_times(place: Path) -> None:
    path = place / "f"
    path.write_bytes(b"x")
    change: tuple[tuple[Callable[[], object], bool], ...] = (
        (lambda: path.write_bytes(b"y"), True),
        (lambda: os.truncate(path, 100), True),
        (lambda: os.chmod(path, 0o600), False),
        (lambda: os.link(path, place / "g"), False),
        (lambda: os.setxattr(path, "user.a", b"1"), False),
    )
    for act, modifies in change:
        os.utime(path, ns=(0, 0))
        before = os.stat(path).st_ctime_ns
        act()
        assert (os.stat(path).st_mtime_ns > 0) == modifies
        assert os.stat(path).st_ctime_ns > before
    os.utime(place, ns=(0, 0))
    (place / "new").touch()
    assert os.stat(place).st_mtime_ns > 0


def test_extended_attributes_are_kept(place: Path) -> None:
    path = place / "f"
    sh("touch f; setfattr -n user.one -v first f; setfattr -n user.two f", place)
    assert sh("getfattr -d f", place) == '# file: f\nuser.one="first"\nuser.two=""\n\n'
    for flag, name, number in (
        (os.XATTR_CREATE, "user.one", errno.EEXIST),
        (os.XATTR_REPLACE, "user.three", errno.ENODATA),
    ):
        with refused(number):
            os.setxattr(path, name, b"", flag)
    os.setxattr(path, "user.big", bytes(65536))
    assert len(os.getxattr(path, "user.big")) == 65536
    with refused(errno.ENODATA):
        os.getxattr(path, "user.three")
    sh("setfattr -x user.one f", place)
    with refused(errno.ENODATA):
        os.removexattr(path, "user.one")
    assert sorted(os.listxattr(path)) == ["user.big", "user.two"]


def test_copies_keep_everything(place: Path) -> None:
    sh("mkdir -p d/e; echo x > d/f; ln -s f d/s; chmod 751 d/e; touch -d @77 d/f; setfattr -n user.a -v 1 d/f", place)
    sh("cp -a d copy && diff -r d copy && tar -cf d.tar d && tar -tf d.tar", place)
    report = "stat -c '%n %a %Y %F' f s e; getfattr -d --absolute-names f"
    assert sh(f"cd copy && {report}", place) == sh(f"cd d && {report}", place)


# -- seals of memfd


def test_write_sealed_files_do_not_change(place: Path) -> None:
    path = place / "f"
    path.write_bytes(b"constant")
    until(lambda: run("memfs seal f write", place).returncode == 0, "the writer's release")
    with opened(path, os.O_RDWR) as fd:
        with refused(errno.EPERM):
            os.write(fd, b"x")
        with refused(errno.EPERM):
            fallocate(fd, KEEP_SIZE | PUNCH_HOLE, 0, PAGE)
        with refused(errno.ENODEV):
            mmap.mmap(fd, 8)
    with opened(path, os.O_RDONLY) as fd, mmap.mmap(fd, 8, access=mmap.ACCESS_READ) as mapping:
        assert mapping[:] == b"constant"


def test_a_possible_writable_mapping_makes_the_write_seal_busy(place: Path) -> None:
    path = place / "f"
    path.write_bytes(b"x" * PAGE)
    with opened(path, os.O_RDWR) as fd:
        mapping = mmap.mmap(fd, PAGE)
    with mapping, refused(errno.EBUSY):
        seal(path, "write")
    until(lambda: run("memfs seal f write", place).returncode == 0, "the mapping's release")


@pytest.mark.parametrize(("seals", "size", "free_size"), [("shrink", 5, 15), ("grow", 15, 5)])
def test_size_seals_hold_one_direction(place: Path, seals: str, size: int, free_size: int) -> None:
    path = place / "f"
    path.write_bytes(b"x" * 10)
    seal(path, seals)
    with refused(errno.EPERM):
        os.truncate(path, size)
    os.truncate(path, free_size)
    assert os.stat(path).st_size == free_size
    if seals == "grow":
        with opened(path, os.O_WRONLY) as fd:
            with refused(errno.EPERM):
                os.pwrite(fd, b"x", 100)
            with refused(errno.EPERM):
                fallocate(fd, 0, 0, PAGE)


# -- the same as tmpfs


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


def test_random_operations_leave_the_same_bytes_as_on_tmpfs(place: Path, tmpfs: Path) -> None:
    """A random file of 5 MB, copied, overwritten in part, punched, cut and grown, here and there."""
    dice = random.Random(20210824)
    here, there = place / "f", tmpfs / "f"
    there.write_bytes(dice.randbytes(5_000_000))
    sh(f"cp {there} {here}", place)
    with opened(here, os.O_RDWR) as mine, opened(there, os.O_RDWR) as theirs:
        for _ in range(300):
            offset = dice.randrange(5_500_000)
            length = dice.choice((1, 100, PAGE, 70_000))
            offset -= dice.choice((0, offset % PAGE))
            kind = dice.choice(("write", "write", "punch", "allocate", "truncate", "map", "read"))
            data = dice.randbytes(length)
            size = os.fstat(theirs).st_size
            assert os.fstat(mine).st_size == size
            if kind == "read":
                assert os.pread(mine, length, offset) == os.pread(theirs, length, offset)
            for fd in (mine, theirs):
                if kind == "write":
                    assert os.pwrite(fd, data, offset) == length
                elif kind == "punch":
                    fallocate(fd, KEEP_SIZE | PUNCH_HOLE, offset, length)
                elif kind == "allocate":
                    fallocate(fd, 0, offset, length)
                elif kind == "truncate":
                    os.ftruncate(fd, max(offset, 4_000_000))
                elif kind == "map":
                    with mmap.mmap(fd, size) as mapping:
                        start = min(offset, size - length)
                        mapping[start : start + length] = data
    assert here.read_bytes() == there.read_bytes()
    sh(f"cp --sparse=never {here} {here}.copy && cmp {here}.copy {there}", place)


def fill_and_close(path: Path) -> None:
    """The pool was full, and will not be when RELEASE is over."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.unlink(path)
    size, step = 0, 16 << 20
    while step >= PAGE:
        try:
            os.posix_fallocate(fd, size, step)
            size += step
        except OSError:
            step //= 2
    os.close(fd)


@pytest.mark.parametrize("way", ["fallocate", "write"])
def test_a_file_that_was_closed_just_now_makes_room(shared_mount: MountFactory, way: str) -> None:
    """close(2) does not wait for RELEASE, and what has many extents is freed in parts."""
    place = shared_mount("size=16M").path
    for name in ("first", "second"):
        fd = os.open(place / name, os.O_RDWR | os.O_CREAT)
        for offset in range(0, 16 << 20, 2 * PAGE):
            os.pwrite(fd, b"x", offset)
        os.unlink(place / name)
        os.close(fd)
    fd = os.open(place / "next", os.O_RDWR | os.O_CREAT)
    try:
        if way == "fallocate":
            os.posix_fallocate(fd, 0, 15 << 20)
        else:
            for offset in range(0, 15 << 20, 1 << 20):
                assert os.pwrite(fd, bytes(1 << 20), offset) == 1 << 20
    finally:
        os.unlink(place / "next")
        os.close(fd)


def test_a_file_that_was_closed_just_now_makes_room_for_a_guest(shared_mount: MountFactory) -> None:
    place = shared_mount("size=16M").path
    memory = memfsd.create(place / "vm.mem", 1 << 20)
    with kvmsim.VM() as vm:
        vm.set_user_memory_region(0, 0, 1 << 20, guest_memfd=memory)
        vcpu = vm.create_vcpu()
        for page in range(0, 32, 2):
            fill_and_close(place / "filler")
            vcpu.write(page * PAGE, b"there is room")
    os.unlink(memory)


@pytest.mark.parametrize("make", ["open", "mkdir", "symlink", "mknod"])
def test_a_file_that_was_closed_just_now_makes_room_for_another_inode(mount: MountFactory, make: str) -> None:
    """The kernel sends FORGET after other requests. tmpfs never refuses this."""
    path = mount("nr_inodes=3").path / "name"
    for _ in range(200):
        if make == "mkdir":
            path.mkdir()
            path.rmdir()
        elif make == "symlink":
            path.symlink_to("target")
            path.unlink()
        elif make == "mknod":
            os.mknod(path)
            path.unlink()
        else:
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.unlink(path)
            os.close(fd)
    path.touch()
    path.with_name("second").touch()
    with refused(errno.ENOSPC):
        path.with_name("third").touch()


def test_what_was_closed_just_now_is_free_in_statfs(mount: MountFactory) -> None:
    path = mount("size=16M").path / "file"
    before = os.statvfs(path.parent)
    for _ in range(30):
        fd = os.open(path, os.O_CREAT | os.O_WRONLY)
        os.posix_fallocate(fd, 0, 8 << 20)
        os.unlink(path)
        os.close(fd)
        now = os.statvfs(path.parent)
        assert (now.f_bfree, now.f_ffree) == (before.f_bfree, before.f_ffree)


_HOG = """
import sys, kvmsim
vm = kvmsim.VM()
vm.set_user_memory_region(0, 0, 12 << 20, guest_memfd=sys.argv[1])
vcpu = vm.create_vcpu()
for page in range(0, 12 << 20, 4096):
    vcpu.write(page, b"x")
print("full", flush=True)
sys.stdin.read()
"""


def test_a_vm_that_was_killed_just_now_makes_room(mount: MountFactory) -> None:
    """wait(2) does not wait until memfsd has noticed."""
    place = mount("size=16M").path
    for _ in range(4):
        memory = memfsd.create(place / "vm.mem", 12 << 20)
        hog = subprocess.Popen(
            [sys.executable, "-c", _HOG, memory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with hog:
            assert hog.stdout is not None
            assert hog.stdout.readline() == "full\n"
            hog.kill()
            hog.wait(DEADLINE_S)
            with opened(place / "file", os.O_CREAT | os.O_WRONLY) as fd:
                os.posix_fallocate(fd, 0, 14 << 20)
        os.unlink(place / "file")
        os.unlink(memory)
