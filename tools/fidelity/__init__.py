"""How faithful kvmsim is to a real KVM: the same cases run on both, every difference explained.

    cases.py        what is asked: our table of cases, each a list of ioctls
    kvm.py          asks a real /dev/kvm, in a fresh process
    recording.py    all answers as JSON: tests/fidelity/kvm-memslots.json
    deviations.py   where kvmsim answers otherwise and why, and docs/fidelity.md made from it
    cli.py          tools/record-kvm

tests/fidelity replays the recording against kvmsim and compares.
"""
