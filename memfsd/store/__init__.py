"""The store's use cases: what every adapter calls, FUSE, the sessions of VMs, and both test harnesses alike.

store        Store, and build_store(), which composes one
names        directories and names
files        attributes, seals, and the bytes and pages of files
seeking      one lseek(2), in steps
pairings     VMs: pair, bind, get_pfn, and how they end
work         what a use case leaves to be done outside Service.lock
attributes   what stat(2) shows
peer         the VM of one file, as the store sees it
invalidator  invalidations: BEGIN, acknowledged, scrub, END
mover        pages that move to other frames, fmove_pages
evacuation   memfs offline, memfs online, memfs compact
questions    VMs that are asked to give memory back, side by side
reclaim      pages that were never touched, taken back when the pool is full
checker      memfs check, memfs map and memfs top
guest_memfds files that are guest_memfds: made, and converted in place
devices      files whose memory is a device's
failures     memory that fails
dumps        memfs kcore: the states of all frames at one moment
swapper      pages that leave to the swap file, and come back
swapoff      all that is out comes back, in steps
deadlines    for what may wait on a VM

A use case takes Service.lock itself and never waits on a VM with it held. One that frees memory returns Work, which may
block: a thread runs it in place, an event loop elsewhere.
"""
