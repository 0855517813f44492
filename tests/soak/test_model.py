"""What a page may read as, moment by moment."""

import pytest
from soaklib.curve import BOUNDS, Curve
from soaklib.daemon import Levels
from soaklib.ledger import Moments
from soaklib.model import PageModel, Wrong
from soaklib.pattern import ZEROS, Stamp, describe, render

OTHERS = render(Stamp(9, 3, 0, 1))


class Page:
    """Page 3 of file 1, written once."""

    def __init__(self) -> None:
        self.takings, self.hazards = Moments.of_pages(8), Moments.of_pages(8)
        self.model = PageModel(Stamp(1, 3, 0, 0), self.takings, self.hazards)
        self.data = b""
        self.write()

    def write(self) -> None:
        self.data, written = self.model.write_begin()
        self.model.write_end(written)

    def reads(self, data: bytes) -> bool:
        return self.model.judge(data, self.model.read_begin())


def test_what_was_written_and_nothing_else() -> None:
    page = Page()
    assert page.reads(page.data) is False
    for wrong in (ZEROS, OTHERS, render(Stamp(1, 3, 0, 2)), b"x" * 4096, page.data[:-1] + b"x"):
        with pytest.raises(Wrong):
            page.reads(wrong)


def test_a_page_that_nobody_wrote_is_zeros() -> None:
    model = PageModel(Stamp(1, 3, 0, 0), Moments.of_pages(8), None)
    assert model.judge(ZEROS, 0) is False
    with pytest.raises(Wrong, match="file 9, private page 0x3, generation 1; it must be zeros"):
        model.judge(OTHERS, 0)


def test_both_while_a_taking_is_under_way() -> None:
    page = Page()
    with page.takings.taking(2, 4):
        assert page.reads(page.data) is False
        assert page.reads(ZEROS) is True
        with pytest.raises(Wrong):
            page.reads(page.data)


def test_zeros_alone_once_a_taking_is_over() -> None:
    page = Page()
    with page.takings.taking(2, 4):
        pass
    with pytest.raises(Wrong, match="still holds"):
        page.reads(page.data)
    assert page.reads(ZEROS) is True


def test_a_taking_before_the_write_does_not_count() -> None:
    page = Page()
    with page.takings.taking(0, 8):
        pass
    page.write()
    assert page.reads(page.data) is False
    with pytest.raises(Wrong):
        page.reads(ZEROS)


def test_a_write_during_a_taking_may_be_taken_or_stay() -> None:
    for found in (True, False):
        page = Page()
        with page.takings.taking(0, 8):
            page.write()
        assert page.reads(ZEROS if found else page.data) is found


def test_a_taking_of_other_pages_does_not_count() -> None:
    page = Page()
    with page.takings.taking(0, 3), page.takings.taking(4, 8), pytest.raises(Wrong):
        page.reads(ZEROS)


def test_a_read_that_began_before_the_taking_was_over_may_find_either() -> None:
    page = Page()
    with page.takings.taking(0, 8):
        before = page.model.read_begin()
    assert page.model.judge(page.data, before) is False


def test_a_taking_that_failed_may_have_happened() -> None:
    page = Page()
    with pytest.raises(OSError, match="failed"), page.takings.taking(0, 8):
        raise OSError("failed")
    assert page.reads(page.data) is False
    assert page.reads(ZEROS) is True


def test_a_hazard_may_destroy_and_need_not() -> None:
    page = Page()
    with page.hazards.taking(0, 8):
        pass
    assert page.reads(page.data) is False
    assert page.reads(ZEROS) is True


def test_a_page_tells_what_it_holds() -> None:
    assert describe(ZEROS) == "zeros"
    assert describe(OTHERS) == "file 9, private page 0x3, generation 1"
    assert describe(OTHERS[:2048] + ZEROS[:2048]) == "file 9, private page 0x3, generation 1 and zeros"
    assert describe(OTHERS[:100] + b"!" + OTHERS[101:]).startswith("nothing that was ever written (byte 0x40")


def test_a_curve_is_flat_up_to_its_bounds_and_tells_what_is_not() -> None:
    curve = Curve()
    first = Levels(50_000, 15, 5)
    curve.add(first)
    curve.add(Levels(*(low + bound for low, bound in zip(first, BOUNDS, strict=True))))
    assert curve.rises() == []
    curve.add(first._replace(fds=16))
    assert curve.rises() == ["fds rose from 15 to 16 in 3 epochs; 0 more are allowed"]
