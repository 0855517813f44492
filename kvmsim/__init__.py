"""kvmsim: the KVM side. Memslots, EPT, vCPUs, exits, and the callbacks that the store calls to take memory back.

    kvm/        what the kernel would be: page tables, memslots, vCPUs, exits, the notifier that the store calls
    store/      the client of memfsd
    memory/     what slots are backed by
    cpu/        what executes in a VM
    vmm/        user space: exits under a policy, the designs of conversion, the host address space
    machine     one virtual machine put together
    shell/      the script language of `kvmsim run`, and what its commands do
    monitor/    QMP on a socket of each process, and `kvmsim monitor`
    journal/    `kvmsim journal`, and a KVM that records
    tracing/    `kvmsim trace`, `stat` and `perf`: what reads traces
    compare/    `kvmsim compare`: the same guests over all designs, measured
    vmms/       `kvmsim vmms`: models of real VMMs through conversions that fail
    race/       `kvmsim race`: both sides under a scheduler
    cli         the command

Of memfsd it knows only memfsd.uapi and memfsd.common; race and vmms alone know the rest, and only
the command loads them.
"""
