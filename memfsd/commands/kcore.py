"""memfs kcore: an ELF core of the pool as the host may see it."""

import argparse
import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator

from memfsd.common.linux import data_end, next_data
from memfsd.common.observer import Observer
from memfsd.common.quote import quoted
from memfsd.common.stores import Store, store_of
from memfsd.uapi.errors import Refused
from memfsd.uapi.frame_state import FrameState, state_name
from memfsd.uapi.messages import Kcore, KcoreReply, Kind
from memfsd.uapi.units import PAGE_SHIFT, PAGE_SIZE, format_size

from . import arguments
from .elfcore import NT_LEFT_OUT, NT_POOL, Head, Segment, head
from .facts import show

_STDOUT = "-"
_PARTIAL = ".partial"
_CHUNK_BYTES = 1 << 20
Run = tuple[int, int, int]


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=arguments.path, metavar="MOUNTPOINT")
    parser.add_argument(
        "-o", "--output", type=arguments.path, required=True, metavar="FILE", help="a new file; - is stdout"
    )
    parser.set_defaults(run=_kcore)


def _kcore(asked: argparse.Namespace) -> int:
    if asked.json and asked.output == _STDOUT:
        raise Refused(errno.EINVAL, "--json prints on standard output, where the core goes: choose -o FILE")
    counts = _dump(asked.target, store_of(asked.target), asked.output)
    if asked.output != _STDOUT:
        facts = {"mount": asked.target, "file": asked.output, "frames": counts}
        sizes = {state: format_size(count * PAGE_SIZE) for state, count in counts.items()}
        text = f"{quoted(asked.output)}: {sizes.pop('shared', '0')} of ordinary files; left out: "
        show(asked, facts, text + (", ".join(f"{state} {size}" for state, size in sizes.items()) or "nothing"))
    return 0


def _dump(mountpoint: str, store: Store, target: str) -> dict[str, int]:
    """Write it; frames in each state. EEXIST when target is there already. What fails leaves no file."""
    if target == _STDOUT and sys.stdout.isatty():
        raise Refused(errno.EINVAL, "standard output is a terminal: send it elsewhere, or choose -o FILE")
    if target != _STDOUT and os.path.lexists(target):
        raise Refused(errno.EEXIST, f"{quoted(target)} is there already: choose another name, or remove it")
    runs, pool_fd = _ask(store)
    try:
        segments = [
            Segment(pfn, count, state == FrameState.SHARED) for pfn, count, state in runs if state != FrameState.FREE
        ]
        first = head(segments, _notes(mountpoint, runs))
        if target == _STDOUT:
            sys.stdout.flush()
            _write_all(1, first.data)
            for length, data in _contents(pool_fd, segments):
                _write_all(1, bytes(length) if data is None else data)
        else:
            with _new_file(target) as fd:
                _write_file(fd, first, _contents(pool_fd, segments))
    finally:
        os.close(pool_fd)
    counts: dict[str, int] = {}
    for _, count, state in runs:
        counts[state_name(state)] = counts.get(state_name(state), 0) + count
    return counts


def _ask(store: Store) -> tuple[list[Run], int]:
    with Observer(store) as observer:
        reply, pool_fd = observer.ask_for_fd(Kind.KCORE, Kcore(0), KcoreReply)
        try:
            runs = reply.runs
            while reply.next_pfn > 0:
                reply = observer.ask(Kind.KCORE, Kcore(reply.next_pfn), KcoreReply)
                runs += reply.runs
        except BaseException:
            os.close(pool_fd)
            raise
    return runs, pool_fd


def _notes(mountpoint: str, runs: list[Run]) -> list[tuple[int, bytes]]:
    frame_count = sum(runs[-1][:2])
    about = (
        f"pool of memfsd at {quoted(os.path.abspath(mountpoint))}\n"
        f"frames: {frame_count} of {PAGE_SIZE} bytes, frame N at address N * {PAGE_SIZE}\n"
        f"states: all of one moment, {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n"
        "contents: of ordinary files only, read after that moment while their writers went on\n"
    )
    left_out = "".join(
        f"{pfn << PAGE_SHIFT:#x}-{pfn + count << PAGE_SHIFT:#x} {state_name(state)}\n"
        for pfn, count, state in runs
        if state != FrameState.SHARED
    )
    return [(NT_POOL, about.encode()), (NT_LEFT_OUT, left_out.encode())]


def _contents(pool_fd: int, segments: list[Segment]) -> Iterator[tuple[int, bytes | None]]:
    """Lengths and bytes of all segments with contents, in order. None: nobody wrote there, it is zero."""
    for pfn, count, has_contents in segments:
        at, end = pfn << PAGE_SHIFT, pfn + count << PAGE_SHIFT
        while has_contents and at < end:
            data_at = next_data(pool_fd, at)
            data_at = end if data_at is None else min(data_at, end)
            if data_at > at:
                yield data_at - at if data_at - at < _CHUNK_BYTES else _CHUNK_BYTES, None
                at += min(data_at - at, _CHUNK_BYTES)
                continue
            last = min(end, at + _CHUNK_BYTES) >> PAGE_SHIFT
            stop = data_end(pool_fd, at >> PAGE_SHIFT, last) << PAGE_SHIFT
            data = os.pread(pool_fd, max(stop - at, PAGE_SIZE), at)  # a punch may have come between
            yield len(data), data
            at += len(data)


def _write_file(fd: int, first: Head, contents: Iterator[tuple[int, bytes | None]]) -> None:
    _write_all(fd, first.data)
    for length, data in contents:
        if data is None:
            os.lseek(fd, length, os.SEEK_CUR)
        else:
            _write_all(fd, data)
    os.ftruncate(fd, first.size_bytes)


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


@contextlib.contextmanager
def _new_file(target: str) -> Iterator[int]:
    """It gets its name when it is complete; until then it has another one, and goes when something fails."""
    partial = target + _PARTIAL
    try:
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Refused(
            errno.EEXIST, f"{quoted(partial)} is there: another dump writes it, or one was killed: remove it then"
        ) from None
    except OSError as error:
        error.filename = target
        raise
    try:
        try:
            yield fd
        finally:
            os.close(fd)
        _rename(partial, target)
    except OSError as error:
        if error.filename is None:
            error.filename = target
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def _rename(partial: str, target: str) -> None:
    """As RENAME_NOREPLACE, also where there is none; nor links: then who comes between loses."""
    try:
        os.link(partial, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise Refused(
                error.errno or errno.EIO, f"{quoted(target)}: {error.strerror}: choose another name"
            ) from None
        os.rename(partial, target)


COMMANDS: arguments.Adders = {"kcore": _add}
