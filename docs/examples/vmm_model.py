"""A model of a VMM of your own: `kvmsim vmms --model vmm_model.py` finds what its conversions leave behind."""

from kvmsim import Refused
from kvmsim.vmm.models import Facts, Model, VmEnded, is_private, size_of


class Example(Model):
    """Every region in turn, both sides discarded, and no way back."""

    name = "example"
    facts = Facts("v1.0", ("src/kvm.c: convert()",), "of each region: attributes, then a discard of the other side")
    takes_devices = False
    serialized = True  # a lock is held while an exit is handled

    def hypercall(self, gpa: int, page_count: int, attributes: int) -> int:
        try:
            self._convert(gpa, size_of(page_count), is_private(attributes))
        except Refused as refused:
            return -refused.errno
        return 0

    def memory_fault(self, gpa: int, size: int, *, private: bool) -> None:
        try:
            self._convert(gpa, size, private)
        except Refused as refused:
            raise VmEnded(f"a conversion failed: {refused.reason}") from None

    def _convert(self, gpa: int, size: int, private: bool) -> None:
        for region in self.calls.regions:
            start, length = region.part(gpa, size)
            if region.is_ram and length:
                self.calls.set_attributes(start, length, private=private)
                discard = self.calls.discard if private else self.calls.punch
                discard(region, start - region.gpa, length)
