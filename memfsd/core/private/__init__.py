"""The state of a sealed file. What is done with it: core.gmem.

merging        split pages that become whole again
gmem_file      its pairing, tokens and open invalidation
strategies     what an invalidation does with its pages
moving         pages on their way to other frames
pending        frames granted ahead of the guest's touch
page_attributes  of a guest_memfd: which of its pages are shared with the host
device_memory  what a device has instead of frames of the pool
absent         pages that have no frame and are no holes
bindings       which of its pages are at which GFNs, now and ever
"""
