"""The synchronous model of KVM's side: no I/O, no clock.

    ept          4-level page tables with the real entry layout, in numpy
    tlb          the software TLB of a vCPU
    segments     disjoint ranges of slots, found by bisection
    ranges       a set of pages
    memslots     slots by address space, and KVM's checks
    physmap      host physical frame numbers to the memory behind them
    hva          the host address space, with sticky mappings of sealed files
    mmu          both EPTs, the invalidation sequence, faults and staleness
    vcpu         guest mode, kicks
    vm           one VM's slots, EPTs and vCPUs
    exits        KVM_EXIT_*
    hypercalls   MapGPA

Lock order:

    Machine.slots_lock      changes of memslots (KVM's slots_lock)
      Vcpu.guest_lock       held while in guest mode
        Mmu.lock            EPTs, sequence, memslots lookups (KVM's mmu_lock)

A kick takes guest_lock and must not be made with Mmu.lock held.
"""
