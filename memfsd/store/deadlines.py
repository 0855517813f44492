"""How long the store's use cases wait, in seconds. The limits say why; a test has shorter ones."""

from dataclasses import dataclass

from memfsd.uapi.limits import (
    BRACKET_DEADLINE_S,
    CHECK_BRACKETS_DEADLINE_S,
    CHECK_REPORTS_DEADLINE_S,
    CHECK_TURN_DEADLINE_S,
    GRANT_DEADLINE_S,
    MOVE_DEADLINE_S,
    NODES_DEADLINE_S,
    PROOF_DEADLINE_S,
    RECLAIM_DEADLINE_S,
    SWAP_OFF_DEADLINE_S,
    SWAP_OUT_DEADLINE_S,
)


@dataclass(slots=True)
class Deadlines:
    """Each by what it ends the wait for."""

    proof_s: float = PROOF_DEADLINE_S
    invalidate_lock_s: float = BRACKET_DEADLINE_S
    reclaim_s: float = RECLAIM_DEADLINE_S
    swap_out_s: float = SWAP_OUT_DEADLINE_S
    swap_off_s: float = SWAP_OFF_DEADLINE_S
    grant_s: float = GRANT_DEADLINE_S
    move_s: float = MOVE_DEADLINE_S
    nodes_s: float = NODES_DEADLINE_S
    check_turn_s: float = CHECK_TURN_DEADLINE_S
    check_locks_s: float = CHECK_BRACKETS_DEADLINE_S
    check_reports_s: float = CHECK_REPORTS_DEADLINE_S
