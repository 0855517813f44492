"""The synchronous model of the store. It takes values and returns replies and effects.

    memory/     frames and page tables
    files/      inodes, names, handles, data and attributes of ordinary files
    private/    the state of a sealed file
    options     what the mount says
    effects     what is to be done outside the core
    sealing     the seals' rules
    gmem        operations on guest private memory, named as Linux's kvm_gmem_ops
    host_access what mappings of a guest_memfd read, and what they stored
    service     the file system as one object
    moment      copies of what the audit looks at
    audit       R1 to R8, checked

Locking: callers hold `Service.lock` around every call; no call suspends, waits, or reads a clock.
"""
