"""The page tables of one VM. Pure: no I/O, no waits; Mmu.lock is held around every call.

ept          4-level page tables with leaves of 4 KiB, 2 MiB and 1 GiB: map, zap, look up, in numpy
epttables    the tree of tables under them; eptentry: the layout of an entry
runs         lists of contiguous pages
tlb          the software TLB of a vCPU
blocked      private pages that are unmapped and keep their contents
gate         keeps those out who walk an EPT without the lock, while it changes
physmap      host physical frame numbers to the memory behind them
mmu          both EPTs, the invalidation sequence, faults and staleness
"""
