"""The command memfs on a real mount: what it prints, its exit statuses, and one clear line for each mistake."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from memfsd.core.private.gmem_file import PairState
from tests.support.real_mount import BIN, ENVIRONMENT, PAGE, MountFactory, block_count, run, seals_of, sh
from tests.support.threads import until


def facts(command: str, cwd: Path, status: int = 0) -> dict[str, Any]:
    """The one JSON object that `memfs COMMAND --json` prints."""
    (line,) = sh(f"memfs {command} --json", cwd, status).splitlines()
    report = json.loads(line)
    assert isinstance(report, dict)
    return report


def complaint(command: str, cwd: Path, status: int = 1) -> str:
    """The one line of a refused command. For check 1 means that a rule is broken."""
    if status == 1 and command.startswith("check"):
        status = 3
    printed = run(f"memfs {command}", cwd)
    lines = printed.stdout.splitlines()
    assert printed.returncode == status, printed.stdout
    assert len(lines) == 1, printed.stdout
    assert "Traceback" not in printed.stdout
    assert lines[-1].startswith("memfs")
    return lines[-1]


# -- create


def test_create_makes_an_ordinary_or_a_sealed_file(place: Path) -> None:
    assert sh("memfs create f", place) == "f: ordinary, 0\n"
    assert sh("memfs create g --size 64K --guest", place) == "g: sealed, 64K\n"
    assert sh("stat -c '%n %s %b' f g", place) == "f 0 0\ng 65536 0\n"
    assert (seals_of(place / "f"), seals_of(place / "g")) == ("", "guest")
    assert facts("create h --size 0x2000 --guest", place) == {"file": "h", "size": 8192, "guest": True}


def test_create_with_large_pages(place: Path) -> None:
    sh("memfs create f --guest --size 4M --page-size 2M", place)
    assert os.getxattr(place / "f", "user.memfsd.page_size") == b"2097152"


@pytest.mark.parametrize(
    ("words", "errno_name"),
    [
        ("f --guest --size 5000", "EINVAL"),
        ("f --guest --size 4K --page-size 2M", "EINVAL"),
        ("f --page-size 2M", "EINVAL"),
        ("absent/f", "ENOENT"),
    ],
)
def test_create_refuses_in_one_line_and_leaves_no_file(place: Path, words: str, errno_name: str) -> None:
    said = complaint(f"create {words}", place)
    assert f"({errno_name})" in said
    assert words.split()[0].partition("/")[0] in said
    assert os.listdir(place) == []


def test_create_does_not_touch_a_file_that_exists(place: Path) -> None:
    (place / "f").write_bytes(b"contents")
    said = complaint("create f --guest", place)
    assert said == "memfs: f: File exists: it is there already: choose another name, or memfs seal it (EEXIST)"
    assert (place / "f").read_bytes() == b"contents"


# -- seal


def test_seal_adds_and_prints_all_seals(place: Path) -> None:
    sh("touch f", place)
    assert sh("memfs seal f shrink", place) == "f: shrink\n"
    assert sh("memfs seal f guest,grow", place) == "f: shrink,grow,guest\n"
    assert facts("seal f seal", place) == {"file": "f", "seals": ["seal", "shrink", "grow", "guest"]}
    said = complaint("seal f write", place)
    assert said.startswith("memfs: f: Operation not permitted: it is sealed against more seals")
    assert said.endswith(" (EPERM)")


def test_seal_refuses_a_file_with_contents_unless_asked_to_empty_it(place: Path) -> None:
    (place / "f").write_bytes(b"contents")
    said = complaint("seal f guest", place)
    assert said.startswith("memfs: f: Device or resource busy: it holds data (guest,truncate empties it)")
    assert said.endswith(" (EBUSY)")
    assert sh("memfs seal f guest,truncate; stat -c %s f", place) == "f: guest\n0\n"


# -- stat


def test_stat_tells_of_a_file(place: Path) -> None:
    sh("memfs create f --guest --size 64K && memfs fallocate -l 8K f", place)
    report = facts("stat f", place)
    assert report == {
        "file": "f",
        "inode": os.stat(place / "f").st_ino,
        "size": 65536,
        "blocks": 16,
        "seals": "guest",
        "page_size": 4096,
        "numa": "default",
        "owner": "none",
        "private": 2,
        "pending": 0,
        "quarantined": 0,
        "punched": 0,
        "leaked": 0,
        "populated": 0,
    }
    printed = dict(line.split(maxsplit=1) for line in sh("memfs stat f", place).splitlines())
    assert printed == {name: str(value) for name, value in report.items()}


def test_stat_tells_of_ordinary_files_and_directories(place: Path) -> None:
    (place / "f").write_bytes(b"x" * PAGE)
    report = facts("stat f", place)
    assert (report["seals"], report["shared"]) == ("", 1)
    assert facts("stat .", place)["inode"] == os.stat(place).st_ino


def test_stat_tells_of_a_mount(mount: MountFactory) -> None:
    mounted = mount("size=1M,nodes=2")
    sh("memfs create mnt/f --guest --size 64K && memfs fallocate -l 64K mnt/f", mounted.path.parent)
    report = facts("stat mnt", mounted.path.parent)
    assert (report["mount"], report["socket"]) == ("mnt", str(mounted.socket))
    assert (report["frames"], report["free"], report["private"], report["inodes"]) == (256, 240, 16, 2)


# -- fallocate


def test_fallocate_allocates_and_punches_a_sealed_file(place: Path) -> None:
    sh("memfs create f --guest --size 64K", place)
    assert sh("memfs fallocate -o 8K -l 16K f", place) == ""
    assert block_count(place / "f") == 32
    assert facts("fallocate -p -o 8K -l 4K f", place) == {"file": "f", "mode": 3, "offset": 8192, "length": 4096}
    assert block_count(place / "f") == 24
    sh("memfs fallocate -n -l 64K f && memfs fallocate --punch-hole --offset 0 --length 1M f", place)
    assert sh("stat -c '%s %b' f", place) == "65536 0\n"


def test_fallocate_grows_an_ordinary_file_unless_told_not_to(place: Path) -> None:
    sh("touch f && memfs fallocate -n -l 8K f", place)
    assert sh("stat -c '%s %b' f", place) == "0 16\n"
    sh("memfs fallocate -l 10000 f", place)
    assert sh("stat -c '%s %b' f", place) == "10000 24\n"


@pytest.mark.parametrize("words", ["-o 60K -l 8K", "-o 1 -l 4K", "-l 100", "-p -l 100", "-l 0", "-n -o 64K -l 4K"])
def test_fallocate_refuses_past_the_end_and_unaligned(place: Path, words: str) -> None:
    sh("memfs create f --guest --size 64K", place)
    said = complaint(f"fallocate {words} f", place)
    assert said.startswith("memfs: f: Invalid argument: of a sealed file: whole pages")
    assert said.endswith(" (EINVAL)")
    assert sh("stat -c '%s %b' f", place) == "65536 0\n"


def test_fallocate_says_when_the_pool_is_full(mount: MountFactory) -> None:
    directory = mount("size=64K").path
    sh("memfs create f --guest --size 128K", directory)
    assert complaint("fallocate -l 128K f", directory).startswith("memfs: f: No space left on device: the pool has not")


# -- map


def test_map_shows_which_frames_hold_which_pages(place: Path) -> None:
    sh("memfs create f --guest --size 64K && memfs fallocate -o 4K -l 8K f && memfs fallocate -o 32K -l 4K f", place)
    report = facts("map f", place)
    assert report["inode"] == os.stat(place / "f").st_ino
    pages = [
        (run["offset"] + at, run["pfn"] + at // PAGE, run["gpa"], run["state"])
        for run in report["runs"]
        for at in range(0, run["length"], PAGE)
    ]
    assert [page[0] for page in pages] == [4096, 8192, 32768]
    assert len({page[1] for page in pages}) == 3
    assert {page[2:] for page in pages} == {(None, "private")}
    table = sh("memfs map f", place).splitlines()
    assert table[0].split() == ["OFFSET", "LENGTH", "GPA", "PFN", "NODE", "PAGE", "STATE"]
    assert [int(line.split()[0], 0) for line in table[1:]] == [run["offset"] for run in report["runs"]]


def test_map_of_an_empty_and_of_an_ordinary_file(place: Path) -> None:
    (place / "f").touch()
    assert facts("map f", place)["runs"] == []
    (place / "f").write_bytes(b"x")
    sh("fallocate -n -o 8K -l 4K f", place)
    assert [(run["offset"], run["state"]) for run in facts("map f", place)["runs"]] == [(0, "shared"), (8192, "shared")]
    assert "(EISDIR)" in complaint("map .", place)


# -- check


def test_check_is_clean_on_a_busy_mount(mount: MountFactory) -> None:
    directory = mount("size=16M,resize=any").path
    sh("memfs create f --guest --size 64K; memfs fallocate -l 32K f; memfs fallocate -p -l 4K f", directory)
    sh("head -c 100000 /dev/urandom > g; fallocate -p -o 4096 -l 8192 g; truncate -s 16K f; ln g h; rm g", directory)
    assert sh("memfs check .", directory) == "R1-R8 hold: 3 inodes, 0 paired, pool of 16M\n"
    assert facts("check .", directory) == {"ok": True, "findings": [], "files": 3, "pairings": 0, "frames": 4096}


def test_check_is_clean_after_everything_is_gone(mount: MountFactory) -> None:
    directory = mount("size=16M").path
    sh("memfs create f --guest --size 64K; memfs fallocate -l 64K f; echo x > g; rm f g", directory)
    until(lambda: facts("stat .", directory)["free"] == 4096, "the frames come back")
    assert sh("memfs check .", directory) == "R1-R8 hold: 1 inodes, 0 paired, pool of 16M\n"


# -- mistakes


def test_a_name_does_not_control_the_terminal(place: Path, tmp_path: Path) -> None:
    """As ls(1) shows it; JSON has it exactly."""
    name, shown = b"a\033[2J\xff", "'a'$'\\033''[2J'$'\\377'"
    word = os.fsdecode(name)
    path = place / word

    def memfs(*words: str) -> str:
        done = subprocess.run([BIN / "memfs", *words], cwd=place, capture_output=True, check=False, env=ENVIRONMENT)
        said = (done.stdout + done.stderr).decode()
        assert all(line.isprintable() for line in said.splitlines())
        return said

    assert memfs("create", word, "--guest", "--size", "64K") == f"{shown}: sealed, 64K\n"
    assert memfs("seal", word, "grow") == f"{shown}: grow,guest\n"
    assert memfs("stat", word).splitlines()[0].split() == ["file", shown]
    assert json.loads(memfs("stat", word, "--json"))["file"] == word
    for command in (
        ["create", word],
        ["seal", word, "write"],
        ["fallocate", "-l", "1", word],
    ):
        assert "\\033" in memfs(*command)
    path.unlink()
    for command in (["stat", word], ["map", word], ["check", word], ["top", word], ["seal", word, "grow"]):
        assert memfs(*command).startswith(f"memfs: {shown}: No such file")
    elsewhere = tmp_path / word
    elsewhere.touch()
    assert (
        memfs("stat", str(elsewhere))
        == f"memfs: '{tmp_path}/{shown[1:]} is not on a memfsd mount: name a file or directory on one (EOPNOTSUPP)\n"
    )


@pytest.mark.parametrize("command", ["stat .", "check .", "top . -n 1", "create f", "--help"])
def test_standard_output_that_nobody_takes(place: Path, command: str) -> None:
    """A reader that went away is SIGPIPE's status and silence, else there is one line."""
    assert sh(f"(memfs {command}; echo $? >&2) | true", place) == "141\n"
    for name in ("/dev/full", "&-"):
        (place / "f").unlink(missing_ok=True)
        done = run(f"memfs {command} >{name}", place)
        assert done.returncode == 2
        (line,) = done.stdout.splitlines()
        assert line.startswith("memfs: standard output: ")


