"""Blocks: how often, with which counters, and what is refused before anything runs."""

from collections.abc import Iterator

import pytest

from kvmsim.shell.script.commands import End
from kvmsim.shell.script.outcome import Outcome, Record
from kvmsim.shell.script.repeat import Parser, parse_script, substituted
from kvmsim.shell.script.runner import Session, Shown, run
from kvmsim.shell.script.words import ScriptError
from memfsd.uapi.limits import MAX_REPEAT_DEPTH, MAX_REPEATS


def done(script: str) -> list[str]:
    return [command.source for command in parse_script(script.encode()) if not isinstance(command, End)]


def mistake(script: str) -> str:
    with pytest.raises(ScriptError) as error:
        list(parse_script(script.encode()))
    return str(error.value)


def test_lines_are_done_with_their_counter() -> None:
    assert done("vm a\nrepeat 3\n read {i*4K} 4\n # a comment\n\nend\nvm b") == [
        "vm a",
        "read 0x0 4",
        "read 0x1000 4",
        "read 0x2000 4",
        "vm b",
    ]


def test_blocks_nest_with_counters_of_their_own() -> None:
    assert done("repeat 2\nrepeat 2 counter=j\nwrite {1M+j*4K} 'page {i} {j}'\nend\nhlt\nend") == [
        "write 0x100000 'page 0 0'",
        "write 0x101000 'page 0 1'",
        "hlt",
        "write 0x100000 'page 1 0'",
        "write 0x101000 'page 1 1'",
        "hlt",
    ]


def test_a_line_keeps_its_number_and_the_end_is_a_command() -> None:
    assert [(c.line, c.name) for c in parse_script(b"repeat 2\nhlt\nend")] == [(2, "hlt"), (2, "hlt"), (3, "end")]


@pytest.mark.parametrize(
    ("text", "substitute"),
    [
        ("{i}", "3"),
        ("{i*4K}", "0x3000"),
        ("{0x10+i}", "0x13"),
        ("{1G+i*2M}", "0x40600000"),
        ("{a,b} ${HOME} {j} {i+1} {}", "{a,b} ${HOME} {j} {i+1} {}"),
        ("no counter", "no counter"),
    ],
)
def test_what_is_in_braces(text: str, substitute: str) -> None:
    assert substituted(text, 1, {"i": 3}) == substitute


def test_outside_of_a_block_braces_are_as_they_are() -> None:
    assert done("sh echo {i}") == ["sh echo {i}"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("repeat 2\nhlt", "line 1, column 1: this repeat has no end"),
        ("hlt\nend", "line 2, column 1: there is no repeat"),
        ("repeat 0\nhlt\nend", "line 1, column 8: 0 turns in all"),
        (f"repeat {MAX_REPEATS + 1}", f"line 1, column 8: {MAX_REPEATS + 1} turns in all: choose 1 to {MAX_REPEATS}"),
        ("repeat 2000\nrepeat 2000 counter=j", "line 2, column 8: 4000000 turns in all"),
        ("repeat 2\nrepeat 2", "line 2, column 8: counter i is that of line 1: give counter=NAME"),
        ("repeat 2 counter=I", "line 1, column 18: counter 'I': choose a name"),
        ("repeat 2\nexpect ok\nend", "line 2, column 1: expect is about the previous command"),
        ("repeat 2\nhlt\nend\nexpect ok", "line 4, column 1: expect is about the previous command"),
        ("repeat 2\nraed 0 4\nend", "line 2, column 1: unknown command 'raed'"),
        ("repeat 20\nwrite 0 {i}\nend", "line 2, column 9"),
        ("repeat 20\nread {i*1T} 4\nread 0 {i*1M}\nend", "line 3, column"),
        ("repeat 9\nread {0xfffffffffffffff0+i*4} 4\nend", "line 2, column 6: {0xfffffffffffffff0+i*4} is 0x1000"),
        ("".join(f"repeat 1 counter=c{n}\n" for n in range(MAX_REPEAT_DEPTH + 1)), f"line {MAX_REPEAT_DEPTH + 1}, "),
    ],
)
def test_a_mistake_is_found_before_anything_runs(script: str, message: str) -> None:
    with pytest.raises(ScriptError) as error:
        parse_script(script.encode())
    assert str(error.value).startswith(message)


