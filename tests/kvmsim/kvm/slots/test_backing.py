"""What a slot shows: how large a leaf may be."""

from typing import cast

from kvmsim.kvm.slots.backing import Gmem, SlotBacking
from memfsd.uapi.units import HostPfn
from tests.support.slots import NO_BACKING, NO_MEMORY


class TwoMegabytes:
    order = 9


def test_leaves_of_private_memory_are_of_the_files_page_size_whatever_the_windows_is() -> None:
    gmem = cast(Gmem, TwoMegabytes())
    assert SlotBacking(NO_MEMORY, HostPfn(0), gmem).leaf_order == 9
    assert NO_BACKING.leaf_order == NO_MEMORY.leaf_order == 0


def test_two_backings_of_the_same_frames_are_not_the_same() -> None:
    """Each is a slot's own: deletion compares them."""
    assert SlotBacking(NO_MEMORY, HostPfn(0)) != SlotBacking(NO_MEMORY, HostPfn(0))
