"""The state of a sealed file. What is done with it: core.gmem.

gmem_file    its pairing, tokens and open invalidation
bindings     which of its pages are at which GFNs, now and ever
"""