def test_a_mistake_between_the_first_and_the_last_turn_ends_the_run_there() -> None:
    assert mistake("repeat 500\nwrite 0 0{i}\nend").startswith("line 2, column 9: ")


def test_a_block_is_written_out_lazily() -> None:
    commands = parse_script(b"repeat 1000\nrepeat 1000 counter=j\nhlt\nend\nend")
    assert isinstance(commands, Iterator)
    assert next(commands).name == "hlt"


def test_a_block_that_is_dropped_is_as_if_it_had_not_been_read() -> None:
    parser = Parser()
    list(parser.feed("repeat 2", 1))
    assert parser.is_open
    parser.drop()
    assert not parser.is_open
    assert [command.name for command in parser.feed("hlt", 2)] == ["hlt"]


class Typed:
    """A session at a prompt: what was shown."""

    def __init__(self, stop_after: int = 1 << 30) -> None:
        self.shown: list[str] = []
        self.complaints: list[str] = []
        self._stop_after = stop_after
        self.session = Session(
            lambda command: Outcome(ok=command.name != "hlt"),
            self._emit,
            self.complaints.append,
            lambda: len(self.shown) >= self._stop_after,
        )

    def _emit(self, record: Record) -> None:
        self.shown.append(f"{record.command.line} {record.command.name or record.outcome.reason}")

    def type(self, *lines: str) -> list[str]:
        for line in lines:
            self.session.feed(line)
        return self.shown


def test_at_a_prompt_a_block_is_done_at_its_end() -> None:
    typed = Typed()
    assert typed.type("repeat 2", "info vms") == []
    assert typed.session.is_open
    assert typed.type("end") == ["2 info", "2 info", "3 end"]
    assert not typed.session.is_open
    assert typed.session.end() == 0


def test_a_mistake_in_a_block_at_a_prompt_drops_the_block() -> None:
    typed = Typed()
    typed.type("repeat 2", "raed 0", "repeat 2 counter=j", "info vms", "end", "info vms", "end", "info vms")
    assert [line.split(":")[0] for line in typed.shown] == ["2 column 1", "7 end", "8 info"]
    assert typed.session.end() == 2


def test_input_that_ends_in_a_block_is_a_mistake() -> None:
    typed = Typed()
    assert typed.type("repeat 2", "info vms") == []
    assert typed.session.end() == 2
    assert typed.complaints == ["line 1, column 1: this repeat has no end: put a line 'end' after what it repeats"]


def test_an_interrupt_ends_a_block() -> None:
    assert Typed(stop_after=5).type("repeat 1000000", "info vms", "end") == ["2 info"] * 5


def records(script: str) -> list[str]:
    shown: list[str] = []

    def emit(record: Record) -> None:
        shown.append(record.command.source)
        assert (record.seconds is None) == (record.command.name in ("quiet", "end") or "expect" in record.command.name)

    run(parse_script(script.encode()), lambda c: Outcome(ok=c.name != "hlt"), Shown(emit), keep_going=True)
    return shown


def test_quiet_shows_what_goes_wrong() -> None:
    script = "info vms\nquiet on\ninfo vms\nhlt\nhlt\nexpect ok\nrepeat 2\ninfo vms\nend\nquiet off\ninfo vms"
    assert records(script) == ["info vms", "quiet on", "hlt", "expect ok", "quiet off", "info vms"]


def test_what_is_expected_is_not_wrong() -> None:
    ok = "quiet on\nsh false\nexpect status 1"

    def failing(command: object) -> Outcome:
        return Outcome(ok=False, status=1)

    shown: list[str] = []
    run(parse_script(ok.encode()), failing, Shown(lambda record: shown.append(record.command.name)))
    assert shown == ["quiet"]
