"""memfsd: a FUSE filesystem whose sealed files are guest private memory.

uapi       what both processes may know
core       the synchronous model: frames, files, sealing, pairings, invalidation
backing    memfds: the pool of ordinary files and one window for each sealed file
fuse       adapter to pyfuse3
guests     adapter to the sockets
daemon     composes them; cli and memfs are the two commands
"""

from memfsd.encrypted import memfd_encrypted

__all__ = ["memfd_encrypted"]
