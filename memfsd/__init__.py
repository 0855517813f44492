"""memfsd: a FUSE filesystem whose sealed files are guest private memory.

uapi/        the contract, pure: units, seals, names, limits, errors, messages
common/      what both processes run on: locks, sockets, mounts, standard output, the journal
core/        the synchronous model: frames, files, sealing, pairings, invalidation
host/        memfds: the pool of ordinary files and one window for each sealed file; effects carried out
store/       the use cases: what every adapter calls; owns the lock, the effects and the invalidations
peers/       KVM processes: sessions, invalidations, death
fuse/        adapter to pyfuse3
daemon       composes them
encrypted    memfd_encrypted()
numa         fbind(), fmove_pages()
commands/    memfsd and memfs
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .encrypted import memfd_encrypted
    from .numa import fbind, fmove_pages

__all__ = ["fbind", "fmove_pages", "memfd_encrypted"]


def __getattr__(name: str) -> object:
    """Loaded when it is used: every program imports this package, and most of them do not need it."""
    if name in __all__:
        from . import encrypted, numa

        return getattr(encrypted if name == "memfd_encrypted" else numa, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
