"""What the kernel would be.

    alias          shared and private
    abi/           what differs between ABIs: which memory a GFN is, walls of checks, exits
    mmu/           EPTs, TLBs, the invalidation sequence
    slots/         memslots by address space, and KVM's checks
    vm             one VM's slots, EPTs and vCPUs; which request is a fault, which an exit
    vcpu           KVM_RUN and what is under way, guest mode, kicks
    kvm_run        struct kvm_run, as user space sees it
    exits          KVM_EXIT_*
    region         struct kvm_userspace_memory_region2: address spaces, slot flags
    hypercalls     MapGPA's registers and statuses, KVM's own numbers
    vmcall         KVM's side of a guest's calls
    faults         EPT violations, and translation
    walking        page tables and memory for vCPUs that run machine code
    emulation      KVM's own accesses to guest memory
    export         private pages that are out: sealed, with the versions that come back
    swap           what the store calls to swap pages out and in
    prefault       KVM_PRE_FAULT_MEMORY
    measurement    MRTD: SHA-384 over pages as they are added
    populate       the initial image
    tampering      the host writes into a frame, past KVM
    unmapper       how GFNs lose their mappings when it is this side that takes them away
    notifier       what the store calls
    relocator      pages that move to other frames
    pairings       connections to stores, and what they know of slots
    ioctls         KVM_SET_USER_MEMORY_REGION and what belongs to it
    guest_memfds   files of KVM_CREATE_GUEST_MEMFD, KVM_SET_USER_MEMORY_REGION2 with both memories
    attribute_ioctls  KVM_SET_MEMORY_ATTRIBUTES
    blocking       the steps of a conversion that can be taken back
    memory_use     what memory costs the host: private, shared, held twice
    statistics     what is counted, by the kernel's names
    kvm            all of it for one VM

Lock order: docs/architecture.md. A kick takes Vcpu.guest_lock and must not be made with Mmu.lock held.
"""
