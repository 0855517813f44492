"""The `hva` commands of a script: mmap and its kin in the simulated host processes."""

from collections.abc import Callable, Mapping
from typing import Any

from kvmsim.machine import VirtualMachine
from kvmsim.vmm.host import Host
from kvmsim.vmm.hva import Vma

from . import info
from .script import commands as c
from .script.outcome import Outcome


class HostCommands:
    """machines: all VMs of the run, whose ordinary slots may show a mapping."""

    def __init__(self, host: Host, machines: Mapping[str, VirtualMachine]) -> None:
        self._host = host
        self._machines = machines

    def handlers(self) -> dict[type[c.Command], Callable[[Any], Outcome]]:
        return {
            c.HvaMap: self._map,
            c.HvaAnon: self._anon,
            c.HvaUnmap: self._unmap,
            c.HvaRead: self._read,
            c.HvaWrite: self._write,
            c.HvaFork: self._fork,
            c.HvaExit: self._exit,
            c.HvaDump: self._dump,
        }

    def _map(self, command: c.HvaMap) -> Outcome:
        vma = self._host.map_file(
            command.path, length=command.length, offset=command.offset, shared=not command.private, at=command.at
        )
        return _mapped(vma)

    def _anon(self, command: c.HvaAnon) -> Outcome:
        return _mapped(self._host.map_anonymous(command.length, command.at))

    def _unmap(self, command: c.HvaUnmap) -> Outcome:
        shown = [region.source for machine in self._machines.values() for region in machine.vmm.memory.ram.shared]
        self._host.unmap(command.address, command.size, shown)
        return Outcome(ok=True)

    def _read(self, command: c.HvaRead) -> Outcome:
        return Outcome(ok=True, data=self._host.read(command.address, command.length))

    def _write(self, command: c.HvaWrite) -> Outcome:
        self._host.write(command.address, command.data)
        return Outcome(ok=True)

    def _fork(self, command: c.HvaFork) -> Outcome:
        self._host.fork(command.process)
        return Outcome(ok=True)

    def _exit(self, _: c.HvaExit) -> Outcome:
        self._host.exit()
        return Outcome(ok=True)

    def _dump(self, _: c.HvaDump) -> Outcome:
        facts, text = info.hva([self._host.current], dump=True)
        return Outcome(ok=True, info=facts, text=text)


def _mapped(vma: Vma) -> Outcome:
    return Outcome(ok=True, info={"hva": vma.start, "size": vma.size}, text=f"{vma.start:#x}")
