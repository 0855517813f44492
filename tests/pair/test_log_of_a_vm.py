"""What kvmsim logs of its pairings, and that it says nothing unless it is asked."""

import logging

import pytest

from memfsd.uapi.errors import PeerLost
from memfsd.uapi.messages import Empty, InvalidateEnd, Kind
from tests.support.both_sides import LocalStore, errno_of, page
from tests.support.threads import until


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("kvmsim") and r.levelno >= level]


def test_pairings_invalidations_and_refusals_are_logged(
    small_store: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "kvmsim")
    file = small_store.create("mem", 8)
    vm = small_store.vm("a\n")
    vm.private_slot(0, 0, page(8), "mem")
    assert vm.write(0, b"x") is None
    small_store.punch("mem", 0, 4)
    assert errno_of(vm.link().get_pfn, 99, 1) == "EFAULT"
    until(lambda: any("is over" in line for line in messages(caplog, logging.DEBUG)), "END is logged")
    vm.close()
    ino = file.ino
    who = "VM 'a'$'\\n'"
    assert messages(caplog, logging.INFO) == [
        f"{who} is paired with inode {ino}, of {page(8)} bytes",
        f"{who} is no longer paired with inode {ino}: BYE",
    ]
    said = messages(caplog, logging.DEBUG)
    assert f"{who} gave back pages 0x0-0x4 of inode {ino} (PUNCH) but for 0 ranges" in said
    assert f"{who}: the invalidation of inode {ino} is over, sequence 1" in said
    assert any(line.startswith(f"{who}: the store refuses GET_PFN ") and "EFAULT" in line for line in said)


def test_a_call_that_is_not_legal_is_refused_and_logged(
    small_store: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kvmsim")
    file = small_store.create("mem", 8)
    vm = small_store.vm()
    vm.private_slot(0, 0, page(8), "mem")
    peer = small_store.invalidator.peers[file.ino]
    with pytest.raises(PeerLost, match="EPROTO"):
        peer.up.call(Kind.INVALIDATE_END, InvalidateEnd(0, 1, 1), Empty)
    assert any(
        "VM vm0 refuses INVALIDATE_END " in line and "EPROTO: INVALIDATE_END is not legal now" in line
        for line in messages(caplog, logging.INFO)
    )


def test_a_lost_store_is_logged_once_and_not_as_bye(small_store: LocalStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kvmsim")
    small_store.create("mem", 8)
    vm = small_store.vm()
    vm.private_slot(0, 0, page(8), "mem")
    small_store.hang_up("mem")
    until(lambda: bool(vm.link().lost), "the VM knows")
    vm.close()
    said = messages(caplog, logging.INFO)
    assert len(said) == 2, said
    assert said[1].startswith("VM vm0 lost the store of inode ")