def test_version(tmp_path: Path) -> None:
    assert sh("memfs --version", tmp_path).startswith("memfs 0.")
    assert sh("memfsd --version", tmp_path).startswith("memfsd 0.")


def test_every_state_of_an_owner_is_explained(tmp_path: Path) -> None:
    explained = sh("memfs stat --help", tmp_path)
    assert all(state.value in explained for state in PairState)


COMMANDS = {
    "seal": "seal {} guest",
    "stat": "stat {}",
    "map": "map {}",
    "check": "check {}",
    "fallocate": "fallocate -l 4K {}",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_path_elsewhere_is_one_line(place: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "f").touch()
    said = complaint(command.format(tmp_path / "f"), place)
    assert said == f"memfs: {tmp_path}/f is not on a memfsd mount: name a file or directory on one (EOPNOTSUPP)"


def test_create_elsewhere_makes_no_file(tmp_path: Path) -> None:
    assert complaint("create f --guest", tmp_path).endswith(
        "is not on a memfsd mount: name a file or directory on one (EOPNOTSUPP)"
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_missing_file_is_one_line(place: Path, command: str) -> None:
    assert complaint(command.format("absent"), place) == "memfs: absent: No such file or directory (ENOENT)"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("create f --size 12Q", "12Q"),
        ("create f --size -1", "--size"),
        ("create f --size 1.5K", "1.5K"),
        ("create f --size ''", "--size"),
        ("create f --size 16E", "16E"),
        ("create f --size 8388608T", "8388608T"),
        ("create f --guest --page-size 8K", "8K"),
        ("create", "FILE"),
        ("create ''", "the name is empty: give a path"),
        ("stat ''", "the name is empty"),
        ("seal f", "SEAL"),
        ("seal f guess", "guess"),
        ("seal f truncate", "truncate"),
        ("seal f ''", "seal"),
        ("fallocate f", "--length"),
        ("fallocate -l x f", "x"),
        ("fallocate -o -4K -l 4K f", "-o"),
        ("stat", "FILE"),
        ("map", "FILE"),
        ("check", "MOUNTPOINT"),
        ("check . more", "more"),
        ("stat f --jsn", "--jsn"),
        ("nonsense", "nonsense"),
        ("-x stat f", "-x"),
        ("stat f more", "see memfs stat --help"),
        ("move f 99999999999999999999", "is not a node"),
        (f"move f {'9' * 5000}", "is not a node"),
        (f"poison f 0 --seed {'9' * 5000}", "is not a seed"),
        (f"top . -n {'9' * 5000}", "is not a count"),
        (f"create f --size {'9' * 5000}", "is larger than any file"),
        ("-- stat f", "--"),
        ("", "COMMAND"),
    ],
)
def test_usage_mistakes_exit_2_and_name_what_is_wrong(place: Path, words: str, named: str) -> None:
    assert named in complaint(words, place, status=2)
    assert os.listdir(place) == []


