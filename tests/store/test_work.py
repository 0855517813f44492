"""What a use case leaves to be done: where it may run, and that nobody waits for a VM who need not."""

from memfsd.core.effects import ForgetCache
from memfsd.store.invalidator import VmWork
from memfsd.store.work import EffectsWork
from memfsd.uapi.messages import Kind
from memfsd.uapi.units import PAGE_SIZE
from tests.support.core_store import CoreStore


def test_no_effects_are_quick_and_what_waits_on_the_kernel_is_not(store: CoreStore) -> None:
    assert EffectsWork(store.store.runner, []).is_quick
    file = store.make("file")
    work = EffectsWork(store.store.runner, [ForgetCache(file.ino)])
    assert not work.is_quick
    work.run()
    assert store.forgotten == [file.ino]


def test_an_invalidation_is_never_quick(store: CoreStore) -> None:
    work = store.store.files.punch(store.guest_file("file", 8).ino, 0, PAGE_SIZE)
    assert isinstance(work, VmWork)
    assert not work.is_quick
    work.run()


def test_memory_of_a_file_without_a_vm_is_taken_without_waiting(store: CoreStore) -> None:
    file = store.guest_file("file", 8)
    store.store.files.allocate(file.ino, 0, 8 * PAGE_SIZE).run()
    work = store.store.files.punch(file.ino, 0, 8 * PAGE_SIZE)
    assert isinstance(work, VmWork)
    assert not work.has_vm()
    assert work.run_unpaired()
    assert file.pages.page_count == 0


def test_memory_that_a_vm_may_hold_is_not(store: CoreStore) -> None:
    file, guest = store.bound_file("file", 8)
    store.fault(file, 0)
    work = store.store.files.punch(file.ino, 0, 8 * PAGE_SIZE)
    assert isinstance(work, VmWork)
    assert work.has_vm()
    assert not work.run_unpaired()
    assert (file.pages.page_count, store.vm_of(file).calls) == (1, [])
    with guest.invalidate_lock:
        assert not work.run_unpaired()
    work.run()
    assert store.vm_of(file).calls == [Kind.INVALIDATE_BEGIN, Kind.INVALIDATE_END]
