"""The soak: real processes for a long time, and every page of guest memory verified.

__main__    the command: rounds until the time is over, the verdict
rounds      what one round is: steady, or the loss of the store
host        what the host does meanwhile: punches, truncates, moves, swaps, files, stops, kills
fleet       the VMMs of a round: started, and judged when they end
vmm         one VMM, a process: vCPUs in threads that write, convert and verify
programs    one whose vCPUs run guest programs, machine code
plan        what the host asks of a VMM
kvm         all that is used of kvmsim
model       what a page may read as, given when it was written and when it was taken
ledger      shared by host and VMM: when each page was taken, counters, flags
pattern     what a page holds: whose it is, and which generation
daemon      a memfsd of our own, and what it holds: memory, fds, threads
curve       flat or not
report      counts, the progress line, the summary
"""
