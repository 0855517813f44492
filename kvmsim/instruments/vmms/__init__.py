"""`kvmsim vmms`: how models of real VMMs convert memory, and what becomes of it when a step fails.

store      a memfsd in this process, so that no mount is needed
iommu      a device's DMA: what is pinned and mapped for it
memory     guest memory on an ABI: attributes, and the copies of both sides
gmem_memory  guest memory on guest_memfd's ABI
border     what the models call: KVM, the store, VFIO; and where faults are injected
scenarios  what the guest asks for, and what fails meanwhile
rig        one model through one scenario
judge      where the VMM's belief and the state of memory part
table      the results, for people, for programs and for docs/vmms.md
arguments  what --help loads
model_file  a model of one's own
command    the command line
abi        `kvmsim abi`: what each ABI answers in the same situations

It runs both sides in one process, as kvmsim.instruments.race does.
"""
