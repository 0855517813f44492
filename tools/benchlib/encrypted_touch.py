"""E1: a guest's first touch of encrypted memory, against the same without encryption and the bare cipher."""

import os
from pathlib import Path
from statistics import median
from time import perf_counter

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchlib import our_mount
from benchlib.figure import Figure, Progress, spread
from kvmsim.memory.encrypted import MemoryKey
from kvmsim.memory.memory import OpenWindow, WindowMemory
from memfsd.uapi.units import PAGE_SIZE


def measure(progress: Progress, rounds: int = 5, size_bytes: int = 256 << 20) -> Figure:
    """All three take turns, after one round that is not counted; a fresh file, pairing and VM each time."""
    encrypted_s, plain_s, cipher_s = [], [], []
    with our_mount.mounted(size_bytes) as mountpoint:
        for number in range(rounds + 1):
            progress.round(number, rounds)
            path = Path(mountpoint, f"memory{number}")
            encrypted_s.append(_touch(path.with_suffix(".encrypted"), size_bytes, MemoryKey().open_window))
            plain_s.append(_touch(path, size_bytes, WindowMemory))
            cipher_s.append(_encrypt(size_bytes))
    del encrypted_s[:1], plain_s[:1], cipher_s[:1]
    ratios = [ours / (plain + cipher) for ours, plain, cipher in zip(encrypted_s, plain_s, cipher_s, strict=True)]
    page_count = size_bytes // PAGE_SIZE
    return Figure(
        what="guest's first touch of 256 MiB with memory encryption / without it, and AES-256-GCM of as many pages",
        unit="x",
        target=1.5,
        at_most=True,
        value=median(ratios),
        parts={
            "encrypted_us_per_page": median(encrypted_s) / page_count * 1e6,
            "plain_us_per_page": median(plain_s) / page_count * 1e6,
            "cipher_us_per_page": median(cipher_s) / page_count * 1e6,
            **spread(ratios),
            "rounds": rounds,
        },
    )


def _touch(path: Path, size_bytes: int, open_window: OpenWindow) -> float:
    our_mount.sealed_file(path, size_bytes)
    with our_mount.attached(path, size_bytes, open_window) as machine:
        start = perf_counter()
        stopped = machine.guest.touch(machine.vm.vcpu(0), 0, size_bytes)
        elapsed_s = perf_counter() - start
        if stopped is not None:
            raise RuntimeError(f"the guest stopped: {stopped}")
    path.unlink()
    return elapsed_s


def _encrypt(size_bytes: int) -> float:
    """The library alone, page by page, each under another nonce."""
    aead, page = AESGCM(AESGCM.generate_key(256)), os.urandom(PAGE_SIZE)
    start = perf_counter()
    for number in range(size_bytes // PAGE_SIZE):
        aead.encrypt(number.to_bytes(12, "little"), page, b"")
    return perf_counter() - start
