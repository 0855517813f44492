"""libkrun."""

from memfsd.uapi.errors import Refused

from .calls import Facts, Model, VmEnded, size_of


class Libkrun(Model):
    """A vCPU asks the one worker thread and waits for its first reply; "false" ends the VM. Any set bit of the
    hypercall's attributes is taken for "private"."""

    name = "libkrun"
    facts = Facts(
        "v1.18.0-133-g6ed74fac, and v1.19.0 alike",
        (
            "src/vmm/src/worker.rs: Vmm::convert_memory()",
            "src/vmm/src/linux/vstate.rs: Vcpu::run_emulation(), Vm::guest_memfd_get()",
        ),
        "with the feature tee: the region of the first address; attributes of the range; one discard of one side, as "
        "long as the range; a discard that fails is answered with false, and then with true: the worker panics if the "
        "vCPU has gone by then",
    )
    takes_devices = False
    serialized = True

    def hypercall(self, gpa: int, page_count: int, attributes: int) -> int:
        self._ask(gpa, size_of(page_count), attributes != 0)
        return 0

    def memory_fault(self, gpa: int, size: int, *, private: bool) -> None:
        self._ask(gpa, size, private)

    def _ask(self, gpa: int, size: int, private: bool) -> None:
        self.replies = []
        self._convert(gpa, size, private)
        if not self.replies[0]:
            panics = "; the worker may panic: its second reply has no receiver" if len(self.replies) > 1 else ""
            raise VmEnded(f"the vCPU ends: unable to convert memory{panics}")

    def _convert(self, gpa: int, size: int, private: bool) -> None:
        ram = (region for region in self.calls.regions if region.is_ram)
        region = next((region for region in ram if region.gpa <= gpa < region.end), None)
        if region is None:
            return self.replies.append(False)
        try:
            self.calls.set_attributes(gpa, size, private=private)
        except Refused:
            return self.replies.append(False)
        discard = self.calls.discard if private else self.calls.punch
        try:
            discard(region, gpa - region.gpa, size)
        except Refused:
            self.replies.append(False)
        return self.replies.append(True)
