"""Commands as values."""

import pytest

from kvmsim.shell.script import commands as c


def test_commands_are_equal_when_they_ask_for_the_same_wherever_they_were_written() -> None:
    here = c.Read(0, 0x1000, 4, False, line=1, name="read", source="read 0x1000 4", columns={"gpa": 6})
    there = c.Read(0, 0x1000, 4, False, line=9, name="read", source="read 4096 4", columns={"gpa": 7})
    assert here == there
    assert here != c.Read(0, 0x1000, 5, False)
    assert here != c.Read(0, 0x1000, 4, False, vm="other"), "the VM is what it asks for"


def test_a_command_cannot_change_after_it_was_read() -> None:
    with pytest.raises(AttributeError):
        c.Kick(0).vcpu = 1  # type: ignore[misc]


def test_all_commands_are_such_values() -> None:
    found = [cls for cls in vars(c).values() if isinstance(cls, type) and issubclass(cls, c.Command)]
    assert c.Read in found
    assert [cls for cls in found if not cls.__struct_config__.frozen] == []
    assert len({hash(c.Kick(vcpu)) for vcpu in range(8)}) == 8
    assert c.Kick(0) != c.Join(0)
    assert "vcpu=0" in repr(c.Kick(0))
