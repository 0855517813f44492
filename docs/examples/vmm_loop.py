"""A VMM in 30 lines: guest code, a sealed file, a VM with policy punch, and the loop around KVM_RUN."""

import kvmsim
import memfsd

UART = 0x9000_0000


def guest(cpu: kvmsim.Cpu) -> kvmsim.Program[None]:
    yield from cpu.write(0x1000, b"only the guest reads this")
    yield from cpu.map_gpa(0x2000, 0x1000, private=False)  # shared from now on, by a hole in the private slot
    yield from cpu.write(0x2000, b"hello, host", shared=True)
    ready = yield from cpu.read(UART + 5, 1, shared=True)
    yield from cpu.write(UART, b"K" if ready == b"\x20" else b"?", shared=True)


with memfsd.mounted(size="64M") as store, kvmsim.VM(policy="punch") as vm:
    memory = store.create("vm.mem", "16M")
    vm.set_user_memory_region(0, 0, 16 << 20, guest_memfd=memory)
    vcpu = vm.create_vcpu()
    vcpu.load(guest)
    while not vcpu.is_done:
        match vcpu.run():
            case kvmsim.MmioExit(phys_addr, _, is_write=True, data=data):
                print(f"uart[{phys_addr - UART}] <- {data!r}")
            case kvmsim.MmioExit(phys_addr, length):
                vcpu.answer(data=b"\x20" * length)
            case kvmsim.MemoryErrorExit() as exit_:
                raise SystemExit(f"the policy does not repair {exit_}")
    print(vm.read_guest(0x2000, 11), store.stat("vm.mem").frames["private"], vm.stats()["converted_to_shared"])
