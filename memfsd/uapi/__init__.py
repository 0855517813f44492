"""What both processes may know. No I/O, no clock, no threads.

    units      pages, orders, sizes; the NewTypes for numbers that must not be mixed
    errors     Refused: the one exception for "no", with an errno and a reason
    limits     every bound in the system
    seals      the seals, their bits and names
    names      xattr names, ioctl numbers
    messages   wire messages: kinds, operations, bodies and their bounds
    framing    header and body to bytes and back
    pairing    the table of states and legal messages
    stdio      descriptors 0 to 2 of a program that was started without them, or whose reader goes away
    quote      names and foreign text as a terminal may see them
    version, arguments   what the command lines of all programs have in common

memfsd and kvmsim both import this package, and it is the only thing they share.
"""
