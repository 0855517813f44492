"""The adapter to FUSE: pyfuse3's handlers and the three operations that pyfuse3 lacks.

    hook        fallocate, lseek and ioctl: loads _hook, calls handlers, answers each request once
    _hook       the C extension that adds them to libfuse's operation table
    operations  the pyfuse3 handlers: requests to calls of the core, refusals to errnos
    waiters     whose turn it is to wait for a VM
    closing     handles whose RELEASE is on its way, for a seal that must see no writer
    mount       options, and what must be true of a mount point; mounting: the moment of the mount

Import `hook` before pyfuse3: the extension must be there when pyfuse3 is bound to libfuse.
"""
