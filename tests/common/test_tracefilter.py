"""Filters in the kernel's grammar: what they let through, and where they are wrong."""

import pytest

from memfsd.common import traceevents as e
from memfsd.common.tracefilter import MAX_FILTER_BYTES, BadFilter, parse

FAULT = (1, 0, 0x100000, 0x100000002, 4711, "vm0/1", 3)
MMIO = ("write", 4, 0xC0000000, 0x12, 4711, "vm0/1", 3)


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("gpa >= 0x100000", True),
        ("gpa > 0x100000", False),
        ("fault_address == 1048576", True),
        ("fault_address == 04000000", True),
        ("vcpu_id != 1", False),
        ("error_code & 2", True),
        ("error_code & 4", False),
        ("gpa < 4096 || vcpu_id == 1", True),
        ("gpa < 4096 || vcpu_id == 1 && gpa == 0", False),
        ("(gpa < 4096 || vcpu_id == 1) && gpa != 0", True),
        ("!(gpa < 4096)", True),
        ("!gpa < 4096", True),
        ("vcpu_id <= 1 && vcpu_id >= 1 && vcpu_id>0&&vcpu_id<2", True),
        ('comm ~ "vm0*" && common_pid == 4711 && CPU == 3', True),
        ("vcpu_id > -1", True),
    ],
)
def test_numbers(text: str, passes: bool) -> None:
    assert parse(text, e.PAGE_FAULT)(FAULT) is passes


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("type == write", True),
        ('type == "write"', True),
        ("type != 'write'", False),
        ("type ~ 'wri*'", True),
        ("type ~ '*read'", False),
        ("type ~ '[a-z]*'", False),
        ("type ~ w?ite && len == 4", True),
    ],
)
def test_text(text: str, passes: bool) -> None:
    assert parse(text, e.MMIO)(MMIO) is passes


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "column 1: a field is missing here"),
        ("   ", "column 1: a field is missing here"),
        ("gpa", "column 4: an operator is missing here"),
        ("gpa >=", "column 7: a value is missing here"),
        ("gpa = 3", "column 5: unexpected '='"),
        ("nothing == 3", "column 1: kvm_page_fault has no field 'nothing': it has vcpu_id, guest_rip"),
        ("gpa == 0xfg", "column 8: '0xfg' is no number"),
        ("gpa == 099", "column 8: '099' is no number of base 8"),
        ("gpa == 'x'", "column 8: 'x' is no number"),
        ("gpa ~ 3", "column 5: '~' is for text"),
        ("comm < 3", "column 6: '<' is for numbers"),
        ("(gpa == 3", "column 10: a ) is missing here"),
        ("gpa == 3)", "column 9: ')' after the end"),
        ("gpa == 3 vcpu_id == 1", "column 10: 'vcpu_id' after the end"),
        ("gpa == 3 && || vcpu_id", "column 13: '||' is no field"),
        ("gpa == 3 &&", "column 12: a field is missing here"),
        ("comm == 'x", "column 9: a quote that does not end"),
        ("gpa == 1" + "0" * 4000 + "0" * 100, "column 4097: a filter has at most"),
        ("gpa == 1" + "0" * 4000, "is no number"),
        ("!" * 40 + "gpa == 1", "column 34: nested more than 32 deep"),
        ("(" * 4000, "column 34: nested more than 32 deep"),
        ("gpa == __import__('os')", "column 8: '__import__' is no number"),
    ],
)
def test_what_is_wrong_and_in_which_column(text: str, why: str) -> None:
    with pytest.raises(BadFilter) as caught:
        parse(text, e.PAGE_FAULT)
    assert why in str(caught.value)
    assert len(str(caught.value)) < MAX_FILTER_BYTES * 2
