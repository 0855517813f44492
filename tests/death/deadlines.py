"""Deadlines, shortened where they are defined: import this before anything that uses them.

As a script it is the command memfs with these deadlines.
"""

from memfsd.uapi import limits

SHORTENED = {
    "GREETING_DEADLINE_S": 2.0,
    "ACK_DEADLINE_S": 1.0,
    "PROOF_DEADLINE_S": 0.5,
    "BRACKET_DEADLINE_S": 3.0,
    "CHECK_TURN_DEADLINE_S": 0.5,
    "CHECK_BRACKETS_DEADLINE_S": 1.0,
    "CHECK_REPORTS_DEADLINE_S": 1.0,
    "ANSWER_DEADLINE_S": 4.0,
}
"""In the order of the real ones: an answer may wait for a bracket, a bracket for an acknowledgement."""
for _name, _seconds in SHORTENED.items():
    assert getattr(limits, _name) >= _seconds
    setattr(limits, _name, _seconds)

if __name__ == "__main__":
    from memfsd.memfs import main

    main()
