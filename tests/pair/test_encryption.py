"""Memory encryption on both sides: what the store's window shows, and what becomes of frames that are taken back."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmsim.kvm.exits import MCI_STATUS, Exit, ExitReason, MachineCheckExit
from kvmsim.kvm.kvm_run import exit_of
from kvmsim.kvm.mmu.ept import Ept, entry_pfn
from kvmsim.kvm.tampering import tamper
from kvmsim.kvm.unmapper import Unmapper
from kvmsim.memory.encrypted import MemoryKey
from kvmsim.memory.memory import WindowMemory
from memfsd.uapi.units import PAGE_SIZE, Gfn, Pfn
from tests.support.both_sides import ALTERED, LocalStore, LocalVm, errno_of, opened_store, page
from tests.support.script_lines import Lines
from tests.support.threads import Beside, Gate

SECRET = b"what only the guest knows"


@pytest.fixture
def vm(store: LocalStore) -> LocalVm:
    store.windows_of_vms = lambda: MemoryKey().open_window
    return paired(store)


@pytest.fixture
def encrypted() -> bool:
    return True


def paired(store: LocalStore) -> LocalVm:
    """16 private pages at 0."""
    store.create("file", 16)
    vm = store.vm()
    vm.private_slot(0, 0, page(16), "file")
    return vm


def frame(vm: LocalVm, gfn: int) -> int:
    entry = vm.vm.mmu.epts[True].walk(Gfn(gfn))
    assert entry
    return entry_pfn(entry) - vm.link().base


class Host:
    """Who has the window on the host: the store, and whoever looks through its descriptors."""

    def __init__(self, vm: LocalVm) -> None:
        self._fd = vm.link().memory.fd

    def read(self, frame: int) -> bytes:
        return os.pread(self._fd, PAGE_SIZE, page(frame))

    def write(self, frame: int, data: bytes) -> None:
        os.pwrite(self._fd, data, page(frame))

    def holds(self, data: bytes) -> bool:
        return data in os.pread(self._fd, page(1024), 0)


def checked(exit_: object, gfn: int) -> bool:
    return isinstance(exit_, MachineCheckExit) and exit_.gpa == page(gfn)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_the_window_shows_plaintext_without_encryption_and_none_with_it(store: LocalStore, encrypted: bool) -> None:
    vm = paired(store)
    assert vm.write(page(3) + 50, SECRET) is None
    assert vm.read(page(3) + 50, len(SECRET)) == SECRET
    assert Host(vm).holds(SECRET) is not encrypted


def test_a_page_that_was_altered_is_a_machine_check_at_every_access(vm: LocalVm) -> None:
    assert vm.write(page(2), SECRET) is None
    host, at = Host(vm), frame(vm, 2)
    host.write(at, ALTERED)
    for attempt in (
        lambda: vm.read(page(2) + 8, 4),
        lambda: vm.read(page(1), page(3)),
        lambda: vm.write(page(2) + 8, b"x"),
        lambda: vm.write(page(1) + 1, bytes(page(1))),
        lambda: vm.touch(0, page(8)),
        lambda: vm.guest.sha256(vm.vcpu, 0, page(16)),
    ):
        exit_ = attempt()
        assert checked(exit_, 2)
        assert isinstance(exit_, MachineCheckExit)
        assert exit_.addr == page(at)
        assert checked(vm.vcpu.kvm_run(), 2), "run again: it checks again"
    assert vm.write(page(2), b"w" * PAGE_SIZE) is None, "a write of the whole page repairs it"
    assert vm.read(page(2), 1) == b"w"


def test_the_exit_has_fields_in_kvm_run(vm: LocalVm) -> None:
    assert vm.write(page(2), SECRET) is None
    at = frame(vm, 2)
    Host(vm).write(at, ALTERED)
    exit_ = vm.read(page(2), 1)
    assert isinstance(exit_, Exit)
    run = vm.vcpu.run
    assert run.exit_reason == ExitReason.MACHINE_CHECK
    assert (run.machine_check.gpa, run.machine_check.addr) == (page(2), page(at))
    assert run.machine_check.status == MCI_STATUS
    assert exit_of(run) == exit_
    assert exit_.fields() == {"gpa": page(2), "addr": page(at), "status": MCI_STATUS}


def test_other_pages_and_other_vms_go_on(store: LocalStore, vm: LocalVm) -> None:
    store.create("other", 4)
    other = store.vm("vm1")
    other.private_slot(0, 0, page(4), "other")
    for one in (vm, other):
        assert one.write(page(2), SECRET) is None
    assert vm.write(page(3), SECRET) is None
    Host(vm).write(frame(vm, 2), ALTERED)
    assert checked(vm.read(page(2), 1), 2)
    assert vm.read(page(3), len(SECRET)) == SECRET
    assert other.read(page(2), len(SECRET)) == SECRET


def test_exchanged_frames_and_old_ciphertext_are_machine_checks(vm: LocalVm) -> None:
    host = Host(vm)
    for gfn in (2, 3, 4):
        assert vm.write(page(gfn), SECRET) is None
    two, three, four = (frame(vm, gfn) for gfn in (2, 3, 4))
    old = host.read(four)
    assert vm.write(page(4), b"newer") is None
    was = host.read(two)
    host.write(two, host.read(three))
    host.write(three, was)
    host.write(four, old)
    for gfn in (2, 3, 4):
        assert checked(vm.read(page(gfn), 1), gfn)


def test_a_window_that_somebody_punches_is_a_machine_check(vm: LocalVm, store: LocalStore) -> None:
    """Only the store's own invalidation gives a new page."""
    assert vm.write(page(2), SECRET) is None
    store.windows.punch(store.file("file").ino, [(Pfn(frame(vm, 2)), 1)])
    assert checked(vm.read(page(2), 1), 2)


