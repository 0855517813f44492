"""Memslots. Pure: no I/O, no waits.

memslots    the slots of one address space, and the checks that KVM makes before it touches any
backing     what a slot shows
dirty       the dirty log of a slot
"""
