"""Outcomes: what cannot be both, and exits as a person reads them."""

import errno

import pytest

from kvmsim.shell.script.outcome import Outcome, format_exit, format_field
from memfsd.uapi.errors import Refused


def test_a_refusal_is_its_errno_and_its_reason() -> None:
    assert Outcome.refused(Refused(errno.EEXIST, "slot 0 is there")) == Outcome(
        ok=False, errno="EEXIST", reason="slot 0 is there"
    )


def test_what_did_what_it_should_was_not_refused() -> None:
    with pytest.raises(AssertionError):
        Outcome(ok=True, errno="EINVAL")


def test_fields_of_an_exit_need_an_exit() -> None:
    with pytest.raises(AssertionError):
        Outcome(ok=False, exit_fields={"gpa": 0})


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("gpa", 0, "0x0"),
        ("phys_addr", 8, "0x8"),
        ("len", 8, "8"),
        ("len", 4095, "4095"),
        ("size", 4096, "0x1000"),
        ("is_write", True, "1"),
        ("is_write", False, "0"),
        ("reason", "full", "full"),
    ],
)
def test_addresses_and_pages_are_in_hex_and_booleans_as_in_kvm_run(name: str, value: int | str, shown: str) -> None:
    assert format_field(name, value) == shown


def test_an_exit_is_one_line() -> None:
    assert format_exit("KVM_EXIT_MMIO", {"phys_addr": 0x5000, "len": 4, "is_write": True}) == (
        "KVM_EXIT_MMIO phys_addr=0x5000 len=4 is_write=1"
    )
    assert format_exit("KVM_EXIT_HLT", {}) == "KVM_EXIT_HLT"