def test_a_punched_page_comes_back_zero_whatever_the_window_holds(vm: LocalVm, store: LocalStore) -> None:
    host = Host(vm)
    assert vm.write(page(2), SECRET) is None
    at = frame(vm, 2)
    old = host.read(at)
    store.punch("file", 2, 1)
    host.write(at, old)
    assert vm.read(page(2), len(SECRET)) == bytes(len(SECRET))
    assert frame(vm, 2) == at, "the same frame again"


def late_writer(vm: LocalVm, gfn: int, patched: pytest.MonkeyPatch) -> None:
    """A vCPU that has found its translation before a zap writes until it is kicked."""
    memory, at, real = vm.link().memory, page(frame(vm, gfn)), vm.kvm.unmapper.kick_all

    def kick_all() -> None:
        memory.write(at, b"late")
        real()

    patched.setattr(vm.kvm.unmapper, "kick_all", kick_all)


def test_frames_are_forgotten_when_the_last_vcpu_has_left(vm: LocalVm, store: LocalStore) -> None:
    assert vm.write(page(2), SECRET) is None
    with pytest.MonkeyPatch.context() as patched:
        late_writer(vm, 2, patched)
        store.punch("file", 2, 1)
    assert vm.read(page(2), 4) == bytes(4)


def test_frames_are_noted_as_unmapped_when_the_last_vcpu_has_left(vm: LocalVm, store: LocalStore) -> None:
    assert vm.write(page(2), SECRET) is None
    with pytest.MonkeyPatch.context() as patched:
        late_writer(vm, 2, patched)
        vm.vmm.memory.hide(0, Gfn(2), Gfn(3))
    store.punch("file", 2, 1)
    vm.vmm.memory.fill_slot(0, Gfn(2), Gfn(3))
    assert vm.read(page(2), 4) == bytes(4)


def test_a_frame_that_the_store_took_back_while_it_was_blocked_is_not_noted_as_unmapped(tmp_path: Path) -> None:
    """It is another page's by then, which must not be taken for a fresh one when the host erases it."""
    with opened_store(tmp_path, 1, encrypted=True) as store:
        vm, held, kick_all = paired(store), Gate(), Unmapper.kick_all
        gates = [held]
        vm.kvm.blocking.set_overlay(True)
        assert vm.write(page(2), SECRET) is None

        def hold(unmapper: Unmapper) -> None:
            kick_all(unmapper)
            if gates:
                gates.pop().wait()

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Unmapper, "kick_all", hold)
            overlaying = Beside(lambda: vm.shared_slot(1, page(2), page(1)))
            held.reached()
            store.punch("file", 2, 1)
            assert vm.write(page(5), SECRET) is None
            held.open()
            overlaying.result()
        store.windows.punch(store.file("file").ino, [(Pfn(0), 1)])
        assert checked(vm.read(page(5), 1), 5), "the host has erased a page that is in use"
        vm.delete(1, private=False)
        assert vm.write(page(5), bytes(PAGE_SIZE)) is None


@pytest.fixture
def hidden(vm: LocalVm) -> Iterator[LocalVm]:
    """Page 2 holds the secret and is not bound; page 3 holds something, too."""
    assert vm.write(page(2), SECRET) is None
    assert vm.write(page(3), b"beside it") is None
    vm.vmm.memory.hide(0, Gfn(2), Gfn(3))
    yield vm
    assert vm.read(page(3), 9) == b"beside it"


def test_what_was_hidden_comes_back(hidden: LocalVm) -> None:
    hidden.vmm.memory.fill_slot(0, Gfn(2), Gfn(3))
    assert hidden.read(page(2), len(SECRET)) == SECRET


def test_a_page_punched_while_it_was_not_bound_comes_back_zero(hidden: LocalVm, store: LocalStore) -> None:
    """The store has not called: nothing was bound."""
    store.punch("file", 2, 1)
    hidden.vmm.memory.fill_slot(0, Gfn(2), Gfn(3))
    assert hidden.read(page(2), len(SECRET)) == bytes(len(SECRET))


