"""A store that grants what is not in the window: nothing of it is mapped, and the pairing ends."""

import errno

import pytest

from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.exits import MemoryErrorExit
from memfsd.uapi.messages import GetPfnReply
from tests.support.both_sides import LocalStore, page
from tests.support.threads import until

FRAMES = 1024


@pytest.mark.parametrize(("pfn", "count"), [(FRAMES, 1), (FRAMES - 1, 2), ((1 << 32) - 1, 1), (0, FRAMES + 1)])
def test_a_grant_that_leaves_the_window_is_a_broken_store(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, pfn: int, count: int
) -> None:
    assert store.service.pool.frame_count == FRAMES
    store.create("file", 16)
    vm = store.vm()
    vm.private_slot(0, 0, page(16), "file")
    monkeypatch.setattr(store.service.gmem, "get_pfn", lambda *_: GetPfnReply(pfn, count, 0, 0))

    stopped = vm.write(0, b"x")

    assert isinstance(stopped, MemoryErrorExit)
    assert stopped.errno == errno.EIO
    assert vm.vm.mmu.epts[PRIVATE].leaf_count == 0
    until(lambda: store.guest("file").active is None, "the store has seen the end of the pairing")
