"""KVM processes, over sockets: each connection has a blocking thread of its own, so a fault pays no event loop.

process      a peer's process, and the proof of its death
upchannel    calls from the store to a VM, each with a deadline
invalidator  invalidations: BEGIN, acknowledged, scrub, END
reclaim      pages that were never touched, taken back when the pool is full
session      one connection, from HELLO to the end of its VM
rundir       the directory of the socket, which must be ours
checker      memfs check and memfs map
server       the listening socket and all sessions
"""
