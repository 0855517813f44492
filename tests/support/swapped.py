"""VMs whose pages go to a swap file and come back: what they hold, and the file behind memfsd's back."""

import os

from memfsd.core.private.absent import AbsentPages
from memfsd.uapi import messages as m
from memfsd.uapi.limits import SWAP_BLOB_BYTES
from memfsd.uapi.messages import Kind
from memfsd.uapi.units import PAGE_SIZE, PGOFF_END
from tests.support.both_sides import LocalStore, LocalVm, page

PAGES = 16
SECRET = b"the guest says: attack at dawn. "


def content(number: int) -> bytes:
    return (SECRET + bytes([number + 1])).ljust(64, b".") * (PAGE_SIZE // 64)


def start(
    store: LocalStore,
    name: str = "file",
    vm: str = "vm0",
    pages: int = PAGES,
    operations: frozenset[Kind] = m.KVM_OPERATIONS,
) -> LocalVm:
    store.create(name, pages)
    local = store.vm(vm, operations=operations)
    local.private_slot(0, 0, page(pages), name)
    for number in range(pages):
        assert local.write(page(number), content(number)) is None
    return local


def assert_intact(local: LocalVm, pages: int = PAGES) -> None:
    for number in range(pages):
        assert local.read(page(number), PAGE_SIZE) == content(number), number


def absent_pages(absent: AbsentPages) -> list[int]:
    return [page for low, high, _ in absent.runs(0, PGOFF_END) for page in range(low, high)]


def slot_of(store: LocalStore, pgoff: int, name: str = "file") -> int:
    slot = store.guest(name).absent.slot(pgoff)
    assert slot is not None
    return slot


def blob(store: LocalStore, slot: int) -> bytes:
    with open(store.swap_path, "rb") as file:
        return os.pread(file.fileno(), SWAP_BLOB_BYTES, 4096 + slot * SWAP_BLOB_BYTES)


def put_blob(store: LocalStore, slot: int, data: bytes) -> None:
    with open(store.swap_path, "r+b") as file:
        os.pwrite(file.fileno(), data, 4096 + slot * SWAP_BLOB_BYTES)