def test_a_page_altered_while_it_was_not_bound_is_a_machine_check(hidden: LocalVm) -> None:
    ((_, pfn, _),) = hidden.vm.mmu.blocked.runs(Gfn(2), Gfn(3))
    Host(hidden).write(pfn - hidden.link().base, ALTERED)
    hidden.vmm.memory.fill_slot(0, Gfn(2), Gfn(3))
    assert checked(hidden.read(page(2), 1), 2)
    assert hidden.write(page(2), bytes(PAGE_SIZE)) is None


def test_unmapped_private_memory_is_destroyed_with_its_tags(vm: LocalVm) -> None:
    host = Host(vm)
    assert vm.write(page(2), SECRET) is None
    at = frame(vm, 2)
    old = host.read(at)
    vm.vmm.memory.punch_slot(0, page(2), page(1))
    vm.vmm.memory.fill_slot(0, Gfn(2), Gfn(3))
    host.write(at, old)
    assert vm.read(page(2), len(SECRET)) == bytes(len(SECRET))


def test_a_file_that_comes_back_after_bye_is_zero(vm: LocalVm) -> None:
    assert vm.write(page(2), SECRET) is None
    vm.delete(0, private=True)
    vm.private_slot(0, 0, page(16), "file")
    assert vm.read(page(2), len(SECRET)) == bytes(len(SECRET))


def test_tampering_without_a_frame_writes_nothing(store: LocalStore, vm: LocalVm) -> None:
    lines = Lines(store=store)
    lines.ok("slot set 0 shared gpa=0 size=4K")
    assert lines("host tamper 0 ff").errno == "ENOENT", "the shared alias has no private frame"
    lines.executor.close()
    assert vm.write(page(2), SECRET) is None
    assert vm.read(page(2), 1) == SECRET[:1]


@pytest.mark.parametrize(
    ("windows", "refused", "read"),
    [
        (lambda: WindowMemory, None, b"wha!!only"),
        (lambda: MemoryKey().open_window, None, None),
        (lambda: MemoryKey(refuse=True).open_window, "EFAULT", b"what only"),
    ],
    ids=["plain", "mce", "refuse"],
)
def test_host_tamper(store: LocalStore, windows: object, refused: str | None, read: bytes | None) -> None:
    store.create("file", 16)
    store.windows_of_vms = windows  # type: ignore[assignment]
    lines = Lines(store=store)
    lines.ok(f"slot set 0 private gpa=0 size=64K file={store.path('file')}", 'write 4K "what only"')
    tampered = lines('host tamper 4099 "!!"')
    assert tampered.errno == refused
    got = lines("read 4K 9")
    assert got.data == read
    if read is None:
        assert (got.exit, got.exit_fields["gpa"]) == ("KVM_EXIT_MACHINE_CHECK", 4096)
    lines.executor.close()


def test_tampering_reaches_over_pages_and_blocked_ones(vm: LocalVm) -> None:
    assert vm.touch(0, page(16)) is None
    vm.vmm.memory.hide(0, Gfn(1), Gfn(2))
    tamper(vm.vm, page(1) - 2, b"abcd")
    vm.vmm.memory.fill_slot(0, Gfn(1), Gfn(2))
    assert checked(vm.read(0, 1), 0)
    assert checked(vm.read(page(1), 1), 1)
    assert vm.read(page(2), 1) == b"\0"
    assert errno_of(tamper, vm.vm, page(15), bytes(page(2))) == "ENOENT", "page 16 has no frame"
    assert vm.read(page(15), 1) == b"\0", "and nothing was written"


def test_a_large_leaf_that_cannot_be_split_takes_no_page_out_of_sight(tmp_path: Path) -> None:
    """All of it is unmapped for a part. The rest keeps its contents, and is forgotten when the store takes it back."""
    with opened_store(tmp_path, 512, encrypted=True) as store:
        store.create("large", 1024, page_size="2M")
        vm = store.vm()
        vm.vm.mmu.epts = (Ept(), Ept(max_tables=2 + 2))
        vm.private_slot(0, 0, page(1024), "large")
        assert vm.write(page(5), SECRET) is None
        vm.vmm.memory.hide(0, Gfn(3), Gfn(4))
        assert vm.vm.mmu.epts[True].page_count == 0, "the tables ran out"
        vm.vmm.memory.fill_slot(0, Gfn(3), Gfn(4))
        assert vm.read(page(5), len(SECRET)) == SECRET
        vm.vmm.memory.hide(0, Gfn(3), Gfn(4))
        store.punch("large", 0, 512)
        assert vm.read(page(512 + 5), len(SECRET)) == bytes(len(SECRET)), "the same frames, for the other page"
