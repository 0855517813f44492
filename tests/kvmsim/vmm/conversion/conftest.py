"""VMs with and without a store."""

import pytest

from tests.support.both_sides import resizable_store as resizable_store
from tests.support.both_sides import store as store
from tests.support.both_sides import vm as vm


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def encrypted(request: pytest.FixtureRequest) -> bool:
    """The tests of this room run with memory encryption, too."""
    return bool(request.param)
