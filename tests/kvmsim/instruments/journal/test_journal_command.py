"""kvmsim journal, as a person uses it."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kvmsim.cli import run_command
from memfsd.common import packets
from memfsd.uapi import messages as m
from memfsd.uapi.framing import encode_request
from memfsd.uapi.messages import Kind
from memfsd.uapi.proof import NONCE_BYTES
from tests.support.both_sides import LocalStore, LocalVm, page
from tests.support.journaled import read_lines, record_run, recording, write_lines
from tests.support.threads import DEADLINE_S


def exchange(store: LocalStore, one: LocalVm, two: LocalVm) -> None:
    one.write(page(16), b"x")
    store.punch("one", 0, 1)
    one.close()
    two.close()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [str(path) for path in record_run(tmp_path_factory.mktemp("recorded"), exchange)]


def test_check_is_quiet_success(recorded: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["journal", "check", *recorded]) == 0
    assert capsys.readouterr().out.startswith("all rules hold: ")


def test_check_names_rule_and_line(recorded: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = read_lines(Path(recorded[1]))
    at = next(n for n, line in enumerate(lines) if line.get("what") == "zapped")
    del lines[at]
    broken = tmp_path / "broken"
    write_lines(broken, lines)
    assert run_command(["journal", "check", str(broken), recorded[0]]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{broken}:")
    assert "rule 'acknowledged' is broken: " in line
    assert run_command(["journal", "check", str(broken), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["broken"]["rule"]) == (False, "acknowledged")


@pytest.mark.parametrize("action", ["check", "show"])
def test_what_can_not_be_read_is_status_2(action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["journal", action, str(tmp_path / "absent")]) == 2
    assert run_command(["journal", action, str(tmp_path)]) == 2
    (tmp_path / "text").write_text("hello\n")
    assert run_command(["journal", action, str(tmp_path / "text")]) == 2
    absent, directory, text = capsys.readouterr().err.splitlines()
    assert absent == f"kvmsim: {tmp_path}/absent: No such file or directory"
    assert directory == f"kvmsim: {tmp_path}: Is a directory"
    assert text.startswith(f"kvmsim: {tmp_path}/text:1: no record of a journal")


def test_show_draws_each_message_once(recorded: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pictures = []
    for files in ([recorded[0]], recorded, recorded[::-1]):
        assert run_command(["journal", "show", *files]) == 0
        pictures.append(capsys.readouterr().out.splitlines())
    arrows = [[line for line in picture if "->" in line or "<-" in line] for picture in pictures]
    assert len(arrows[0]) == len(arrows[1]) == len(arrows[2])
    assert "memfsd" in pictures[1][0]
    assert "one" in pictures[1][0]
    assert "two" in pictures[1][0]


def test_show_tells_a_punch_in_its_order(recorded: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["journal", "show", *recorded]) == 0
    picture = capsys.readouterr().out.splitlines()
    story = ["INVALIDATE_BEGIN 1 ", "* zapped", "* out", "INVALIDATE_BEGIN 1 ok", "* freed", "INVALIDATE_END 2 "]
    found = [next(n for n, line in enumerate(picture) if word in line) for word in story]
    assert found == sorted(found)
    assert "start=0x0 end=0x1 seq=0" in picture[found[0]]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert run_command(["journal", "show", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_show_names_what_numbers_mean(recorded: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    picture = shown(capsys, recorded[1])
    assert "reason=PUNCH" in next(line for line in picture if "INVALIDATE_BEGIN 1 " in line)
    hello = next(line for line in picture if " HELLO 1 " in line and "role=" in line)
    assert "role=GUEST" in hello and "INVALIDATE_BEGIN" in hello.split("operations=")[1]


def test_show_filters_by_vm_file_and_kind(recorded: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    everything = shown(capsys, *recorded)
    one = shown(capsys, "--vm", "one", *recorded)
    assert "one" in one[0] and "two" not in one[0]
    assert 2 < len(one) < len(everything)
    (begin, answer) = shown(capsys, "--kind", "invalidate_begin", *recorded)[1:]
    assert "INVALIDATE_BEGIN 1 " in begin and " ok " in answer
    assert all("* zapped" in line for line in shown(capsys, "--kind", "zapped", *recorded)[1:])
    events = [json.loads(line) for line in shown(capsys, "--json", recorded[0])]
    ino = next(event["ino"] for event in events if event.get("ino", -1) > 0)
    of_file = [json.loads(line) for line in shown(capsys, "--json", "--file", str(ino), recorded[0])]
    assert {event["ino"] for event in of_file if event["type"] != "end"} == {ino}
    assert run_command(["journal", "show", *recorded, "--kind", "nonsense"]) == 0


@pytest.mark.parametrize("option", ["--file=many", "--file=-1"])
def test_a_file_is_an_inode_number(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command(["journal", "show", option, "file"])
    assert ended.value.code == 2
    assert "not an inode number" in capsys.readouterr().err


def greeting(name: str, role: m.Role) -> bytes:
    return encode_request(1, Kind.HELLO, m.Hello(m.PROTOCOL_VERSION, role, name, [], b"", bytes(NONCE_BYTES)))


def test_those_who_ask_and_are_gone_share_a_lifeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "store.journal"
    with recording(path, "memfsd") as journal:
        for _ in range(20):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours, theirs:
                theirs.send(greeting("observer", m.Role.OBSERVER))
                packets.down(ours, journal).recvmsg(4096)
    lines = read_lines(path)
    hellos = [line for line in lines if line.get("kind") == "HELLO"]
    for pid, hello in enumerate(hellos, 1000):
        hello["peer"] = pid
    write_lines(path, lines)
    heading, *rows = shown(capsys, str(path))
    assert heading.split()[1:3] == ["memfsd", heading.split()[2]] and heading.split()[3:] == ["others"]
    assert [f"pid={pid}" in row for pid, row in zip(range(1000, 1020), rows, strict=False)] == [True] * 20
    assert all("<" in row for row in rows[:20])


def test_names_of_vms_do_not_control_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the diagram quotes them."""
    name, path = "a\033[2J", tmp_path / "store.journal"
    with recording(path, "memfsd") as journal:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            theirs.send(greeting(name, m.Role.GUEST))
            packets.down(ours, journal).recvmsg(4096)
    lines = shown(capsys, str(path))
    assert all(line.isprintable() for line in lines)
    assert "'a'$'\\033''[2J'" in lines[0]
    assert "vm='a'$'\\033''[2J'" in lines[1]
    assert json.loads(shown(capsys, str(path), "--json")[0])["vm"] == name


