"""What a viewer will draw: tracks, slices that nest and end, a flow, counters."""

from pathlib import Path

from kvmsim.instruments.tracing.reader import happenings
from kvmsim.instruments.tracing.timeline import Begin, Count, End, Instant, Item, Kind, Track, timeline
from tests.support.traced import STORE_PID, VM_PID, vm_exit, write_traces


def drawn(place: Path) -> tuple[list[Item], dict[str, int]]:
    """The items, and the tracks by name."""
    items = list(timeline(happenings([str(path) for path in write_traces(place)])))
    return items, {item.name: item.uuid for item in items if isinstance(item, Track)}


def test_one_track_for_each_vcpu_and_one_for_each_store(tmp_path: Path) -> None:
    items, tracks = drawn(tmp_path)
    assert tracks.keys() >= {"vm0 vCPU 0", "vm0 vCPU 1", "vm0", "store", "inode 2", "pool", "private", "pending"}
    processes = {item.name: item for item in items if isinstance(item, Track) and item.kind is Kind.PROCESS}
    assert {name: one.pid for name, one in processes.items()} == {"memfsd": STORE_PID, "kvmsim": VM_PID}
    assert all(item.parent for item in items if isinstance(item, Track) and item.kind is not Kind.PROCESS)


def test_an_exit_is_a_slice_and_user_space_one_in_it(tmp_path: Path) -> None:
    items, tracks = drawn(tmp_path)
    on = [i for i in items if not isinstance(i, Track) and i.track == tracks["vm0 vCPU 1"]]
    shown = [(type(i).__name__, getattr(i, "name", ""), (i.t - 1_000_000_000) // 1000) for i in on]
    assert shown == [
        ("Begin", "EPT_VIOLATION", 50),
        ("Instant", "kvm_mmio", 51),
        ("Begin", "KVM_EXIT_MMIO", 52),
        ("End", "", 150),
        ("End", "", 150),
    ]


def test_a_flow_leads_from_begin_to_the_vm_and_to_its_acknowledgement(tmp_path: Path) -> None:
    items, tracks = drawn(tmp_path)
    begins = [i for i in items if isinstance(i, Begin) and i.flow]
    (end,) = [i for i in items if isinstance(i, Instant) and i.ends_flow]
    assert [(i.track, i.flow) for i in begins] == [(tracks["inode 2"], end.ends_flow), (tracks["vm0"], end.ends_flow)]
    assert (end.track, end.name) == (tracks["inode 2"], "acknowledged")


def test_every_slice_ends(tmp_path: Path) -> None:
    store, vm = write_traces(tmp_path)
    vm.write_text(vm.read_text() + vm_exit(300))
    items = list(timeline(happenings([str(store), str(vm)])))
    assert sum(isinstance(i, Begin) for i in items) == sum(isinstance(i, End) for i in items)


def test_counters_are_in_bytes(tmp_path: Path) -> None:
    items, tracks = drawn(tmp_path)

    def values(name: str) -> list[int]:
        return [i.value for i in items if isinstance(i, Count) and i.track == tracks[name]]

    assert values("pool") == [4 * 4096, 3 * 4096]
    assert values("private") == [4096, 0]
    assert values("pending") == [3 * 4096, 3 * 4096]
    assert values("vm0 doubled") == [4096]
