"""The events: their text is what the kernel prints, and is read back."""

import pytest

from memfsd.common import traceevents as e
from memfsd.uapi.errors import Refused


@pytest.mark.parametrize(
    ("event", "values", "text"),
    [
        (e.ENTRY, (1, 0xFFF0), "vcpu 1, rip 0xfff0"),
        (
            e.EXIT,
            (0, "EPT_VIOLATION", 0, 2, 0, 0, 0),
            "vcpu 0 reason EPT_VIOLATION rip 0x0 info1 0x0000000000000002 info2 0x0000000000000000"
            " intr_info 0x00000000 error_code 0x00000000",
        ),
        (
            e.PAGE_FAULT,
            (0, 0, 0x1000, 0x100000002),
            "vcpu 0 rip 0x0 address 0x0000000000001000 error_code 0x100000002",
        ),
        (e.MMIO, ("write", 4, 0xC0000000, 0x1234), "mmio write len 4 gpa 0xc0000000 val 0x1234"),
        (e.HYPERCALL, (12, 0x1000, 1, 16, 0), "nr 0xc a0 0x1000 a1 0x1 a2 0x10 a3 0x0"),
        (e.USERSPACE_EXIT, ("KVM_EXIT_MMIO", 6), "reason KVM_EXIT_MMIO (6)"),
        (e.UNMAP, (0x1000, 0x3000), "mmu notifier unmap range: 0x1000 -- 0x3000"),
        (e.DISCONNECTED, (2, "vm0", "it is late"), "ino 2 vm vm0 why it is late"),
    ],
)
def test_the_text_of_an_event_and_back(event: e.Event, values: tuple[e.Value, ...], text: str) -> None:
    assert event.text % values == text
    assert event.parse(text) == dict(zip(event.fields, values, strict=True))
    assert event.parse(text + " more") is None or event is e.DISCONNECTED


def test_events_are_chosen_as_trace_cmd_does() -> None:
    def names(pattern: str) -> set[str]:
        return {event.name for event in e.chosen(pattern)}

    assert names("kvm:kvm_page_fault") == names("kvm_page_fault") == {"kvm_page_fault"}
    assert names("kvm") == names("kvm:*") == names("kvm:") == {n for n, one in e.EVENTS.items() if one.system == "kvm"}
    assert names("memfsd_inval*") == {"memfsd_invalidate_begin", "memfsd_invalidate_end"}
    assert names("*") == set(e.EVENTS)
    with pytest.raises(Refused, match="no event 'kvm:kvm_nothing': kvmsim trace list"):
        e.chosen("kvm:kvm_nothing")


def test_each_event_is_of_the_kernel_or_named_for_its_system() -> None:
    for event in e.EVENTS.values():
        assert event.name.startswith({"qemu": "kvm"}.get(event.system, event.system) + "_")
    assert len(e.describe()) == len(e.EVENTS)
