"""Attributes that are words of the form "private=0"."""

from memfsd.common.fields import counted, fields

LINE = "total=16 node_free=3,4 abi=thread"


def test_numbers_are_numbers_and_the_rest_is_text() -> None:
    assert fields(LINE) == {"total": 16, "node_free": "3,4", "abi": "thread"}
    assert counted(LINE) == {"total": 16}
    assert fields("") == {}
