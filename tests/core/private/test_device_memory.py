"""Memory of a device: page N is frame N, as long as it is there."""

import pytest

from memfsd.core.private.device_memory import Device
from tests.support.core_store import refused


@pytest.mark.parametrize(("pgoff", "most", "run"), [(0, 8, (0, 8)), (3, 2, (3, 2)), (6, 8, (6, 2)), (8, 1, None)])
def test_a_run_is_the_page_itself_up_to_the_end(pgoff: int, most: int, run: tuple[int, int] | None) -> None:
    assert Device(8).run_at(pgoff, most) == run


def test_a_device_that_is_gone_has_no_pages() -> None:
    device = Device(8)
    device.check_there()
    device.is_gone = True
    assert device.run_at(0, 8) is None
    with refused("ENODEV"):
        device.check_there()
