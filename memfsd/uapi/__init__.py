"""What both processes may know. No I/O, no clock, no threads.

    abi        the profiles: thread, and guest_memfd's
    units      pages, orders, sizes; the NewTypes for numbers that must not be mixed
    errors     Refused: the one exception for "no", with an errno and a reason
    limits     every bound in the system
    seals      the seals, their bits and names
    policy     NUMA policies as they are written
    distances  distances of NUMA nodes, as they are written
    gmem_ioctls  guest_memfd's structures and flags
    names      xattr names, ioctl numbers, fallocate modes
    frame_state  what a frame is used for
    messages   wire messages: kinds, operations, bodies and their bounds
    framing    header and body to bytes and back
    page_map   the words of a file's page map
    pairing    the table of states and legal messages
    proof      both ends prove that they read the file's token

memfsd and kvmsim share this package and memfsd.common, and nothing else.
"""
