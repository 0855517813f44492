"""A guest that converts a page back and forth forever, and then spins: its VMM has a budget, and a watchdog."""

import threading

import kvmsim
import memfsd

BUDGET = 16
"""Conversions, after which this VMM does not convert any more."""


def restless(cpu: kvmsim.Cpu) -> kvmsim.Program[None]:
    while True:
        yield from cpu.map_gpa(0x5000, 0x1000, private=False)
        yield from cpu.map_gpa(0x5000, 0x1000, private=True)


def spinning(cpu: kvmsim.Cpu) -> kvmsim.Program[None]:
    while True:
        yield from cpu.read(0x1000, 8)


with memfsd.mounted(size="16M") as store, kvmsim.VM(policy="punch") as vm:
    vm.set_user_memory_region(0, 0, 1 << 20, guest_memfd=store.create("vm.mem", "1M"))
    vcpu = vm.create_vcpu()
    vcpu.write(0x1000, b"data around")

    vcpu.load(restless)
    conversions = 0
    while (exit_ := vcpu.kvm_run()) and conversions < BUDGET:
        conversions += vcpu.handle(exit_)
    print(f"after {conversions} conversions the VMM converts no more: {exit_.reason.name}")

    vcpu.load(spinning)
    watchdog = threading.Timer(0.2, vcpu.kick)
    watchdog.start()
    print(f"the watchdog: {vcpu.run().reason.name}")
    watchdog.join()

    stats = vm.stats()
    print(f"data around the page: {vcpu.read(0x1000, 11)!r}, lost pages: {stats['lost_pages']}")
    print(f"rules broken: {store.check()}")
