"""Tests mirror the source: each module has a test of its name, or a line below that says where else to look."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent

PURE = (
    "memfsd/uapi",
    "memfsd/common",
    "memfsd/core",
    "kvmsim/kvm/mmu",
    "kvmsim/kvm/slots",
    "kvmsim/shell/script",
)
"""Rooms whose modules are tested alone, each by its own test: they need no process, no mount and no other side."""

PLACES = {
    "memfsd/daemon": "mount/test_daemon",
    "memfsd/encrypted": "attack/test_encrypted",
    "memfsd/guest_memfd": "mount/test_guest_memfd",
    "memfsd/numa": "mount/test_numa",
    "memfsd/files": "mount/test_made_files",
    "memfsd/ownmount": "mount/test_ownmount",
    "memfsd/commands/": "mount/test_",
    "memfsd/fuse/": "mount/test_",
    "memfsd/": "",
    "kvmsim/instruments/race/": "race/test_",
    "kvmsim/": "kvmsim/",
}
"""What needs a mount is tested in tests/mount; race in tests/race. The first that a module begins with."""

NO_BEHAVIOUR = {
    "memfsd/common/version.py": "a constant",
    "memfsd/core/effects.py": "values; what is done with them is effect_runner's",
    "memfsd/store/deadlines.py": "values",
    "kvmsim/kvm/alias.py": "an enum",
    "kvmsim/kvm/abi/rules.py": "a protocol",
    "kvmsim/kvm/region.py": "values of the ioctls",
    "memfsd/store/peer.py": "a value and two protocols",
    "kvmsim/vmm/policies.py": "constants",
    "kvmsim/cpu/x86/layout.py": "structures, whose sizes are compared with those of _fill.c when it is imported",
}

ELSEWHERE = {
    "memfsd/commands/memfs_help.py": "mount/test_memfs.py",
    "memfsd/commands/arguments.py": "mount/test_memfs.py",
    "memfsd/commands/check.py": "mount/test_memfs.py",
    "memfsd/commands/facts.py": "mount/test_memfs.py",
    "memfsd/commands/files.py": "mount/test_memfs.py",
    "memfsd/commands/pages.py": "mount/test_memfs.py",
    "memfsd/commands/status.py": "mount/test_memfs.py",
    "kvmsim/api/vm.py": "kvmsim/api/test_api_vm.py",
    "kvmsim/api/vcpu.py": "kvmsim/api/test_api_vcpu.py",
    "kvmsim/pytest_plugin.py": "mount/test_examples.py",
    "kvmsim/instruments/monitor/arguments.py": "kvmsim/instruments/monitor/test_places.py",
    "kvmsim/shell/arguments.py": "kvmsim/test_cli.py",
    "kvmsim/shell/lines.py": "kvmsim/shell/test_input_lines.py",
    "kvmsim/vmm/answers.py": "kvmsim/shell/test_vcpu_commands.py",
    "memfsd/commands/memfsd.py": "mount/test_daemon.py",
    "memfsd/commands/moving.py": "mount/test_memfs_move.py",
    "memfsd/commands/nodes.py": "mount/test_memfs_move.py",
    "memfsd/commands/top_view.py": "mount/test_top.py",
    "memfsd/fuse/mount.py": "mount/test_mount_command.py",
    "memfsd/fuse/mounting.py": "mount/test_mount_command.py",
    "memfsd/fuse/operations.py": "mount/test_ordinary_files.py",
    "memfsd/host/effect_runner.py": "pair/test_injected.py",
    "memfsd/peers/process.py": "pair/test_ends.py",
    "memfsd/store/attributes.py": "store/test_files.py",
    "memfsd/store/invalidator.py": "pair/test_invalidation.py",
    "memfsd/store/names.py": "store/test_store_names.py",
    "memfsd/store/reclaim.py": "pair/test_slow_vms.py",
    "memfsd/store/seeking.py": "store/test_files.py",
    "memfsd/store/swapoff.py": "pair/test_swapoff.py",
    "memfsd/store/swapper.py": "pair/test_swapping.py",
    "memfsd/store/store.py": "store/test_files.py",
    "kvmsim/instruments/compare/arguments.py": "mount/test_compare.py",
    "kvmsim/instruments/compare/command.py": "mount/test_compare.py",
    "kvmsim/instruments/compare/costs.py": "mount/test_compare.py",
    "kvmsim/instruments/compare/plot.py": "mount/test_compare.py",
    "kvmsim/instruments/compare/ram.py": "mount/test_compare.py",
    "kvmsim/instruments/compare/rig.py": "mount/test_compare.py",
    "kvmsim/instruments/compare/store.py": "mount/test_compare.py",
    "kvmsim/instruments/compare/table.py": "mount/test_compare.py",
    "kvmsim/instruments/compare/workloads.py": "mount/test_compare.py",
    "kvmsim/cpu/accesses.py": "kvmsim/kvm/test_restarts.py",
    "kvmsim/cpu/x86/debugger.py": "kvmsim/shell/test_gdb.py",
    "kvmsim/cpu/x86/decrypted.py": "pair/test_machine_code.py",
    "kvmsim/cpu/x86/engine.py": "kvmsim/cpu/x86/test_precision.py",
    "kvmsim/cpu/x86/stay.py": "pair/test_machine_code.py",
    "kvmsim/kvm/walking.py": "kvmsim/cpu/x86/test_machine.py",
    "kvmsim/instruments/journal/check.py": "kvmsim/instruments/journal/test_journal_command.py",
    "kvmsim/instruments/journal/command.py": "kvmsim/instruments/journal/test_journal_command.py",
    "kvmsim/instruments/journal/conversation.py": "kvmsim/instruments/journal/test_journal_rules.py",
    "kvmsim/instruments/journal/show.py": "kvmsim/instruments/journal/test_journal_command.py",
    "kvmsim/instruments/journal/store_rules.py": "kvmsim/instruments/journal/test_journal_rules.py",
    "kvmsim/instruments/journal/vm_rules.py": "kvmsim/instruments/journal/test_journal_rules.py",
    "kvmsim/kvm/abi/attributes.py": "kvmsim/kvm/test_attribute_ioctls.py",
    "kvmsim/kvm/abi/guest_memfd.py": "kvmsim/kvm/test_region2.py",
    "kvmsim/kvm/abi/region2.py": "kvmsim/kvm/test_region2.py",
    "kvmsim/kvm/abi/thread.py": "kvmsim/kvm/test_vm.py",
    "kvmsim/kvm/guest_memfds.py": "kvmsim/kvm/test_region2.py",
    "kvmsim/kvm/emulation.py": "kvmsim/kvm/test_vm.py",
    "kvmsim/kvm/exits.py": "kvmsim/kvm/test_kvm_run.py",
    "kvmsim/kvm/faults.py": "pair/test_faults.py",
    "kvmsim/kvm/kvm.py": "kvmsim/kvm/test_ioctls.py",
    "kvmsim/kvm/notifier.py": "pair/test_invalidation.py",
    "kvmsim/kvm/pairings.py": "pair/test_plug_and_unplug.py",
    "kvmsim/kvm/relocator.py": "pair/test_move.py",
    "kvmsim/kvm/swap.py": "pair/test_swapping.py",
    "kvmsim/kvm/unmapper.py": "pair/test_invalidation.py",
    "kvmsim/kvm/vmcall.py": "kvmsim/kvm/test_hypercalls.py",
    "kvmsim/machine.py": "kvmsim/shell/test_execute.py",
    "kvmsim/instruments/race/accesses.py": "race/test_scheduler.py",
    "kvmsim/instruments/race/arguments.py": "race/test_race_command.py",
    "kvmsim/instruments/race/cli.py": "race/test_race_command.py",
    "kvmsim/instruments/race/diagram.py": "race/test_text.py",
    "kvmsim/instruments/race/exhaustive.py": "race/test_scenarios.py",
    "kvmsim/instruments/race/history.py": "race/test_mutants.py",
    "kvmsim/instruments/race/interrupts.py": "race/test_race_interrupts.py",
    "kvmsim/instruments/race/minimise.py": "race/test_text.py",
    "kvmsim/instruments/race/oracle.py": "race/test_mutants.py",
    "kvmsim/instruments/race/order.py": "race/test_explore.py",
    "kvmsim/instruments/race/page_cache.py": "race/test_conversions.py",
    "kvmsim/instruments/race/primitives.py": "race/test_scheduler.py",
    "kvmsim/instruments/race/record.py": "race/test_text.py",
    "kvmsim/instruments/race/runner.py": "race/test_scenarios.py",
    "kvmsim/instruments/race/scenario.py": "race/test_text.py",
    "kvmsim/instruments/race/world.py": "race/test_scenarios.py",
    "kvmsim/kvm/tampering.py": "pair/test_encryption.py",
    "kvmsim/memory/encrypted.py": "kvmsim/memory/test_encrypted_memory.py",
    "kvmsim/instruments/monitor/listening.py": "kvmsim/instruments/monitor/test_monitor.py",
    "kvmsim/instruments/monitor/schema.py": "kvmsim/instruments/monitor/test_handlers.py",
    "kvmsim/instruments/monitor/state.py": "kvmsim/instruments/monitor/test_handlers.py",
    "kvmsim/shell/host_commands.py": "kvmsim/shell/test_execute.py",
    "kvmsim/shell/info.py": "kvmsim/shell/test_execute.py",
    "kvmsim/shell/script_command.py": "kvmsim/test_cli.py",
    "kvmsim/shell/script_vm.py": "kvmsim/shell/test_execute.py",
    "kvmsim/store/link.py": "hostile/test_hostile_store.py",
    "kvmsim/store/page_map.py": "kvmsim/store/test_page_map_reader.py",
    "kvmsim/vmm/conversion/attributes.py": "kvmsim/vmm/conversion/test_linux_designs.py",
    "kvmsim/vmm/conversion/in_place.py": "kvmsim/vmm/conversion/test_linux_designs.py",
    "kvmsim/vmm/conversion/design.py": "kvmsim/vmm/conversion/test_designs.py",
    "kvmsim/vmm/conversion/overlay.py": "kvmsim/vmm/conversion/test_designs.py",
    "kvmsim/vmm/conversion/punch.py": "kvmsim/vmm/conversion/test_designs.py",
    "kvmsim/vmm/conversion/recreate.py": "kvmsim/vmm/conversion/test_designs.py",
    "kvmsim/vmm/conversion/shared_copy.py": "kvmsim/vmm/conversion/test_designs.py",
    "kvmsim/vmm/conversion/transaction.py": "kvmsim/vmm/conversion/test_rollback.py",
    **{
        f"kvmsim/vmm/models/{name}.py": "kvmsim/instruments/vmms/test_vmms.py"
        for name in ("calls", "qemu", "cloud_hypervisor", "libkrun", "alioth", "firecracker", "reference")
    },
    **{
        f"kvmsim/instruments/vmms/{name}.py": "kvmsim/instruments/vmms/test_vmms.py"
        for name in ("arguments", "border", "command", "iommu", "judge", "rig", "scenarios", "store", "table")
    },
    **{
        f"kvmsim/instruments/vmms/{name}.py": "kvmsim/instruments/vmms/test_vmms.py"
        for name in ("memory", "gmem_memory")
    },
    **{
        f"kvmsim/instruments/vmms/abi/{name}.py": "kvmsim/instruments/vmms/test_abi_catalogue.py"
        for name in ("arguments", "bench", "catalogue", "command", "files", "pages", "store", "table")
    },
    "kvmsim/vmm/guest_memory.py": "kvmsim/vmm/conversion/test_rollback.py",
    "kvmsim/instruments/tracing/command.py": "kvmsim/instruments/tracing/test_trace_command.py",
    "kvmsim/instruments/tracing/reader.py": "kvmsim/instruments/tracing/test_trace_reader.py",
    "kvmsim/instruments/views/charts.py": "kvmsim/instruments/views/test_report_command.py",
    "kvmsim/instruments/views/answers.py": "kvmsim/instruments/vmms/test_abi_catalogue.py",
    "kvmsim/instruments/views/page.py": "kvmsim/instruments/views/test_report_command.py",
    "kvmsim/instruments/views/vm_view.py": "kvmsim/instruments/views/test_top_command.py",
    "kvmsim/instruments/views/watching.py": "kvmsim/instruments/views/test_top_command.py",
    "kvmsim/vmm/host.py": "kvmsim/vmm/test_hva.py",
}
"""Modules that do what they do only together with others: the test that would notice first."""

MODULES = sorted(
    str(path.relative_to(ROOT))
    for package in ("memfsd", "kvmsim")
    for path in (ROOT / package).rglob("*.py")
    if not path.name.startswith("__")
)


def expected_test(module: str) -> Path:
    """tests/core/memory/test_buddy.py for memfsd/core/memory/buddy.py."""
    room, place = next(item for item in PLACES.items() if module.startswith(item[0]))
    mirrored = Path(place + module.removesuffix(".py").removeprefix(room))
    return TESTS / mirrored.with_name(f"test_{mirrored.name.removeprefix('test_')}.py")


@pytest.mark.parametrize("module", MODULES)
def test_each_module_has_its_test_or_says_where_else_to_look(module: str) -> None:
    own = expected_test(module)
    if own.exists():
        assert module not in NO_BEHAVIOUR.keys() | ELSEWHERE.keys(), "it has a test of its name: remove the line here"
    elif module not in NO_BEHAVIOUR:
        assert module in ELSEWHERE, f"write {own.relative_to(ROOT)}"
        assert (TESTS / ELSEWHERE[module]).exists(), f"tests/{ELSEWHERE[module]} is gone"


def test_pure_modules_are_tested_alone() -> None:
    assert [module for module in ELSEWHERE if module.startswith(tuple(f"{room}/" for room in PURE))] == []


def test_the_lines_above_are_about_modules_that_exist() -> None:
    assert (NO_BEHAVIOUR.keys() | ELSEWHERE.keys()) - set(MODULES) == set()


def test_the_guide_names_every_room_of_tests_and_every_module_of_support() -> None:
    guide = (ROOT / "docs" / "contributing.md").read_text()
    rooms = [f"tests/{path.parent.name}" for path in TESTS.glob("*/test_*.py")]
    assert [room for room in sorted(set(rooms)) if f"`{room}`" not in guide] == []
    modules = [path.stem for path in (TESTS / "support").glob("*.py") if path.stem != "__init__"]
    assert [module for module in sorted(modules) if f"`{module}`" not in guide] == []


def test_names_of_test_files_are_unique() -> None:
    """They are imported by their names: two of one name are an error where both are collected."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
