"""When a run fails, where it stops, and what a prompt makes of a line."""

import errno
import json
import re
import sys

import pytest

from kvmsim.shell.script.commands import Command, Read, Sh, SwitchVm
from kvmsim.shell.script.outcome import Outcome, Record
from kvmsim.shell.script.output import JsonPrinter
from kvmsim.shell.script.repeat import parse_script
from kvmsim.shell.script.runner import Session, run
from memfsd.uapi.errors import Refused

EXIT = Outcome(ok=False, exit="KVM_EXIT_MMIO", exit_fields={"len": 4})


class Machine:
    """Answers by command: read 0 works, any other read exits, vm is refused, sh N ends with status N."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def execute(self, command: Command) -> Outcome:
        self.log.append(command.source)
        match command:
            case Read(gpa=0):
                return Outcome(ok=True, data=b"abc")
            case Read():
                return EXIT
            case SwitchVm():
                raise Refused(errno.EEXIST, "there is one")
            case Sh():
                status = int(command.command)
                return Outcome(ok=status == 0, status=status)
        return Outcome(ok=True)

    def emit(self, record: Record) -> None:
        self.log.append(f"{record.command.line} {'FAILED' if record.failed else record.outcome.ok}")


def outcome_of(script: str, keep_going: bool = False) -> tuple[int, list[str]]:
    """Exit status, and for each record its line and whether it was ok or failed the run."""
    machine, records = Machine(), list[str]()

    def emit(record: Record) -> None:
        records.append(f"{record.command.line} {'FAILED' if record.failed else record.outcome.ok}")

    return run(parse_script(script.encode()), machine.execute, emit, keep_going=keep_going), records


def test_all_well() -> None:
    assert outcome_of("read 0 3\ninfo slots\nsh 0") == (0, ["1 True", "2 True", "3 True"])
    assert outcome_of("") == (0, [])


@pytest.mark.parametrize("trouble", ["read 1 3", "vm a", "sh 1"])
def test_trouble_that_nobody_expects_ends_the_run(trouble: str) -> None:
    assert outcome_of(f"read 0 3\n{trouble}\nread 0 3") == (1, ["1 True", "2 FAILED"])


@pytest.mark.parametrize(
    ("trouble", "expect"),
    [("read 1 3", "exit MMIO len=4"), ("vm a", "errno EEXIST"), ("sh 3", "status 3")],
)
def test_trouble_that_is_expected_is_no_trouble(trouble: str, expect: str) -> None:
    script = f"{trouble}\n\n  # so it should be\nexpect {expect}\nread 0 3"
    assert outcome_of(script) == (0, ["1 False", "4 True", "5 True"])


@pytest.mark.parametrize(
    ("command", "expect"),
    [("read 0 3", "errno EEXIST"), ("read 0 3", 'data "abd"'), ("read 1 3", "ok"), ("vm a", "exit MMIO")],
)
def test_an_expect_that_does_not_match_ends_the_run(command: str, expect: str) -> None:
    status, records = outcome_of(f"{command}\nexpect {expect}\nread 0 3")
    assert status == 1
    assert records[1:] == ["2 FAILED"]
    assert "FAILED" not in records[0]


def test_all_of_several_expects_must_match() -> None:
    assert outcome_of("read 0 3\nexpect ok\nexpect data 'abc'")[0] == 0
    assert outcome_of("read 0 3\nexpect ok\nexpect errno EIO\nexpect ok") == (
        1,
        ["1 True", "2 True", "3 FAILED"],
    )


def test_an_expect_is_only_about_the_command_directly_before() -> None:
    assert outcome_of("vm a\nread 0 3\nexpect errno EEXIST") == (1, ["1 FAILED"])


def test_keep_going_runs_to_the_end_and_still_fails() -> None:
    script = "vm a\nread 0 3\nexpect exit MMIO\nexpect ok\nread 0 3"
    assert outcome_of(script, keep_going=True) == (
        1,
        ["1 FAILED", "2 True", "3 FAILED", "4 True", "5 True"],
    )
    assert outcome_of("read 0 3\nsh 0", keep_going=True)[0] == 0


def test_a_record_is_emitted_before_the_next_command_starts() -> None:
    machine = Machine()
    run(parse_script(b"read 0 3\nexpect ok\nsh 0"), machine.execute, machine.emit)
    assert machine.log == ["read 0 3", "1 True", "2 True", "sh 0", "3 True"]


def test_a_refusal_becomes_an_outcome_with_its_errno_and_reason() -> None:
    records: list[Record] = []
    run(parse_script(b"vm a\nexpect ok"), Machine().execute, records.append)
    assert records[0].outcome == Outcome(ok=False, errno="EEXIST", reason="there is one")
    assert records[1].outcome.reason == "expected ok, got errno EEXIST: there is one"


@pytest.mark.parametrize("exception", [KeyboardInterrupt, ValueError])
def test_what_is_no_refusal_passes_through(exception: type[BaseException]) -> None:
    def execute(command: Command) -> Outcome:
        raise exception

    with pytest.raises(exception):
        run(parse_script(b"sh 0"), execute, lambda record: None, keep_going=True)


class Prompt:
    """Lines in; records and complaints out."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.records: list[Record] = []
        self.complaints: list[str] = []
        self.session = Session(Machine().execute, self._emit, self.complaints.append)

    def _emit(self, record: Record) -> None:
        self.records.append(record)
        self.said.append(f"{record.command.line} {'FAILED' if record.failed else record.outcome.ok}")

    def feed(self, *lines: str) -> bool:
        return [True, *map(self.session.feed, lines)][-1]


