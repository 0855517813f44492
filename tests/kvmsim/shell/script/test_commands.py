"""Commands as values."""

import dataclasses

import pytest

from kvmsim.shell.script import commands as c


def test_commands_are_equal_when_they_ask_for_the_same_wherever_they_were_written() -> None:
    here = c.Read(0, 0x1000, 4, False, line=1, name="read", source="read 0x1000 4", columns={"gpa": 6})
    there = c.Read(0, 0x1000, 4, False, line=9, name="read", source="read 4096 4", columns={"gpa": 7})
    assert here == there
    assert here != c.Read(0, 0x1000, 5, False)
    assert here != c.Read(0, 0x1000, 4, False, vm="other"), "the VM is what it asks for"


def test_a_command_cannot_change_after_it_was_read() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.Kick(0).vcpu = 1  # type: ignore[misc]


def test_all_commands_are_such_values() -> None:
    found = [cls for cls in vars(c).values() if isinstance(cls, type) and issubclass(cls, c.Command)]
    assert c.Read in found
    for cls in found:
        assert cls.__dataclass_params__.frozen, cls  # type: ignore[attr-defined]
        compared = {field.name for field in dataclasses.fields(cls) if field.compare}
        assert not compared & {"line", "name", "source", "columns"}, cls
