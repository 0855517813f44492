"""What executes in a VM.

accesses    what a guest does on one vCPU: reads, writes, touches, calls
port_io     port I/O
guestlib    how a guest kernel converts memory, as Linux does
x86/        machine code: the optional extra `cpu`
guests/     programs for it, in assembler and C
"""
