"""What `import kvmsim` gives a program: a VM, its vCPUs, and the guest code that they run. docs/api.md explains it.

vm        VM: memslots, conversions, statistics, callbacks
vcpu      VCPU: KVM_RUN, whose exits come back as objects
cpu       Cpu: the instructions of which guest code is made

A facade: every call goes to the objects of which `kvmsim run` is made, and no rule is decided here.
"""
