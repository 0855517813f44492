"""Guest programs on one vCPU and on two: what they run on moves, what lies beside it is punched, the store dies."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kvmsim.kvm.exits import HltExit
from kvmsim.shell.image import read_program
from tests.support.both_sides import LocalStore, LocalVm, opened_store, page
from tests.support.machine_code import Code
from tests.support.threads import Beside, until

PAGES = 4096
CODE = range(256, 280)
USES = {"touch": range(1024, 2048), "convert": range(2048, 2064), "spinlock": range(0), "ring": range(3072, 3080)}
BESIDE = range(2100, 2300, 7)


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalStore]:
    with opened_store(tmp_path, PAGES, encrypted=bool(request.param), nodes=2) as opened:
        yield opened


@pytest.fixture
def mem(store: LocalStore) -> LocalVm:
    store.create("mem", PAGES)
    vm = store.vm()
    vm.private_slot(0, 0, page(PAGES), "mem")
    vm.vmm.set_policy("punch")
    vm.vm.create_vcpu(1)
    return vm


@pytest.mark.parametrize(("name", "vcpu_count"), [("touch", 1), ("convert", 1), ("spinlock", 2), ("ring", 2)])
def test_a_program_does_its_work_under_moves_and_punches(
    store: LocalStore, mem: LocalVm, name: str, vcpu_count: int
) -> None:
    codes = [Code(mem, number) for number in range(vcpu_count)]
    for code in codes:
        assert code.cpus.boot(code.vcpu, read_program(f"guest:{name}", None, None)) is None
    running = [Beside(partial(mem.vmm.run, code.vcpu, code.run)) for code in codes]
    moved, round_ = 0, 0
    while round_ < 2 or any(one.running for one in running):
        moved += sum(result == round_ % 2 for result in store.move("mem", [*CODE, *USES[name][:64]], round_ % 2))
        at = BESIDE[round_ % len(BESIDE)]
        store.allocate("mem", at, 3)
        store.punch("mem", at, 3)
        round_ += 1
    assert [one.result() for one in running] == [HltExit()] * vcpu_count
    assert "".join(code.console() for code in codes) == f"{name}: ok\n"
    assert moved


def test_two_vcpus_lose_the_store_under_their_code(store: LocalStore, mem: LocalVm) -> None:
    codes = [Code(mem, number) for number in range(2)]
    for number, code in enumerate(codes):
        code.place("1: lock incq (%rbx); jmp 1b", page(1 + number), rbx=page(8))
    running: list[Beside[object]] = [Beside(code.run) for code in codes]
    for code in codes:
        until(lambda code=code: code.engine.state.fills > 1, "it runs")  # type: ignore[misc]
    store.is_broken = True
    store.hang_up("mem")
    assert [type(one.result()).__name__ for one in running] == ["MemoryErrorExit"] * 2
