"""The life of a frame: the states that it goes through, what takes it from one to the next, and the test that shows it.

The pool allows what is in this table and nothing else; docs/life-of-a-page.md is rendered from it.
"""

from typing import NamedTuple

from memfsd.uapi.frame_state import FrameState

_FREE, _SHARED, _PRIVATE, _PENDING = FrameState.FREE, FrameState.SHARED, FrameState.PRIVATE, FrameState.PENDING
_CLOSING, _QUARANTINED, _POISONED = FrameState.CLOSING, FrameState.QUARANTINED, FrameState.POISONED
_LEAKED, _MOVING, _OFFLINE = FrameState.LEAKED, FrameState.MOVING, FrameState.OFFLINE


class Transition(NamedTuple):
    """test: path below tests/ and function."""

    old: FrameState
    new: FrameState
    operation: str
    test: str


_GMEM, _ORDINARY = "core/test_gmem.py::", "core/files/test_ordinary.py::"
_ISOLATION = "core/memory/test_isolation.py::"
_MOVER = "store/test_mover.py::"

# fmt: off
TRANSITIONS = tuple(Transition(*row) for row in (
    (_FREE, _SHARED, "write(2) or fallocate(2) of an ordinary file",
     _ORDINARY + "test_a_sparse_file_holds_only_what_was_written"),
    (_FREE, _PRIVATE, "get_pfn: the page that was asked for; fallocate(2) of a sealed file",
     _GMEM + "test_frames_allocated_before_are_private_and_not_pending"),
    (_FREE, _PENDING, "get_pfn: pages granted ahead of the guest's touch",
     _GMEM + "test_the_page_that_was_asked_for_is_private_and_what_came_along_pending"),
    (_PENDING, _PRIVATE, "touched: get_pfn of the page, memory in the window, or kept by KVM in a reclaim",
     _GMEM + "test_frames_that_hold_memory_were_touched"),
    (_SHARED, _CLOSING, "punch, truncate or the end of an ordinary file",
     _ORDINARY + "test_freed_frames_come_back_as_zeros"),
    (_PRIVATE, _CLOSING, "punch, truncate, poison or the VM's end, after KVM's acknowledgement",
     _GMEM + "test_a_frame_is_free_only_after_the_acknowledgement_and_the_scrub"),
    (_PENDING, _CLOSING, "reclaim, or as for private",
     _GMEM + "test_reclaim_frees_untouched_pages_alone"),
    (_PRIVATE, _QUARANTINED, "the VM lives and does not acknowledge",
     _GMEM + "test_a_vm_that_is_cut_off_keeps_its_frames_in_quarantine_until_it_is_dead"),
    (_PENDING, _QUARANTINED, "the VM lives and does not acknowledge",
     _GMEM + "test_a_vm_that_is_cut_off_keeps_its_frames_in_quarantine_until_it_is_dead"),
    (_FREE, _MOVING, "a page is about to move into it, or comes back from the swap file",
     _MOVER + "test_a_frame_is_moving_until_kvm_has_copied_and_the_old_one_is_scrubbed"),
    (_MOVING, _PRIVATE, "KVM has copied the page, or decrypted it",
     _MOVER + "test_a_frame_is_moving_until_kvm_has_copied_and_the_old_one_is_scrubbed"),
    (_MOVING, _PENDING, "KVM has moved a page that nobody touched",
     _MOVER + "test_what_was_granted_ahead_stays_so"),
    (_MOVING, _CLOSING, "KVM refused, kept the page, or is dead; a blob cannot be read",
     _MOVER + "test_a_vm_that_refuses_keeps_its_pages_where_they_are"),
    (_MOVING, _QUARANTINED, "the VM lives and does not acknowledge",
     _MOVER + "test_a_silent_vm_keeps_both_frames_in_quarantine_until_it_is_dead"),
    (_QUARANTINED, _CLOSING, "the VM is proven dead",
     _GMEM + "test_a_vm_that_is_cut_off_keeps_its_frames_in_quarantine_until_it_is_dead"),
    (_CLOSING, _FREE, "scrubbed",
     _GMEM + "test_a_frame_is_free_only_after_the_acknowledgement_and_the_scrub"),
    (_FREE, _OFFLINE, "its node goes offline, or the block around it is being emptied",
     _ISOLATION + "test_what_is_set_aside_is_given_to_nobody"),
    (_CLOSING, _OFFLINE, "scrubbed, where frames are set aside",
     _ISOLATION + "test_what_becomes_free_where_frames_are_set_aside_joins_them"),
    (_OFFLINE, _FREE, "its node is online again, or the block is empty",
     _ISOLATION + "test_what_is_set_aside_is_given_to_nobody"),
    (_CLOSING, _POISONED, "scrubbed, and its memory has failed",
     _GMEM + "test_a_poisoned_frame_is_out_of_service_and_its_page_ehwpoison_until_it_is_punched"),
    (_CLOSING, _LEAKED, "the kernel does not give its memory back",
     "store/test_failures.py::test_a_frame_whose_memory_cannot_be_given_back_is_leaked"),
))
# fmt: on

LEGAL: dict[FrameState, frozenset[FrameState]] = {
    old: frozenset(row.new for row in TRANSITIONS if row.old is old) for old in FrameState
}
