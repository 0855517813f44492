"""W1: a guest's memory goes to the swap file and comes back, against a file of that size and the bare cipher."""

import os
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchlib import our_mount
from benchlib.figure import Figure, Progress, spread
from kvmsim.machine import VirtualMachine
from memfsd.common.observer import Observer
from memfsd.common.stores import store_of
from memfsd.uapi.messages import Kind, PageOut, PageOutReply
from memfsd.uapi.units import PAGE_SIZE, Pgoff

_CHUNK_BYTES = 1 << 20


def measure(progress: Progress, rounds: int = 3, size_bytes: int = 32 << 20) -> Figure:
    """They take turns, after one round that is not counted; the same file, VM and swap file each time."""
    page_count = size_bytes // PAGE_SIZE
    out_s, in_s, file_s, cipher_s = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="memfsd_bench.") as place:
        swap = f"swap={place}/swap,swap_size={size_bytes}"
        with our_mount.mounted(size_bytes, swap) as mountpoint:
            path = our_mount.sealed_file(mountpoint / "memory", size_bytes)
            data = os.urandom(_CHUNK_BYTES)
            with our_mount.attached(path, size_bytes) as machine:
                _fill(machine, data, size_bytes)
                for number in range(rounds + 1):
                    progress.round(number, rounds)
                    out_s.append(_out(path, page_count))
                    in_s.append(_in(machine, size_bytes))
                    file_s.append(_file(Path(place, "peer"), data, size_bytes))
                    cipher_s.append(_cipher(data[:PAGE_SIZE], page_count))
                if machine.guest.read(machine.vm.vcpu(0), PAGE_SIZE, PAGE_SIZE) != data[PAGE_SIZE : 2 * PAGE_SIZE]:
                    raise RuntimeError("a page that came back holds something else")
    for seconds in (out_s, in_s, file_s, cipher_s):
        del seconds[:1]
    ours_s = [there + back for there, back in zip(out_s, in_s, strict=True)]
    ratios = [ours / (file + cipher) for ours, file, cipher in zip(ours_s, file_s, cipher_s, strict=True)]
    return Figure(
        what=f"{size_bytes >> 20} MiB swapped out and in / a file of as much written and read, and AES-256-GCM of it",
        unit="x",
        target=None,
        at_most=True,
        value=median(ratios),
        parts={
            "out_us_per_page": median(out_s) / page_count * 1e6,
            "in_us_per_page": median(in_s) / page_count * 1e6,
            "file_us_per_page": median(file_s) / page_count * 1e6,
            "cipher_us_per_page": median(cipher_s) / page_count * 1e6,
            "out_and_in_s": median(ours_s),
            "size_mib": size_bytes >> 20,
            **spread(ratios),
            "rounds": rounds,
        },
    )


def _fill(machine: VirtualMachine, data: bytes, size_bytes: int) -> None:
    for at in range(0, size_bytes, len(data)):
        stopped = machine.guest.write(machine.vm.vcpu(0), at, data)
        if stopped is not None:
            raise RuntimeError(f"the guest stopped: {stopped}")


def _out(path: Path, page_count: int) -> float:
    """Seconds until all of it is in the swap file, asked for as memfs swapout does."""
    ino = path.stat().st_ino
    with Observer(store_of(str(path))) as observer:
        left, at = 0, 0
        start = perf_counter()
        while at >= 0:
            step = observer.ask(Kind.PAGE_OUT, PageOut(ino, Pgoff(at), Pgoff(page_count)), PageOutReply)
            left, at = left + step.page_count, step.next_pgoff
        elapsed_s = perf_counter() - start
    if left != page_count:
        raise RuntimeError(f"{left} of {page_count} pages were swapped out")
    return elapsed_s


def _in(machine: VirtualMachine, size_bytes: int) -> float:
    """Seconds of a guest that touches all of it, in order."""
    start = perf_counter()
    stopped = machine.guest.touch(machine.vm.vcpu(0), 0, size_bytes)
    elapsed_s = perf_counter() - start
    if stopped is not None:
        raise RuntimeError(f"the guest stopped: {stopped}")
    return elapsed_s


def _file(path: Path, data: bytes, size_bytes: int) -> float:
    """Seconds to write and read it through the page cache, as the swap file is."""
    start = perf_counter()
    with open(path, "wb", buffering=0) as file:
        file.writelines(data for _ in range(0, size_bytes, len(data)))
    buffer = bytearray(len(data))
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    elapsed_s = perf_counter() - start
    path.unlink()
    return elapsed_s


def _cipher(page: bytes, page_count: int) -> float:
    """Seconds of the library alone: each page encrypted under another nonce, and decrypted."""
    aead = AESGCM(AESGCM.generate_key(256))
    start = perf_counter()
    for number in range(page_count):
        nonce = number.to_bytes(12, "little")
        aead.decrypt(nonce, aead.encrypt(nonce, page, b""), b"")
    return perf_counter() - start
