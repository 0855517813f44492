"""The synchronous model of the store. It takes values and returns replies and effects.

    buddy, frames    the pool: frame numbers, their states, NUMA nodes
    filepages        the page table of one file: Pgoff -> Pfn
    inodes           what the names stand for, and the table of them
    namespace        directories, names, links
    handles          open files and directories
    shares           how much of a bounded resource each user has
    options          what the mount says
    effects          what an adapter must do in the world for the core
    ordinary         data of files that are not sealed
    sealing          the seals' rules
    guest            what a sealed file has besides: pairing, bindings, tokens
    bindings         which pages are at which GFNs, now and ever
    readahead        how many pages one GET_PFN grants
    gmem             operations on guest private memory, named as Linux's kvm_gmem_ops
    xattrs           user.memfsd.* and the rest
    audit            R1 to R8, checked
    service          the file system as one object: what the adapters call

Locking: adapters hold `Service.lock` around every call; no call suspends, waits, or reads a clock.
"""
