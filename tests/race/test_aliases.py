"""What is known of the alias of a page while conversions go on."""

import errno

import pytest

from kvmsim.instruments.race.aliases import Aliases
from kvmsim.instruments.race.history import History
from kvmsim.instruments.race.shown import SlotHistory
from memfsd.uapi.abi import GMEM_6_18, GMEM_INPLACE, THREAD
from memfsd.uapi.errors import Refused


def test_a_page_is_what_it_was_born_until_it_is_converted_and_both_meanwhile() -> None:
    history = History()
    aliases = Aliases(GMEM_INPLACE, history, SlotHistory(history))
    aliases.born_private("mem", 4)
    page = aliases.of_file("mem", 1, 1)
    assert aliases.may_be(page, history.tick(), private=True)
    assert not aliases.may_be(page, history.tick(), private=False)
    with aliases.converting(page, private=False):
        meanwhile = history.tick()
        assert aliases.may_be(page, meanwhile, private=True) and aliases.may_be(page, meanwhile, private=False)
    assert not aliases.may_be(page, history.tick(), private=True)
    assert aliases.may_be(aliases.of_file("mem", 2, 1), history.tick(), private=True), "no other page"


@pytest.mark.parametrize(("number", "may_be_shared"), [(errno.EAGAIN, False), (errno.ETIMEDOUT, True)])
def test_what_eagain_leaves_is_known(number: int, may_be_shared: bool) -> None:
    history = History()
    aliases = Aliases(GMEM_INPLACE, history, SlotHistory(history))
    aliases.born_private("mem", 1)
    page = aliases.of_file("mem", 0, 1)
    with pytest.raises(Refused), aliases.converting(page, private=False):
        raise Refused(number, "")
    assert aliases.may_be(page, history.tick(), private=False) is may_be_shared
    assert aliases.may_be(page, history.tick(), private=True)


def test_whose_attribute_decides_is_the_abis() -> None:
    history = History()
    shown = SlotHistory(history)
    shown.making("vm0", 0, "mem", 8, 2, 4)
    found = [Aliases(abi, history, shown).shown("vm0", 9, 0) for abi in (GMEM_6_18, GMEM_INPLACE, THREAD)]
    assert found == [[("attribute of vm0", 9)], [("attribute of mem", 3)], []]
    assert Aliases(GMEM_6_18, history, shown).may_be([("attribute of vm0", 9)], 0, private=False), "at first"
