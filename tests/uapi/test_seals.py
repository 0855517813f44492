"""Seals by name and by bit."""

import fcntl
from itertools import combinations

import pytest

from memfsd.uapi.seals import ALL_SEALS, Seal, format_seals, parse_seals


def test_the_bits_are_those_of_memfds_and_the_guest_seal_takes_none_of_the_kernels() -> None:
    assert (Seal.SEAL, Seal.SHRINK, Seal.GROW, Seal.WRITE) == (
        fcntl.F_SEAL_SEAL,
        fcntl.F_SEAL_SHRINK,
        fcntl.F_SEAL_GROW,
        fcntl.F_SEAL_WRITE,
    )
    assert int(Seal.FUTURE_WRITE) == 0x10
    exec_seal = 0x20
    assert Seal.GUEST not in (exec_seal, *range(exec_seal))


def test_every_set_of_seals_reads_back_from_its_names() -> None:
    for size in range(1, len(Seal) + 1):
        for some in combinations(Seal, size):
            seals = Seal(sum(some))
            assert parse_seals(format_seals(seals)) == (seals, False)


def test_names_are_in_the_order_of_the_table() -> None:
    assert format_seals(ALL_SEALS) == "seal,shrink,grow,write,future-write,guest"
    assert format_seals(Seal(0)) == ""


def test_spaces_case_and_repetition_do_not_matter() -> None:
    assert parse_seals(" Guest , SHRINK,guest") == (Seal.GUEST | Seal.SHRINK, False)


def test_truncate_is_a_word_beside_guest() -> None:
    assert parse_seals("guest,truncate") == (Seal.GUEST, True)
    assert parse_seals("truncate,guest,seal") == (Seal.GUEST | Seal.SEAL, True)
    for text in ("truncate", "shrink,truncate"):
        with pytest.raises(ValueError, match="only with the guest seal"):
            parse_seals(text)


@pytest.mark.parametrize(
    ("text", "word"),
    [("", ""), ("guest,", ""), (",", ""), ("exec", "exec"), ("guest;shrink", "guest;shrink"), ("0x1000", "0x1000")],
)
def test_a_word_that_is_no_seal_is_named(text: str, word: str) -> None:
    with pytest.raises(ValueError, match="is not a seal: choose from seal, shrink") as caught:
        parse_seals(text)
    assert str(caught.value).startswith(f"'{word}'")
