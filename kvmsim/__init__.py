"""kvmsim: the KVM side. Memslots, EPT, vCPUs, exits, and the callbacks that the store calls to take memory back.

    core       memslots, ept, tlb, mmu, vcpu, vm, exits, hypercalls: the synchronous model
    memory     what slots are backed by: windows, anonymous memory, files
    link       one pairing with the store: the down channel, and a thread for the up channel
    machine    one VM at work: ioctls, faults, invalidations
    guest      what a guest does: reads, writes, touches, hypercalls
    vmm        user space: exits under a policy
    conversion the designs by which a policy replaces private memory by shared and back
    compare    the same guests over all designs, measured
    host       simulated host processes, and the `hva` commands about them
    script     the language of `kvmsim run`
    execute    script commands to calls of the above
    cli        the command kvmsim

Of memfsd it knows only memfsd.uapi.
"""
