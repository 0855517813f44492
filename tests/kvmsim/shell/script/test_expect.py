"""Which outcome an `expect` accepts, and what it says of the others."""

import pytest

from kvmsim.shell.script.commands import Expect
from kvmsim.shell.script.expect import mismatch, same_value
from kvmsim.shell.script.grammar import parse_line
from kvmsim.shell.script.outcome import Outcome

OK = Outcome(ok=True)
HELLO = Outcome(ok=True, data=b"hello")
REFUSED = Outcome(ok=False, errno="EEXIST", reason="slot 1 is there")
UNSUPPORTED = Outcome(ok=False, errno="ENOTSUP")
MMIO = Outcome(
    ok=False,
    exit="KVM_EXIT_MMIO",
    exit_fields={"phys_addr": 0x5000, "len": 4, "is_write": True, "data": "0102"},
)
HANDLED = Outcome(ok=True, exit="KVM_EXIT_HYPERCALL", exit_fields={"nr": 1})
TRUE, FALSE = Outcome(ok=True, status=0), Outcome(ok=False, status=1)
RETURNED = Outcome(ok=False, ret=(1 << 63) + 2, reason="R10=0x8000000000000002 (alignment error) R11=0x1")
BROKEN = Outcome(ok=False, reason="vCPU 3 does not exist")


def verdict(line: str, outcome: Outcome) -> str | None:
    expect = parse_line(line, 1)
    assert isinstance(expect, Expect)
    return mismatch(expect, outcome)


@pytest.mark.parametrize(
    ("line", "outcome"),
    [
        ("expect ok", OK),
        ("expect ok", TRUE),
        ("expect ok", HANDLED),
        ("expect errno EEXIST", REFUSED),
        ("expect errno EOPNOTSUPP", UNSUPPORTED),
        ("expect exit MMIO", MMIO),
        ("expect exit KVM_EXIT_MMIO phys_addr=20K len=0x4 is_write=1 data=0102", MMIO),
        ("expect exit mmio is_write=true len=0b100", MMIO),
        ("expect exit HYPERCALL nr=1", HANDLED),
        ('expect data "hello"', HELLO),
        ("expect data 68656c6c6f", HELLO),
        ("expect status 0", TRUE),
        ("expect status 1", FALSE),
        ("expect ret 0x8000000000000002", RETURNED),
        ("expect ret -1000", Outcome(ok=False, ret=(1 << 64) - 1000)),
        ("expect ret 0", Outcome(ok=True, ret=0)),
    ],
)
def test_matches(line: str, outcome: Outcome) -> None:
    assert verdict(line, outcome) is None


@pytest.mark.parametrize(
    ("line", "outcome", "said"),
    [
        ("expect exit MMIO", OK, "expected exit MMIO, got ok"),
        (
            "expect exit HLT",
            MMIO,
            "expected exit HLT, got exit MMIO phys_addr=0x5000 len=4 is_write=1 data=0102",
        ),
        ("expect exit MMIO len=8", MMIO, "expected exit MMIO len=8, got len=4"),
        ("expect exit MMIO len=four", MMIO, "expected exit MMIO len=four, got len=4"),
        ("expect exit MMIO is_write=0", MMIO, "expected exit MMIO is_write=0, got is_write=1"),
        (
            "expect exit MMIO gpa=0",
            MMIO,
            "expected exit MMIO gpa=0, but the fields are: phys_addr, len, is_write, data",
        ),
        ("expect ok", MMIO, "expected ok, got exit MMIO phys_addr=0x5000 len=4 is_write=1 data=0102"),
        ("expect ok", REFUSED, "expected ok, got errno EEXIST: slot 1 is there"),
        ("expect ok", FALSE, "expected ok, got status 1"),
        ("expect ok", BROKEN, "expected ok, got a failure: vCPU 3 does not exist"),
        ("expect errno ENOSPC", REFUSED, "expected errno ENOSPC, got errno EEXIST: slot 1 is there"),
        ("expect errno ENOSPC", OK, "expected errno ENOSPC, got ok"),
        ("expect status 0", FALSE, "expected status 0, got status 1"),
        ("expect status 0", OK, "expected status 0, got ok (only sh has a status)"),
        ("expect ret 0", RETURNED, "expected ret 0x0, got ret 0x8000000000000002"),
        ("expect ret 0", OK, "expected ret 0x0, got ok (only hypercall and tdvmcall return something)"),
        ("expect ok", RETURNED, "expected ok, got ret 0x8000000000000002"),
        ("expect data 00", OK, "expected data 00, got ok"),
        (
            "expect data 0102",
            MMIO,
            "expected data 0102, got exit MMIO phys_addr=0x5000 len=4 is_write=1 data=0102",
        ),
        (
            "expect data 68656c6c70",
            HELLO,
            "expected data 68656c6c70, got data 68656c6c6f (they differ from byte 4)",
        ),
        (
            "expect data 68",
            HELLO,
            "expected data 68, got data 68656c6c6f (1 bytes expected, got 5)",
        ),
    ],
)
def test_says_what_was_expected_and_what_came(line: str, outcome: Outcome, said: str) -> None:
    assert verdict(line, outcome) == said


def test_long_data_is_cut_but_the_difference_is_named() -> None:
    said = verdict("expect data " + "00" * 100, Outcome(ok=True, data=bytes(99) + b"\1"))
    assert said is not None
    assert said.endswith("... (they differ from byte 99)")
    assert len(said) < 200


def test_data_that_came_with_an_exit_was_not_read() -> None:
    exited = Outcome(ok=False, exit="KVM_EXIT_MMIO", data=b"hello")
    assert verdict('expect data "hello"', exited) == "expected data 68656c6c6f, got exit MMIO"


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (4096, "4096"),
        (4096, "0x1000"),
        (4096, "4K"),
        (10, "010"),
        (-1, "-1"),
        (1, "true"),
        (True, "0x1"),
        (True, "TRUE"),
        (False, "0"),
        ("private", "PRIVATE"),
        ("KVM_MAP_GPA", "map_gpa"),
        ("mmio", "KVM_EXIT_MMIO"),
    ],
)
def test_values_that_are_the_same(actual: int | str | bool, expected: str) -> None:
    assert same_value(actual, expected)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [(4096, "4095"), (0, ""), (0, "zero"), (True, "2"), (True, "false"), (False, ""), ("private", "shared")],
)
def test_values_that_differ(actual: int | str | bool, expected: str) -> None:
    assert not same_value(actual, expected)
