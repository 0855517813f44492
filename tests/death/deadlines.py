"""Deadlines, shortened where they are defined: import this before anything that uses them.

Short where a cell must outlast them. All others have the real ones, which no busy machine uses up: only the proof of a
death is awaited for less, since a cut connection to a process that lives costs that long each time, and being late with
it harms nobody. As a script it is the command memfs with these deadlines.
"""

import os

from memfsd.uapi import limits

CHANGED = {"PROOF_DEADLINE_S": 0.5}
if os.environ.get("MEMFSD_DEATH_DEADLINES") == "short":  # as model.py says; a script has no package to import it from
    CHANGED |= {
        "GREETING_DEADLINE_S": 3.0,
        "ACK_DEADLINE_S": 2.0,
        "BRACKET_DEADLINE_S": 4.0,
        "ANSWER_DEADLINE_S": 5.0,
    }
"""In the order of the real ones: an answer may wait for a bracket, a bracket for an acknowledgement."""
for _name, _seconds in CHANGED.items():
    assert getattr(limits, _name) >= _seconds
    setattr(limits, _name, _seconds)

if __name__ == "__main__":
    from memfsd.memfs import main

    main()
