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
guest_memfd  create_guest_memfd()
numa         fbind(), fmove_pages()
files        create(), seal(), stat(), punch(), allocate()
ownmount     mounted(): a mount for the time of a block
commands/    memfsd and memfs
"""

import importlib

TYPE_CHECKING = False
"""As typing's, which takes most of the time in which Ctrl-C is not yet quiet (common.starting)."""
if TYPE_CHECKING:
    from .encrypted import memfd_encrypted
    from .files import FileStat, allocate, create, punch, seal, stat
    from .guest_memfd import create_guest_memfd
    from .numa import fbind, fmove_pages
    from .ownmount import Mount, mounted

__all__ = [
    "FileStat",
    "Mount",
    "allocate",
    "create",
    "create_guest_memfd",
    "fbind",
    "fmove_pages",
    "memfd_encrypted",
    "mounted",
    "punch",
    "seal",
    "stat",
]

_PLACES = {
    "memfd_encrypted": "encrypted",
    "create_guest_memfd": "guest_memfd",
    "Mount": "ownmount",
    "mounted": "ownmount",
    "fbind": "numa",
    "fmove_pages": "numa",
}
"""All others are of memfsd.files."""


def __getattr__(name: str) -> object:
    """Loaded when it is used: every program imports this package, and most of them do not need it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"memfsd.{_PLACES.get(name, 'files')}"), name)
