"""Names, signatures and values that programs rely on do not change by accident."""

from tests.support.surface import FILE, surface


def test_the_public_surface_is_as_written_down() -> None:
    assert surface().splitlines() == FILE.read_text().splitlines(), "python -m tests.support.surface, and say why"
