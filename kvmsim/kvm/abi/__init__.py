"""What differs between the ABIs of a VM. Pure: no I/O, no waits.

    rules        what an ABI decides, as KVM asks it; the rules of a VM
    thread       two address spaces, a slot for each alias
    guest_memfd  one address space; the attributes decide which memory a slot shows
    attributes   memory attributes, and the wall of KVM_SET_MEMORY_ATTRIBUTES
    region2      struct kvm_userspace_memory_region2 with both memories in one slot, and its wall

The values that differ are in memfsd/uapi/abi.py. Nobody outside asks which ABI it is.
"""