def test_a_prompt_runs_lines_and_remembers_the_previous_command() -> None:
    prompt = Prompt()
    assert prompt.feed("read 1 3", "", "# a note", "expect exit MMIO", "expect ok", "read 0 3", "expect data 'abc'")
    assert prompt.said == ["1 False", "4 True", "5 FAILED", "6 True", "7 True"]


def test_a_mistake_at_a_prompt_is_answered_and_changes_nothing() -> None:
    prompt = Prompt()
    assert prompt.feed("  expect ok", "read 0", "read 0 3", "raed 0 3", "expect data 'abc'")
    first, second, *_ = (record.outcome.reason for record in prompt.records)
    assert first == "column 3: expect is about the previous command, and there is none: put one before it"
    assert second.startswith("column 7: 'read' needs LEN")
    assert prompt.said == ["1 False", "2 False", "3 True", "4 False", "5 True"]


def test_help_is_short_and_explains_one_command_or_all() -> None:
    prompt = Prompt()
    assert prompt.feed("help", "?", "help host", "help raed", "help all", "help slot punch")
    short, again, host, unknown, everything, punch = (record.outcome for record in prompt.records)
    assert short == again
    assert len(short.text.splitlines()) < 12
    assert max(map(len, short.text.splitlines())) <= 80
    assert {"touch", "punch", "exit_hypercall", "quit"} <= set(re.findall(r"\w+", short.text))
    assert host.text.count("\n") == 5
    assert unknown == Outcome(ok=False, reason="unknown command 'raed': did you mean 'read'?")
    assert "slot punch ID gpa=G size=S" in everything.text and len(everything.text) > 5 * len(short.text)
    assert punch.text.startswith("slot punch ID")


@pytest.mark.parametrize("word", ["quit", " exit ", "q"])
def test_leaving(word: str) -> None:
    prompt = Prompt()
    assert not prompt.feed(word)
    assert [record.command.name for record in prompt.records] == ["quit"]


@pytest.mark.parametrize(
    ("lines", "status", "complained"),
    [
        ([], 0, []),
        (["read 0 3", "", "# nothing"], 0, []),
        (["read 1 3", "# so it should be", "", "expect exit MMIO"], 0, []),
        (["read 1 3"], 1, ["line 1"]),
        (["read 1 3", "read 0 3"], 1, ["line 1"]),
        (["vm a", "help", "expect errno EEXIST"], 0, []),
        (["sh 3", "quit"], 1, ["line 1"]),
        (["read 0 3", "expect data 'abd'", "read 0 3"], 1, []),
        (["read 0 3", "raed 0 3", "read 1 3"], 2, ["line 2, column 1", "line 3"]),
        (["help nonsense"], 0, []),
    ],
    ids=lambda value: ";".join(value) if isinstance(value, list) else str(value),
)
def test_a_pipe_has_the_exit_status_of_run(lines: list[str], status: int, complained: list[str]) -> None:
    prompt = Prompt()
    prompt.feed(*lines)
    assert prompt.session.end() == status
    assert [complaint.split(":")[0] for complaint in prompt.complaints] == complained


def test_every_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(Machine().execute, JsonPrinter(sys.stdout).emit)
    lines = [
        "read 0 3",
        "read 1 3",
        "expect ok",
        "raed",
        "expect",
        'write 0 "open',
        "help",
        "? read",
        "help raed",
        "quit",
    ]
    for line in lines:
        session.feed(line)
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["source"] for record in records] == lines
    assert [record["ok"] for record in records] == [True, False, False, False, False, False, True, True, False, True]
    assert records[3] | {"cmd": None, "line": 4} == records[3]
    assert "did you mean 'read'" in records[3]["reason"]
    assert "touch" in records[6]["text"]
