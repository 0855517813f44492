"""What a person and what a program sees."""

import io
import json

import pytest

from kvmsim.shell.script.grammar import parse_line
from kvmsim.shell.script.outcome import Outcome, Record
from kvmsim.shell.script.output import HumanPrinter, JsonPrinter, hexdump

MMIO = Outcome(ok=False, exit="KVM_EXIT_MMIO", exit_fields={"phys_addr": 0x5000, "len": 4, "is_write": True})
REFUSED = Outcome(ok=False, errno="ENOSPC", reason="the pool is full")


def record(line: str, outcome: Outcome, failed: bool = False) -> Record:
    command = parse_line(line, 7)
    assert command is not None
    return Record(command, outcome, failed)


class Watched(io.StringIO):
    """Counts flushes; says of itself whether it is a terminal."""

    def __init__(self, terminal: bool = False) -> None:
        super().__init__()
        self.terminal = terminal
        self.flushed = 0

    def isatty(self) -> bool:
        return self.terminal

    def flush(self) -> None:
        self.flushed += 1


def as_json(one: Record) -> dict[str, object]:
    stream = Watched()
    JsonPrinter(stream).emit(one)
    assert stream.flushed
    (line,) = stream.getvalue().splitlines()
    loaded = json.loads(line)
    assert isinstance(loaded, dict)
    return loaded


def as_text(one: Record, echo: bool = True) -> str:
    stream = Watched()
    HumanPrinter(stream, echo).emit(one)
    assert stream.flushed
    return stream.getvalue()


def test_json_always_has_the_keys_of_the_contract() -> None:
    assert as_json(record("slot delete 1 shared", Outcome(ok=True))) == {
        "line": 7,
        "cmd": "slot delete",
        "source": "slot delete 1 shared",
        "ok": True,
        "errno": None,
        "exit": None,
        "exit_fields": {},
        "data": None,
    }


def test_json_data_is_hex() -> None:
    assert as_json(record("read 0 2", Outcome(ok=True, data=b"\x00\xff")))["data"] == "00ff"


def test_json_exit_and_errno() -> None:
    exited = as_json(record("read 0 2", MMIO))
    assert exited["ok"] is False
    assert exited["exit"] == "KVM_EXIT_MMIO"
    assert exited["exit_fields"] == {"phys_addr": 0x5000, "len": 4, "is_write": True}
    refused = as_json(record("read 0 2", REFUSED, failed=True))
    assert (refused["errno"], refused["reason"], refused["failed"]) == ("ENOSPC", "the pool is full", True)


def test_json_extras_only_when_there_is_something_to_say() -> None:
    one = as_json(record("sh true", Outcome(ok=True, status=0, text="a\nb", info={"slots": []})))
    assert (one["status"], one["text"], one["info"]) == (0, "a\nb", {"slots": []})
    assert as_json(record("hypercall 1", Outcome(ok=True, ret=0)))["ret"] == 0
    assert "ret" not in one
    assert "reason" not in one
    assert "failed" not in one


@pytest.mark.parametrize(
    ("line", "outcome", "failed", "printed"),
    [
        ("vcpu 1", Outcome(ok=True), False, "7> vcpu 1\n"),
        ("read 0 2", MMIO, False, "7> read 0 2\n    KVM_EXIT_MMIO phys_addr=0x5000 len=4 is_write=1\n"),
        ("vm a", REFUSED, False, "7> vm a\n    ENOSPC: the pool is full\n"),
        (
            "tdvmcall 1",
            Outcome(ok=False, ret=1 << 63, info={"r10": 1 << 63}, reason="R10 says no"),
            False,
            "7> tdvmcall 1\n    R10 says no\n",
        ),
        ("vm a", REFUSED, True, "7> vm a\n    FAILED: ENOSPC: the pool is full\n"),
        (
            "sh x",
            Outcome(ok=False, status=3, text="a\nb\n"),
            False,
            "7> sh x\n    a\n    b\n    exit status 3\n",
        ),
        ("info vms", Outcome(ok=True, info=[1]), False, "7> info vms\n    [\n      1\n    ]\n"),
        ("info vms", Outcome(ok=True, info=[1], text="one"), False, "7> info vms\n    one\n"),
        ("sha256 0 1", Outcome(ok=True, data=b"\xab\xcd"), False, "7> sha256 0 1\n    abcd\n"),
        ("expect ok", Outcome(ok=True), False, "7> expect ok\n    ok\n"),
        (
            "expect ok",
            Outcome(ok=False, reason="expected ok, got x"),
            True,
            "7> expect ok\n    FAILED: expected ok, got x\n",
        ),
        (
            "read 0x1000 5",
            Outcome(ok=True, data=b"hell\x00", address=0x1000),
            False,
            "7> read 0x1000 5\n    0x000000001000  68 65 6c 6c 00" + " " * 33 + "  |hell.|\n",
        ),
    ],
)
def test_for_a_person(line: str, outcome: Outcome, failed: bool, printed: str) -> None:
    assert as_text(record(line, outcome, failed)) == printed


def test_a_prompt_does_not_repeat_what_was_typed() -> None:
    assert as_text(record("vm a", REFUSED), echo=False) == "    ENOSPC: the pool is full\n"


def test_colours_only_on_a_terminal() -> None:
    terminal = Watched(terminal=True)
    HumanPrinter(terminal).emit(record("expect ok", Outcome(ok=True)))
    assert terminal.getvalue() == "\x1b[2m7> expect ok\x1b[0m\n    \x1b[32mok\x1b[0m\n"
    assert "\x1b" not in as_text(record("expect ok", Outcome(ok=True)))


def test_equal_rows_of_a_dump_are_one_star_and_the_last_row_is_shown() -> None:
    rows = list(hexdump(bytes(64) + b"end", 0x2000))
    assert [row.split()[0] for row in rows] == ["0x000000002000", "*", "0x000000002040"]
    assert rows[-1].endswith("|end|")
    assert [row.split()[0] for row in hexdump(bytes(64), 0)] == ["0x000000000000", "*", "0x000000000030"]
    assert list(hexdump(b"", 0)) == []
