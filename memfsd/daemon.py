"""One mount: composes store, FUSE and guests, and ends them in order."""

import contextlib
import ctypes
import errno
import logging
import os
import resource
import signal
import stat
import sys
from collections.abc import Callable

import trio

from memfsd.common.collecting import freeze_survivors
from memfsd.common.quote import quoted
from memfsd.core.files.namespace import Creds
from memfsd.fuse.hook import pyfuse3
from memfsd.fuse.mount import MountOptions, mounting_at
from memfsd.fuse.mounting import set_attributes
from memfsd.fuse.operations import Operations
from memfsd.peers.server import GuestServer, default_socket_path
from memfsd.store.store import build_store, open_swap
from memfsd.uapi.errors import Refused
from memfsd.uapi.units import Ino

from .fuse import hook

log = logging.getLogger("memfsd")

_PR_SET_DUMPABLE = 4
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_MAPPED_BLOCK_BYTES = 64 << 10
_SWITCH_S = 0.0005
"""How long a thread that computes may keep the interpreter from the one that answers the kernel; Python's own 5 ms
would be felt in each stat(2) beside a memfs check."""
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_MAX_REQUESTS = 10_000
"""At a time. Each that waits for a VM is one, and lookup and getattr must not wait behind them."""


def serve(mountpoint: str, options: MountOptions, ready: Callable[[], None]) -> None:
    """Mount and serve until unmounted or asked to end (SIGTERM, SIGINT, SIGHUP). `ready` when it is live."""
    _raise_file_limit()
    _keep_the_heap_small()
    _close_to_inspection()
    socket_path = options.socket or default_socket_path()
    creds = Creds(os.geteuid(), os.getegid())
    mode = stat.S_IMODE(os.stat(mountpoint).st_mode)
    swap = None if options.swap is None else open_swap(options.swap, mountpoint)
    store = build_store(options.store, root_mode=mode, creds=creds, socket_path=socket_path, swap=swap)
    guests = GuestServer(socket_path, store)
    operations = Operations(store, creds.uid)
    if options.store.abi.is_sized_at_creation:
        hook.no_readahead()
    with contextlib.ExitStack() as ending:
        ending.callback(store.close)
        # A signal that no handler takes would end the daemon and leave the mount: one that comes before the loop
        # listens, or a second one while it ends.
        early: list[int] = []
        for number in _ENDING:
            signal.signal(number, lambda number, _: early.append(number))
        with contextlib.ExitStack() as failing:
            failing.callback(guests.stop)
            try:
                with mounting_at(mountpoint):
                    pyfuse3.init(operations, mountpoint, set(options.fuse))
            except RuntimeError as error:
                raise Refused(errno.EIO, f"{quoted(mountpoint)} cannot be mounted: {error}") from None
            failing.pop_all()
        ending.callback(pyfuse3.close, unmount=True)
        ending.callback(guests.stop)
        if os.geteuid() == 0:
            set_attributes(mountpoint, options.attributes)
        hook.check_active()
        store.runner.forget_cache = _forget_cache
        guests.start()
        freeze_survivors()
        sys.setswitchinterval(_SWITCH_S)
        trio.run(_main, operations, guests, ready, early)


async def _main(operations: Operations, guests: GuestServer, ready: Callable[[], None], early: list[int]) -> None:
    async with hook.serving(operations), trio.open_nursery() as nursery:
        nursery.start_soon(_terminate_on_signal, guests, early)
        nursery.start_soon(_when_looping, ready)
        await pyfuse3.main(max_tasks=_MAX_REQUESTS)
        nursery.cancel_scope.cancel()


async def _terminate_on_signal(guests: GuestServer, early: list[int]) -> None:
    with trio.open_signal_receiver(*_ENDING) as signals:
        number = early[0] if early else await anext(signals)
    log.info("%s: unmounting", signal.Signals(number).name)
    # The mount answers as long as VMs may take to let go.
    await trio.to_thread.run_sync(guests.stop)
    pyfuse3.terminate()


async def _when_looping(ready: Callable[[], None]) -> None:
    await trio.lowlevel.checkpoint()
    ready()


def _forget_cache(ino: Ino, offset: int, length: int) -> None:
    try:
        hook.write_back(ino, offset, length)
    except OSError as error:
        log.warning("the kernel keeps what it cached of inode %d: %s", ino, error.strerror)


def _close_to_inspection() -> None:
    """Only root reaches the windows through /proc/PID/fd, ptrace or pidfd_getfd: not even the user who mounted."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        log.warning("processes of the same user can look into this one: %s", os.strerror(ctypes.get_errno()))


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _keep_the_heap_small() -> None:
    """All threads share one arena of the C library, which costs nothing under the GIL, and large blocks are mapped: of
    sixteen arenas each keeps what VMs that have ended left in it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc has it
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BLOCK_BYTES)
