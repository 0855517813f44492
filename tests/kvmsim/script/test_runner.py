"""When a run fails, where it stops, and what a prompt makes of a line."""

import errno
from collections.abc import Callable

import pytest

from kvmsim.script.commands import Command, CreateVm, Read, Sh
from kvmsim.script.grammar import parse_script
from kvmsim.script.outcome import Outcome, Record
from kvmsim.script.runner import Session, run
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
            case CreateVm():
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

    return run(parse_script(script.encode()), machine.execute, emit, keep_going), records


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


def session() -> tuple[Callable[[str], bool], list[str]]:
    said: list[str] = []

    def emit(record: Record) -> None:
        said.append(f"{record.command.line} {'FAILED' if record.failed else record.outcome.ok}")

    return Session(Machine().execute, emit, said.append).feed, said


def test_a_prompt_runs_lines_and_remembers_the_previous_command() -> None:
    feed, said = session()
    lines = ("read 1 3", "", "# a note", "expect exit MMIO", "expect ok", "read 0 3", "expect data 'abc'")
    assert all(feed(line) for line in lines)
    assert said == ["1 False", "4 True", "5 FAILED", "6 True", "7 True"]


def test_a_mistake_at_a_prompt_is_said_and_changes_nothing() -> None:
    feed, said = session()
    assert feed("  expect ok")
    assert feed("read 0")
    assert said[0] == "column 3: expect is about the previous command, and there is none: put one before it"
    assert said[1].startswith("column 7: 'read' needs LEN")
    assert feed("read 0 3")
    assert feed("raed 0 3")
    assert feed("expect data 'abc'")
    assert (said[2], said[4]) == ("3 True", "5 True")


def test_help_and_leaving() -> None:
    feed, said = session()
    assert feed("help")
    assert "slot punch ID gpa=G size=S" in said[0]
    assert "quit" in said[0]
    assert feed("help host")
    assert said[1].count("\n") == 3
    assert feed("help raed")
    assert said[2] == "unknown command 'raed': did you mean 'read'?"
    assert not feed("quit")
    assert not feed(" exit ")
    assert len(said) == 3