def test_a_fifo_is_refused_and_not_waited_for(place: Path, tmp_path: Path) -> None:
    os.mkfifo(place / "fifo")
    assert "only regular files have pages" in complaint("map fifo", place)
    for command in ("move fifo 0", "fallocate -l 4K fifo"):
        assert "No such device or address (ENXIO)" in complaint(command, place)
    assert json.loads(sh("memfs stat --json fifo", place))["size"] == 0
    os.mkfifo(tmp_path / "fifo")
    for command in (f"move {tmp_path}/fifo 0", f"fallocate -l 4K {tmp_path}/fifo"):
        assert "not on a memfsd mount" in complaint(command, place)


@pytest.mark.parametrize("command", ["", "create", "seal", "stat", "map", "fallocate", "check", "top"])
def test_help_is_given(tmp_path: Path, command: str) -> None:
    assert sh(f"memfs {command} --help", tmp_path).startswith(f"usage: memfs {command}".rstrip())


def test_a_daemon_that_is_gone_is_one_line(mount: MountFactory) -> None:
    mounted = mount()
    mounted.process.kill()
    mounted.process.wait()
    for command in ("check .", "stat mnt", "create mnt/f"):
        said = complaint(command.replace(".", "mnt"), mounted.path.parent)
        assert "mnt" in said
