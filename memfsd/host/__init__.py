"""The store's memory on this host, and what the core's effects do to it.

windows          memfds: one pool for the bytes of ordinary files, one window for each sealed file
swapfile         the swap file: its header, and blobs by slot
effect_runner    carries out the core's effects in order
"""
