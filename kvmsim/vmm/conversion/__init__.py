"""Replacing private by shared and back: the designs that the thread argues about, and Linux's, behind one interface.

design        the interface, and what all designs do alike
transaction   steps that all happen, or none
slot_ids      ids for the slots that user space makes
shared_copy   user space's shared memory, and the ordinary slots over it
recreate      delete the slot, make three
punch         a hole in the slot (the proposed ioctl)
overlay       an ordinary slot over the private one
attributes    memory attributes of the VM, as in Linux
in_place      attributes in the file, as Linux is to have them

A design is user space: it makes KVM's ioctls and fallocate(2), and knows nothing of page tables.
"""
