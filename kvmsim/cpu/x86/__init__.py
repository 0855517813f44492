"""Machine code: an x86-64 CPU, by unicorn, that walks the VM's own EPTs. An optional extra: `pip install .[cpu]`.

library         is the extra there?
program         a file to boot: flat, or ELF
cpus            the vCPUs of a VM that run code: from one exit to the next
stay            a stay in guest mode
engine          unicorn, as the CPU of one vCPU
machine         what the vCPUs of a VM have in common: memory by frame, whose turn it is
decrypted       decrypted pages of encrypted memory
virtual_memory  memory by virtual address
operands        instructions whose operand the CPU does not reach: devices, files
debugger        what a debugger wants of the vCPUs
decode          operands and text of an instruction
calls           VMCALL and TDCALL
interrupts      delivery of exceptions
port_insns      IN, OUT, INS and OUTS
cpuid           CPUID leaves
layout          the structures of _fill.c
_fill           the TLB fill and the look at kicks, in C

A guest runs at CPL 0. After `boot` it is in long mode, and with CR3 0 its virtual addresses are guest physical ones, of
which bit 51 names the shared alias; a nonzero CR3 of the guest switches paging on.
"""
