"""What the commands of the monitor answer, of VMs with and without a store."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kvmsim.shell.script.grammar import INFO_TOPICS
from memfsd.uapi.limits import MAX_QMP_PAGE
from tests.support.both_sides import LocalStore
from tests.support.qmp import Raw, client, monitored
from tests.support.script_lines import Lines
from tests.support.traced import events, tracing


@pytest.fixture
def do(store: LocalStore) -> Iterator[Lines]:
    """Private slot 0 at 0, 64 pages."""
    store.create("file", 64)
    lines = Lines(store=store)
    lines.ok(f"slot set 0 private gpa=0 size=256K file={store.path('file')}")
    yield lines
    lines.executor.close()


@pytest.fixture
def qmp(do: Lines, tmp_path: Path) -> Iterator[Raw]:
    with monitored(do.executor, tmp_path / "qmp"), client(tmp_path / "qmp") as raw:
        yield raw


def test_the_answers_have_qemus_members(qmp: Raw) -> None:
    assert {"name": "query-status"} in qmp.value("query-commands")
    assert qmp.value("query-status") == {"running": True, "status": "running"}
    assert qmp.value("query-kvm") == {"enabled": True, "present": True}
    assert qmp.value("query-name") == {"name": "vm0"}
    assert qmp.value("query-version").keys() == {"qemu", "package"}
    (cpu,) = qmp.value("query-cpus-fast")
    assert (cpu["cpu-index"], cpu["qom-path"], cpu["state"], cpu["exit"]) == (0, "/machine/vcpu[0]", "idle", None)


def test_a_vcpu_that_came_back_says_why(do: Lines, qmp: Raw) -> None:
    do("write 0x3fffe 4142434445")
    (cpu,) = qmp.value("query-cpus-fast")
    assert (cpu["state"], cpu["exit"]) == ("under way", "KVM_EXIT_MEMORY_ERROR")


def test_commands_are_refused_in_qemus_words(qmp: Raw) -> None:
    assert qmp.refusal("nonsense") == "CommandNotFound: The command nonsense has not been found"
    assert qmp.refusal("qmp_capabilities") == "CommandNotFound: The command qmp_capabilities has not been found"
    assert qmp.refusal("query-status", foo=1) == "GenericError: Parameter 'foo' is unexpected"
    assert qmp.refusal("query-stats") == "GenericError: Parameter 'target' is missing"
    assert qmp.refusal("query-ept", gpa="0") == "GenericError: Invalid parameter type for 'gpa', expected: integer"
    assert qmp.refusal("query-ept", gpa=True).endswith("expected: integer")
    assert "from 0 to" in qmp.refusal("query-ept", gpa=1 << 48)
    assert "shared or private" in qmp.refusal("query-ept", space="public")
    assert qmp.refusal("query-status", vm="b") == "GenericError: ENOENT: there is no VM b: create it with 'vm b'"
    assert qmp.refusal("query-stats", target="vcpu", vcpus=["/x"]).startswith("DeviceNotFound: Device '/x' not found")
    assert "--trace FILE" in qmp.refusal("trace-event-set-state", name="kvm*", enable=True)
    assert qmp.value("trace-event-set-state", name="kvm*", enable=True, ignore_unavailable=True) == {}


def test_events_of_a_trace_are_switched_while_the_vm_runs(do: Lines, qmp: Raw, tmp_path: Path) -> None:
    path = tmp_path / "trace"

    def write(number: int, name: str, *, enable: bool) -> None:
        assert qmp.value("trace-event-set-state", name=name, enable=enable) == {}
        do.ok(f"write {number << 12:#x} 01")

    with tracing(path, ("kvm:kvm_page_fault", "fault_address >= 0x2000")) as trace:
        do.executor.switch_events = trace.switch
        write(0, "kvmsim_installed", enable=True)
        write(2, "*", enable=False)
        write(3, "kvm_page_fault", enable=True)
        write(1, "kvmsim:kvmsim_send", enable=True)
        assert "EINVAL: no event 'nothing'" in qmp.refusal("trace-event-set-state", name="nothing", enable=True)
        assert "as long as" in qmp.refusal("trace-event-set-state", name="x" * 1000, enable=True)
    seen = [line.split(": ", 1) for line in events(path)]
    kinds = [name for name, _ in seen if name != "kvmsim_send"]
    assert kinds == ["kvmsim_installed", "kvm_page_fault"], "and the filter of -e holds"
    assert "address 0x0000000000003000" in seen[1][1]


def test_the_negotiation_comes_first(do: Lines, tmp_path: Path) -> None:
    with monitored(do.executor, tmp_path / "qmp"), closing(Raw(tmp_path / "qmp")) as raw:
        raw.receive()
        assert raw.refusal("query-status").startswith("CommandNotFound: Expecting capabilities negotiation")
        assert "no capabilities" in raw.refusal("qmp_capabilities", enable=["oob"])
        assert raw.value("qmp_capabilities", enable=[]) == {}


def test_mapped_runs_come_in_pages(do: Lines, qmp: Raw) -> None:
    for page in (0, 1, 2, 5, 9):
        do.ok(f"write {page * 4096:#x} 01")
    whole = qmp.value("query-ept")
    assert [(run["gpa"], run["size"]) for run in whole["mappings"]] == [(0, 0x3000), (0x5000, 0x1000), (0x9000, 0x1000)]
    assert "next" not in whole
    first = qmp.value("query-ept", limit=2)
    assert first["mappings"] == whole["mappings"][:2]
    rest = qmp.value("query-ept", gpa=first["next"], limit=2)
    assert rest == {"mappings": whole["mappings"][2:]}
    assert qmp.value("query-ept", space="shared") == {"mappings": []}


def test_memslots_come_in_pages(do: Lines, qmp: Raw) -> None:
    for number in range(1, MAX_QMP_PAGE + 10):
        do.ok(f"slot set {number} shared gpa={number * 2 << 30} size=4K")
    do.ok("slot punch 0 gpa=4K size=4K")
    first = qmp.value("query-memslots")
    assert (len(first["slots"]), first["total"], first["next"]) == (MAX_QMP_PAGE, MAX_QMP_PAGE + 10, MAX_QMP_PAGE)
    rest = qmp.value("query-memslots", **{"from": first["next"]})
    assert len(rest["slots"]) == 10 and "next" not in rest
    private = rest["slots"][-1]
    assert (private["id"], private["space"], private["segments"]) == (
        0,
        "private",
        [{"gpa": 0, "size": 4096}, {"gpa": 8192, "size": 256 * 1024 - 8192}],
    )


def test_statistics_have_a_schema_for_every_value(do: Lines, qmp: Raw) -> None:
    do.ok("write 0 01", "vcpu 1")
    schemas = {schema["target"]: schema["stats"] for schema in qmp.value("query-stats-schemas")}
    (vm,) = qmp.value("query-stats", target="vm")
    assert [stat["name"] for stat in vm["stats"]] == [stat["name"] for stat in schemas["vm"]]
    values = {stat["name"]: stat["value"] for stat in vm["stats"]}
    assert (values["pf_fixed"], values["private_leaves"]) == (1, 1)
    kinds = {stat["name"]: stat["type"] for stat in schemas["vm"]}
    assert (kinds["pf_fixed"], kinds["private_leaves"], kinds["zapped_4k"]) == ("cumulative", "instant", "cumulative")
    both = qmp.value("query-stats", target="vcpu")
    assert [one["qom-path"] for one in both] == ["/machine/vcpu[0]", "/machine/vcpu[1]"]
    only = [{"provider": "kvm", "names": ["kicks"]}]
    (one,) = qmp.value("query-stats", target="vcpu", vcpus=["/machine/vcpu[1]"], providers=only)
    assert one == {"provider": "kvm", "qom-path": "/machine/vcpu[1]", "stats": [{"name": "kicks", "value": 0}]}
    assert "give" in qmp.refusal("query-stats", target="vm", providers=[{"provider": "cryptodev"}])


@pytest.mark.parametrize("topic", [*INFO_TOPICS, "ept 0x1000", "ept 0x8000000001000"])
def test_a_person_sees_what_info_shows(topic: str, do: Lines, qmp: Raw) -> None:
    do.ok("write 0 01")
    text = qmp.value("human-monitor-command", command_line=f"info {topic}")
    if topic != "stats":  # counts the messages of the question before
        assert text.splitlines() == do.ok(f"info {topic}").text.splitlines()
    assert text.endswith("\r\n")


def test_a_walk_is_of_its_gpa_and_its_vm(do: Lines, qmp: Raw) -> None:
    do.ok("write 0x3000 01")
    walk = qmp.value("human-monitor-command", command_line="info ept 0x3000")
    assert "private, gpa 0x3000" in walk and "4K WB, pfn 0x0 at this gpa" in walk
    assert "4K WB" not in qmp.value("human-monitor-command", command_line="info ept 0x2000")
    do.ok("vm b")
    assert "4K WB" in qmp.value("human-monitor-command", command_line="info ept 0x3000 vm=vm0")
    assert "4K WB" not in qmp.value("human-monitor-command", command_line="info ept 0x3000 vm=b")
    assert "no GPA" in qmp.refusal("human-monitor-command", command_line="info mmu 0x3000")
    assert "EFAULT" in qmp.refusal("human-monitor-command", command_line="info ept 0x7fffffffff000000")


def test_a_person_can_only_look(qmp: Raw) -> None:
    assert "only looks" in qmp.refusal("human-monitor-command", command_line="write 0 01")
    assert "column 6" in qmp.refusal("human-monitor-command", command_line="info nonsense")
    assert qmp.value("human-monitor-command", command_line="help").startswith("info TOPIC")
    assert "info slots\r\n" in qmp.value("human-monitor-command", command_line="info")
    assert qmp.refusal("human-monitor-command", command_line="info slots vm=b").startswith("GenericError: ENOENT")


def test_all_vms_are_listed_and_each_can_be_asked(do: Lines, qmp: Raw) -> None:
    do.ok("vm b", "slot set 3 shared gpa=0 size=4K")
    assert [(vm["vm"], vm["current"], vm["slots"]) for vm in qmp.value("query-vms")] == [
        ("vm0", False, 1),
        ("b", True, 1),
    ]
    assert qmp.value("query-memslots")["slots"][0]["space"] == "shared"
    assert qmp.value("query-memslots", vm="vm0")["slots"][0]["space"] == "private"
    qmp.value("stop", vm="vm0")
    assert [vm["running"] for vm in qmp.value("query-vms")] == [False, True]
    qmp.value("cont")


def test_the_monitor_knows_itself(qmp: Raw, tmp_path: Path) -> None:
    facts = qmp.value("query-monitor")
    assert (facts["sockets"], facts["clients"], facts["events-dropped"]) == ([str(tmp_path / "qmp")], 1, 0)
