"""What kvmsim stat counts."""

import re
from pathlib import Path

from kvmsim.instruments.tracing import counting
from kvmsim.instruments.tracing.counting import Counting, count
from kvmsim.instruments.tracing.reader import LOST, Happening, happenings
from tests.support.traced import write_traces


def test_events_what_they_are_about_and_the_kernels_statistics(tmp_path: Path) -> None:
    totals = count(happenings([str(path) for path in write_traces(tmp_path)]), Counting())
    assert totals["kvm_exit"] == totals["kvm_exit(EPT_VIOLATION)"] == totals["exits"] == 2
    assert (totals["pf_taken"], totals["mmio_exits"], totals["userspace_exits"]) == (1, 1, 1)
    assert totals["memfsd_receive(INVALIDATE_BEGIN)"] == 1
    assert totals["kvmsim_zapped"] == 1


def test_by_vm_and_of_one_vm(tmp_path: Path) -> None:
    paths = [str(path) for path in write_traces(tmp_path)]
    by_vm = count(happenings(paths), Counting(by_vm=True))
    assert by_vm["vm0"] == 15 and by_vm["memfsd"] == 5
    assert count(happenings(paths), Counting(vm="other")) == {}
    assert count(happenings(paths), Counting(re.compile("^kvm_mmio$"), "vm0")) == {"kvm_mmio": 1}


def test_lost_events_are_counted_and_names_are_limited() -> None:
    found = Counting()
    found.add(Happening(1, "kvmsim", 1, "kvmsim", LOST, {"count": 7}))
    for number in range(counting.MAX_NAMES + 10):
        found.add(Happening(1, "kernel", 1, "x", f"event{number}"))
    assert found.totals["lost events"] == 7
    assert len(found.totals) == counting.MAX_NAMES
