"""The synchronous model of KVM's side: no I/O, no clock.

    ept          4-level page tables with leaves of 4 KiB, 2 MiB and 1 GiB: map, zap, look up, in numpy
    epttables    the tree of tables under them; eptentry: the layout of an entry
    runs         lists of contiguous pages
    tlb          the software TLB of a vCPU
    blocked      private pages that are unmapped and keep their contents
    memslots     slots by address space, and KVM's checks
    physmap      host physical frame numbers to the memory behind them
    hva          the host address space, with sticky mappings of sealed files
    mmu          both EPTs, the invalidation sequence, faults and staleness
    vcpu         KVM_RUN and what is under way, guest mode, kicks
    kvm_run      struct kvm_run, as user space sees it
    vm           one VM's slots, EPTs and vCPUs
    exits        KVM_EXIT_*
    hypercalls   MapGPA's registers and statuses, KVM's own numbers

Lock order:

    Machine.slots_lock      changes of memslots (KVM's slots_lock)
      Vcpu.guest_lock       held while in guest mode
        Mmu.lock            EPTs, sequence, memslots lookups (KVM's mmu_lock)

A kick takes guest_lock and must not be made with Mmu.lock held.
"""
