"""Deadlines, shortened where they are defined: import this before anything that uses them.

Short where a cell must outlast them. For all others they are longer than the real ones, so that no busy machine uses
one up: only the proof of a death is awaited for less, since a cut connection to a process that lives costs that long
each time, and being late with it harms nobody. As a script it is the command memfs with these deadlines.
"""

import os

from memfsd.uapi import limits

LONG = {
    "GREETING_DEADLINE_S": 40.0,
    "ACK_DEADLINE_S": 40.0,
    "CHECK_TURN_DEADLINE_S": 40.0,
    "CHECK_BRACKETS_DEADLINE_S": 40.0,
    "CHECK_REPORTS_DEADLINE_S": 40.0,
    "BRACKET_DEADLINE_S": 100.0,
    "ANSWER_DEADLINE_S": 120.0,
}
SHORT = {
    "GREETING_DEADLINE_S": 3.0,
    "ACK_DEADLINE_S": 2.0,
    "BRACKET_DEADLINE_S": 4.0,
    "ANSWER_DEADLINE_S": 5.0,
}
"""In the order of the real ones: an answer may wait for a bracket, a bracket for an acknowledgement."""
_short = os.environ.get("MEMFSD_DEATH_DEADLINES") == "short"  # as model.py says, which a script cannot import
for _name, _seconds in {**(SHORT if _short else LONG), "PROOF_DEADLINE_S": 0.5}.items():
    assert hasattr(limits, _name)
    setattr(limits, _name, _seconds)

if __name__ == "__main__":
    from memfsd.commands.memfs import main

    main()
