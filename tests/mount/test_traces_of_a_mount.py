"""memfsd --trace and kvmsim --trace on a real mount, and what becomes of them on a full disk and in bad places."""

import json
import os
from pathlib import Path

import pytest

from tests.reference.mounts import tmpfs_mount
from tests.support.real_mount import Mount, run, sh
from tests.support.threads import until

SCRIPT = """\
slot set 0 private gpa=0 size=512K file=mnt/vm.mem
touch 0 512K
sh memfs fallocate -p -o 64K -l 64K mnt/vm.mem
touch 0 512K
read 3G 4 shared
expect exit MMIO
"""


def test_a_run_is_traced_on_both_sides(tmp_path: Path) -> None:
    mounted = Mount(tmp_path, "size=16M", "--trace", str(tmp_path / "store.trace"))
    try:
        sh("memfs create mnt/vm.mem --size 1M --guest", tmp_path)
        (tmp_path / "script").write_text(SCRIPT)
        sh("kvmsim run script --trace vm.trace", tmp_path)
        assert mounted.stop() == 0
        report = json.loads(sh("kvmsim trace convert store.trace vm.trace -o out --json", tmp_path))
        assert report["flows"] == 1
    finally:
        mounted.remove()
    store, vm = ((tmp_path / f"{side}.trace").read_text() for side in ("store", "vm"))
    for name in ("memfsd_get_pfn", "memfsd_granted", "memfsd_pool", "memfsd_freed", "memfsd_bind", "memfsd_exited"):
        assert f" {name}: " in store, name
    at = [store.index(f" {what}: ") for what in ("memfsd_invalidate_begin", "memfsd_unmapped", "memfsd_invalidate_end")]
    assert at == sorted(at)
    assert "memfsd_send: channel up kind INVALIDATE_BEGIN" in store
    names = [line.split(": ")[1] for line in vm.splitlines() if "vm0/0-" in line]
    assert names[:4] == ["kvm_entry", "kvm_exit", "kvm_page_fault", "kvm_entry"]
    assert names[-4:] == ["kvm_exit", "kvm_page_fault", "kvm_mmio", "kvm_userspace_exit"]
    assert "kvm_unmap_hva_range: mmu notifier unmap range: 0x10000 -- 0x20000" in vm
    assert "kvmsim_receive: channel up kind INVALIDATE_BEGIN" in vm


def test_only_the_events_asked_for(tmp_path: Path) -> None:
    mounted = Mount(
        tmp_path,
        "size=16M",
        *("--trace", str(tmp_path / "store.trace"), "-e", "memfsd:memfsd_get_pfn", "--filter", "pgoff >= 0x10"),
    )
    try:
        sh("memfs create mnt/vm.mem --size 1M --guest", tmp_path)
        (tmp_path / "script").write_text(SCRIPT)
        sh("kvmsim run script --trace vm.trace -e kvm:kvm_page_fault -f 'gpa >= 0x10000 && gpa < 0x20000'", tmp_path)
        assert mounted.stop() == 0
    finally:
        mounted.remove()
    store = (tmp_path / "store.trace").read_text().splitlines()[2:]
    assert store
    assert all(int(line.split("pgoff ")[1].split()[0], 16) >= 0x10 for line in store)
    vm = (tmp_path / "vm.trace").read_text().splitlines()[2:]
    assert vm
    assert all(" kvm_page_fault: " in line and "address 0x000000000001" in line for line in vm)


def test_a_disk_that_fills_up_ends_the_traces_and_nothing_else(tmp_path: Path) -> None:
    with tmpfs_mount("size=64k") as disk:
        mounted = Mount(tmp_path, "size=16M", "--trace", f"{disk}/store.trace")
        try:
            sh("memfs create mnt/vm.mem --size 1M --guest", tmp_path)
            (tmp_path / "script").write_text(f"sh head -c 1M /dev/zero > {disk}/fill || true\n{SCRIPT}")
            report = run(f"kvmsim run script --trace {disk}/vm.trace", tmp_path)
            assert report.returncode == 2, report.stdout
            warning = "the trace cannot be written and has ended: No space left on device"
            assert report.stdout.count(warning) == 1
            assert "KVM_EXIT_MMIO" in report.stdout, "the script ran on"
            until(lambda: mounted.log.count(warning) == 1, "it is logged once")
            assert mounted.stop() == 0
        finally:
            mounted.remove()


@pytest.mark.parametrize("command", ["memfsd -o size=16M --trace {}/j mnt", "echo | kvmsim run - --trace {}/j"])
def test_a_trace_that_can_not_begin_is_an_error(tmp_path: Path, command: str) -> None:
    (tmp_path / "mnt").mkdir()
    with tmpfs_mount("size=64k") as disk:
        run(f"head -c 1M /dev/zero > {disk}/fill", tmp_path)
        report = run(command.format(disk), tmp_path)
        assert report.returncode == (1 if command.startswith("memfsd") else 2)
        (line,) = report.stdout.splitlines()
        assert "the trace cannot be written: No space left on device" in line
        assert not os.path.ismount(tmp_path / "mnt")
        assert (disk / "j").read_bytes() == b""


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("--trace mnt/t", "trace mnt/t: the mount on {} would hide it"),
        ("--trace t -e nothing", "no event 'nothing'"),
        ("--trace t -e memfsd_pool --filter 'free < x'", "filter 'free < x': column 8: 'x' is no number"),
        ("-e memfsd", "name its file with --trace"),
    ],
)
def test_what_memfsd_refuses(tmp_path: Path, options: str, why: str) -> None:
    (tmp_path / "mnt").mkdir()
    report = run(f"memfsd -o size=16M {options} mnt", tmp_path)
    assert report.returncode == 1
    (line,) = report.stdout.splitlines()
    assert why.format(tmp_path / "mnt") in line.replace("\"'", "'"), line
