"""The store's memory on this host, and what the core's effects do to it.

windows          memfds: one pool for the bytes of ordinary files, one window for each sealed file
page_maps        memfds that the store writes and a VM can only read
swapfile         the swap file: its header, and blobs by slot
effect_runner    carries out the core's effects in order
"""
