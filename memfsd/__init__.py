"""memfsd: a FUSE filesystem whose sealed files are guest private memory.

uapi       what both processes may know
core       the synchronous model: frames, files, sealing, pairings, invalidation
backing    memfds: the pool of ordinary files and one window for each sealed file
fuse       adapter to pyfuse3
guests     adapter to the sockets
daemon     composes them; cli and memfs are the two commands
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memfsd.encrypted import memfd_encrypted

__all__ = ["memfd_encrypted"]


def __getattr__(name: str) -> object:
    """Loaded when it is used: every program imports this package, and most of them do not need it."""
    if name in __all__:
        from memfsd import encrypted

        return getattr(encrypted, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
