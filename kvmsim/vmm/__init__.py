"""User space: what a VMM does.

vmm            exits under a policy
ports          the console and other I/O ports
policies       their names
ram            the RAM map: which memory user space has set, and where
guest_memory   the calls that change it, made and recorded
inhibit        user space's moment without vCPUs
answers        what user space writes into kvm_run
conversion/    the designs by which a policy replaces private memory by shared and back
models/        how real VMMs convert: the order of their calls
hva            the host address space, with mappings of sealed files that stay
host           simulated host processes
"""
