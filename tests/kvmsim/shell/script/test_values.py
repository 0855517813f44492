"""Words to values: each converter at its bounds, and what it says beyond them."""

from collections.abc import Callable

import pytest

from kvmsim.shell.script import values as v
from kvmsim.shell.script.words import Word
from memfsd.uapi.limits import MAX_ACCESS_BYTES, MAX_NAME_BYTES

Convert = Callable[[Word], object]


def word(text: str, *, quoted: bool = False) -> Word:
    return Word(text, 1, 1 + len(text), quoted)


@pytest.mark.parametrize(
    ("convert", "text", "value"),
    [
        (v.number, "0", 0),
        (v.number, "0XfF", 255),
        (v.number, str((1 << 32) - 1), (1 << 32) - 1),
        (v.long_number, hex((1 << 64) - 1), (1 << 64) - 1),
        (v.register, "-1", (1 << 64) - 1),
        (v.register, "-1000", (1 << 64) - 1000),
        (v.register, "2G", 2 << 30),
        (v.address, "0xffffffffffffffff", (1 << 64) - 1),
        (v.address, "4G", 4 << 30),
        (v.size, "0", 0),
        (v.size, "64K", 64 << 10),
        (v.length, "1", 1),
        (v.access_length, str(MAX_ACCESS_BYTES), MAX_ACCESS_BYTES),
        (v.data, "0a0B", b"\n\x0b"),
        (v.data, "0x00", b"\0"),
        (v.slot_flags, "readonly", 2),
        (v.slot_flags, "log_dirty,READONLY", 3),
        (v.slot_flags, "1,0x10", 17),
        (v.errno_name, "eexist", "EEXIST"),
        (v.errno_name, "ENOTSUP", "ENOTSUP"),
        (v.exit_status, "255", 255),
        (v.vm_name, "v" * MAX_NAME_BYTES, "v" * MAX_NAME_BYTES),
        (v.choice("topic", ("ept", "mmu")), "mmu", "mmu"),
    ],
)
def test_a_word_becomes_its_value(convert: Convert, text: str, value: object) -> None:
    assert convert(word(text)) == value


@pytest.mark.parametrize(
    ("convert", "text", "said"),
    [
        (v.number, str(1 << 32), "does not fit in 32 bits"),
        (v.number, "1K", "'1K' is not a number: write decimal digits, or hex with 0x"),
        (v.number, "٣", "is not a number"),
        (v.number, "9" * 5000, "does not fit in 32 bits"),
        (v.register, "-" + str(1 << 63), "does not fit in 63 bits"),
        (v.address, hex(1 << 64), "does not fit in 64 bits"),
        (v.address, "here", "'here' is not an address: write hex with 0x, or decimal with or without K, M, G or T"),
        (v.size, "-4K", "is not a size"),
        (v.length, "0", "a length of 0 does nothing: write at least 1"),
        (v.access_length, str(MAX_ACCESS_BYTES + 1), "read it in parts, or use sha256"),
        (v.data, "abc", "has an odd number of hex digits: a byte is two"),
        (v.data, "hello", "'hello' is neither hex bytes nor quoted: for text write"),
        (v.data, "", "no bytes"),
        (v.data, "00" * (MAX_ACCESS_BYTES + 1), "bytes are more than one command moves"),
        (v.path, "", "an empty path: write the name of a file"),
        (v.vm_name, "", "an empty name"),
        (v.vm_name, "ä" * MAX_NAME_BYTES, "is longer than a name may be"),
        (v.slot_flags, "readonyl", "unknown flag 'readonyl': did you mean 'readonly'?"),
        (v.errno_name, "EEXITS", "did you mean 'EEXIST'?"),
        (v.exit_status, "256", "256 is not an exit status: choose 0 to 255"),
        (v.choice("topic", ("ept", "mmu")), "zzz", "unknown topic 'zzz': choose from ept, mmu"),
    ],
)
def test_a_word_that_means_nothing_is_one_line_with_the_way_out(convert: Convert, text: str, said: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011  the line is looked at below
        convert(word(text))
    line = str(refused.value)
    assert said in line
    assert "\n" not in line and len(line) < 400


def test_text_in_quotes_is_its_utf_8() -> None:
    assert v.data(word("hé", quoted=True)) == b"h\xc3\xa9"
    assert v.data(word("00", quoted=True)) == b"00"


def test_a_long_word_is_cut_where_it_is_quoted() -> None:
    assert v.shown("x" * 40) == f"'{'x' * 40}'"
    assert v.shown("x" * 41) == f"'{'x' * 40}...'"


def test_many_choices_are_not_all_listed() -> None:
    choices = [f"choice{number}" for number in range(20)]
    assert v.unknown("thing", "zzz", choices).endswith("choice15, ...")
    assert v.unknown("thing", "zzz", choices[:16]).endswith("choice15")


@pytest.mark.parametrize(("name", "number"), [("EINVAL", 22), ("EOPNOTSUPP", 95), ("errorcode", None), ("EXYZ", None)])
def test_a_name_of_an_errno_has_its_number(name: str, number: int | None) -> None:
    assert v.errno_number(name) == number
