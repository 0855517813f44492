"""A store that takes memory back: a punch from the host, and then all of it. The VM hears of both, and lives."""

import kvmsim
import memfsd


def on_event(event: kvmsim.Event) -> None:
    shown = {key: event.data[key] for key in ("offset", "size", "reason", "why") if key in event.data}
    print(f"{event.name} {shown}")


with memfsd.mounted(size="16M") as store, kvmsim.VM() as vm:
    memory = store.create("vm.mem", "1M")
    vm.set_user_memory_region(0, 0, 1 << 20, guest_memfd=memory)
    vm.on("INVALIDATE", on_event)
    vm.on("PAIRING_LOST", on_event)
    vcpu = vm.create_vcpu()
    vcpu.write(0x3000, b"mine")
    vcpu.write(0x4000, b"kept")

    store.punch("vm.mem", 0x3000, 0x1000)
    print(f"after the punch: {vcpu.read(0x3000, 4)!r} {vcpu.read(0x4000, 4)!r}")

    assert store.process is not None
    store.process.terminate()  # memfsd unmounts: it revokes every pairing
    store.process.wait()
    try:
        vcpu.read(0x4000, 4)
    except kvmsim.UnhandledExit as unhandled:
        match unhandled.exit:
            case kvmsim.MemoryErrorExit(errno=errno, why=why):
                print(f"after the revocation: errno {errno}, {why}")

    vm.set_user_memory_region(1, 1 << 30, 0x1000)
    vcpu.write(1 << 30, b"shared memory works on", shared=True)
    print(vm.read_guest(1 << 30, 22))
