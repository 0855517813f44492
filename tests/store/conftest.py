"""A store without FUSE and sockets."""

import pytest

from tests.support.core_store import CoreStore


@pytest.fixture
def store() -> CoreStore:
    """64 frames, default options."""
    return CoreStore()
