"""Both sides in one process: memfsd's sessions and kvmsim's machines over socketpairs."""

import pytest

from tests.support.both_sides import resizable_store as resizable_store
from tests.support.both_sides import small_store as small_store
from tests.support.both_sides import store as store
from tests.support.both_sides import swapping_store as swapping_store


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def encrypted(request: pytest.FixtureRequest) -> bool:
    """The tests of this room run with memory encryption, too."""
    return bool(request.param)
