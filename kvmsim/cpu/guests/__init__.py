"""Guest programs for `boot guest:NAME`, in C and assembler; the Makefile builds them.

hello       says hello
touch       writes a pattern to memory and verifies it
convert     the conversion loop: MapGPA with RETRY and R11
spinlock    two vCPUs count under a lock in private memory
misbehave   what a guest must not do
punched     a page of code that may be punched under it
ring        a bounce buffer ring between a driver with private memory and a device
"""
