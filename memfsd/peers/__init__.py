"""KVM processes, over sockets: each connection has its own blocking thread, so a fault pays no event loop.

process      a peer's process, and the proof of its death
upchannel    calls from the store to a VM, each with a deadline
session      one connection, from HELLO to the end of its VM: requests to use cases of memfsd.store
server       the listening socket and all sessions
"""
