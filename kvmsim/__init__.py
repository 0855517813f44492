"""kvmsim: the KVM side. Memslots, EPT, vCPUs, exits, and the callbacks that the store calls to take memory back.

    core           memslots, ept, tlb, mmu, vcpu, kvm_run, vm, exits, hypercalls: the synchronous model
    memory         what slots are backed by: windows, anonymous memory, files
    link           one pairing with the store: the down channel, and a thread for the up channel
    machine        one VM at work; its layers: backing, unmapping, callbacks, pairings, slots, blocking, faults
    guest          what a guest does: reads, writes, touches, calls
    guestlib       how a guest kernel converts memory, as Linux does
    vmcall         KVM's side of a guest's calls
    inhibit        user space's moment without vCPUs
    vmm            user space: exits under a policy
    conversion     the designs by which a policy replaces private memory by shared and back
    compare        the same guests over all designs, measured
    host           simulated host processes, and the `hva` commands about them
    script         the language of `kvmsim run`
    vcpu_commands  script commands that run vCPUs
    execute        script commands to calls of the above
    interrupt      SIGINT: the command that runs ends, and nothing else does
    script_command kvmsim run and kvmsim attach; prompt is the latter's at a terminal
    race           both sides under a scheduler: `kvmsim race`
    cli            the command kvmsim

Of memfsd it knows only memfsd.uapi; race alone knows the rest, and only the command loads it.
"""
