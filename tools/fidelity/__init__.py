"""How faithful kvmsim is to a real KVM: the same cases run on both, every difference explained.

    cases.py        what is asked: our table of cases, each a list of ioctls
    kvm.py          asks a real /dev/kvm, in a fresh process
    recording.py    all answers as JSON: tests/fidelity/kvm-memslots.json
    deviations.py   where kvmsim answers otherwise and why, and docs/fidelity.md made from it
    cli.py          tools/record-kvm

And how faithful a guest_memfd of a mount is to the kernel's: recorded cases of many calls, asked of both.

    oracle.py       tools/oracle: asks both, prints what differs
    vectors.py      recorded cases as JSON: tests/fidelity/guest-memfd.json
    player.py       plays a case in a separate process
    descriptors.py  ops that are system calls on a descriptor
    mappings.py     ops that are about memory
    fault.py        accesses that may fault, and the signal that they get
    linux_kvm.py    KVM's ops, asked of /dev/kvm
    linux_guest.py  the guest there: 64-bit code that makes one access
    simulated.py    KVM's ops, asked of memfsd and kvmsim
    simulated_vm.py slots and guests there
    outcomes.py     what an op came to
    reasons.py      where ours answers otherwise, and why
    document.py     docs/fidelity-guest-memfd.md made from that

tests/fidelity replays the recordings and compares.
"""
