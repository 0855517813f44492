"""libkrun."""

from memfsd.common import sync
from memfsd.uapi.errors import Refused

from .calls import Calls, Facts, Model, VmEnded, size_of


class Libkrun(Model):
    """A vCPU asks the worker thread and waits for its first reply; what is not "true" ends the VM. Any set bit of the
    hypercall's attributes is taken for "private"."""

    name = "libkrun"
    facts = Facts(
        "v1.18.0-133-g6ed74fac",
        (
            "src/vmm/src/worker.rs: Vmm::convert_memory()",
            "src/vmm/src/linux/vstate.rs: Vcpu::run_emulation(), Vm::guest_memfd_get()",
        ),
        "the region of the first address; attributes of the range; one discard of one side, as long as the range; a "
        "discard that fails is answered with false, and then with true: the worker panics if the vCPU has gone by then",
    )
    takes_devices = False

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls)
        self.lock = sync.lock("Model.lock")

    def hypercall(self, gpa: int, page_count: int, attributes: int) -> int:
        self._ask(gpa, size_of(page_count), attributes != 0)
        return 0

    def memory_fault(self, gpa: int, size: int, *, private: bool) -> None:
        self._ask(gpa, size, private)

    def _ask(self, gpa: int, size: int, private: bool) -> None:
        assert self.lock is not None
        self.replies = []
        with self.lock:
            self._convert(gpa, size, private)
        if not self.replies[0]:
            raise VmEnded("the vCPU ends: unable to convert memory")

    def _convert(self, gpa: int, size: int, private: bool) -> None:
        reply = self.replies.append
        found = [region for region in self.calls.regions if region.is_ram and region.overlaps(gpa, gpa + 1)]
        if not found:
            return reply(False)
        try:
            self.calls.set_attributes(gpa, size, private=private)
        except Refused:
            return reply(False)
        discard = self.calls.discard if private else self.calls.punch
        try:
            discard(found[0], gpa - found[0].gpa, size)
        except Refused:
            reply(False)
        reply(True)
        return None
