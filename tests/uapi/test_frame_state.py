"""The states of a frame."""

from memfsd.uapi.frame_state import FrameState, state_name


def test_a_state_has_its_name_and_one_of_a_newer_store_its_number() -> None:
    assert state_name(FrameState.QUARANTINED) == "quarantined"
    assert state_name(200) == "200"