@pytest.mark.parametrize("action", ["show", "check"])
def test_a_journal_may_come_from_standard_input(action: str, recorded: list[str]) -> None:
    program = Path(sys.executable).parent / "kvmsim"
    report = [
        subprocess.check_output(["/bin/sh", "-c", line, "sh", recorded[0], program, action], timeout=DEADLINE_S)
        for line in ('"$2" journal "$3" "$1"', '"$2" journal "$3" - <"$1"', 'cat "$1" | "$2" journal "$3" -')
    ]
    assert report[0] == report[1] == report[2]


def test_show_follows_a_journal_that_grows(recorded: list[str], tmp_path: Path) -> None:
    lines = Path(recorded[1]).read_text().splitlines(keepends=True)
    growing = tmp_path / "growing"
    half = len(lines) // 2
    growing.write_text("".join(lines[:half]) + lines[half][:5])
    follower = subprocess.Popen(
        [Path(sys.executable).parent / "kvmsim", "journal", "show", "-f", "--json", growing],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert follower.stdout is not None
    with follower, growing.open("a") as more:
        try:
            said = [follower.stdout.readline() for _ in range(half - 1)]
            more.write(lines[half][5:] + "".join(lines[half + 1 :]))
            more.flush()
            while b'"type": "end"' not in said[-1]:
                said.append(follower.stdout.readline())
            assert len(said) == len(lines) - 1
            follower.send_signal(signal.SIGINT)
            assert follower.wait(DEADLINE_S) == 130
        finally:
            follower.kill()


def test_show_follows_one_journal(recorded: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["journal", "show", "-f", *recorded]) == 2
    assert capsys.readouterr().err == "kvmsim: --follow shows one journal as it grows: name one\n"


def test_show_json_is_one_object_per_event(recorded: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["journal", "show", "--json", *recorded]) == 0
    report = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    begin = next(event for event in report if event.get("kind") == "INVALIDATE_BEGIN")
    assert begin["from"].startswith("memfsd ")
    assert begin["to"].startswith("one ")
    assert begin["body"]["end"] == 1
    assert all(":" in event["where"] for event in report)


def test_what_a_peer_calls_itself_is_shown_in_printable_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its name, what it says, and whatever a file may hold that another process wrote."""
    name = "\x1b[31m\nRED\x07"
    path = tmp_path / "store.journal"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with recording(path, "memfsd") as journal, ours, theirs:
        theirs.send(encode_request(1, Kind.HELLO, m.Hello(m.PROTOCOL_VERSION, m.Role.GUEST, name, [], b"", bytes(16))))
        packets.down(ours, journal).recvmsg(4096)
        journal.note("cut" + name, vm=name, why=name)
    lines = read_lines(path)
    lines[1:1] = [lines[1] | {"id": 7, "kind": name, "raw": name, "body": None}]
    lines[2:2] = [lines[2] | {"id": 8, "body": {name: name}}]
    lines[-1]["why"] = "full" + name
    write_lines(path, lines)
    assert run_command(["journal", "show", str(path)]) == 0
    picture = capsys.readouterr().out
    assert picture.removesuffix("\n").replace("\n", "").isprintable()
    assert len(picture.splitlines()) == len(lines), "a heading, and a line for each but the first record"
    assert " [31m RED " in picture
    assert run_command(["journal", "check", str(path)]) == 1
    (verdict,) = capsys.readouterr().out.splitlines()
    assert "rule 'reply' is broken" in verdict
    assert " [31m RED " in verdict
    assert verdict.isprintable()


def test_an_incomplete_journal_is_told_beside_the_verdict(
    recorded: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut"
    write_lines(cut, read_lines(Path(recorded[0]))[:20])
    assert run_command(["journal", "check", str(cut)]) == 0
    end, verdict = capsys.readouterr().out.splitlines()
    assert end == (f"{cut}:20: no record 'end' follows: the process was killed, or runs on (what follows is not known)")
    assert verdict.startswith("no rule is broken in what was recorded: ")
    assert run_command(["journal", "check", str(cut), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["incomplete"]) == 1


@pytest.mark.parametrize("command", ["journal check {}", "journal show {}", "run {}"])
def test_an_output_that_can_not_be_written_is_named(recorded: list[str], tmp_path: Path, command: str) -> None:
    script = tmp_path / "script"
    script.write_text("info vms\n")
    words = command.format(script if command == "run {}" else recorded[0]).split()
    for unbuffered in ({}, {"PYTHONUNBUFFERED": "1"}):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [Path(sys.executable).parent / "kvmsim", *words],
                stdout=full,
                stderr=subprocess.PIPE,
                env=environment | unbuffered,
                timeout=DEADLINE_S,
                check=False,
            )
        assert (done.returncode, done.stderr) == (
            2,
            b"kvmsim: standard output: No space left on device (ENOSPC): open it, or send it elsewhere\n",
        )
