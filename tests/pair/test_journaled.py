"""Real exchanges of both sides, with everything at once, keep the rules that kvmsim journal check knows."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import memfsd.peers.session
import memfsd.store.invalidator
from kvmsim.instruments.journal.check import check
from kvmsim.kvm.alias import PRIVATE
from kvmsim.kvm.mmu.ept import Ept
from kvmsim.kvm.notifier import Notifier
from memfsd.peers.upchannel import UpChannel
from memfsd.uapi.errors import Refused
from memfsd.uapi.messages import Kind
from memfsd.uapi.units import Gfn
from tests.support.both_sides import LocalStore, LocalVm, page
from tests.support.journaled import read_lines, record_run, recording
from tests.support.threads import DEADLINE_S, Beside, over_and_over, until


def together(store: LocalStore, one: LocalVm, two: LocalVm) -> None:
    """Faults of two vCPUs, conversions, punches, reclaim and checks, side by side."""

    def guest(local: LocalVm, vcpu: int) -> Callable[[random.Random], object]:
        return lambda dice: local.guest.write(local.vm.vcpu(vcpu), page(16 + dice.randrange(16)), b"x" * 5000)

    def convert(local: LocalVm) -> Callable[[random.Random], object]:
        def step(dice: random.Random) -> None:
            at = 16 + dice.randrange(15)
            local.vmm.memory.punch_slot(0, page(at), page(2))
            for gfn in (at, at + 1):
                if local.vm.slots[PRIVATE].lookup(Gfn(gfn)) is None:
                    local.vmm.memory.fill_slot(0, Gfn(gfn), Gfn(gfn + 1))

        return step

    for local in (one, two):
        local.vm.create_vcpu(1)
    steps = [guest(one, 0), guest(one, 1), guest(two, 0), convert(one), convert(two)]
    steps += [
        lambda dice: store.punch("one", dice.randrange(15), 2),
        lambda dice: store.punch("two", dice.randrange(15), 2),
    ]
    with over_and_over(steps, 3):
        for _ in range(20):
            assert store.findings() == []
            store.reclaim()
    one.close()
    two.close()


def test_everything_at_once_keeps_all_rules(tmp_path: Path) -> None:
    journals = [str(path) for path in record_run(tmp_path, together)]
    for files in (journals, journals[:1], journals[1:]):
        verdict = check(files)
        assert (verdict.rule, verdict.where, verdict.why) == ("", "", "")
    assert verdict.message_count > 500


def test_both_sides_record_the_same_messages(tmp_path: Path) -> None:
    def run(store: LocalStore, one: LocalVm, two: LocalVm) -> None:
        one.touch(page(16), page(16))
        store.punch("one", 3, 5)
        one.close()
        two.close()
        until(lambda: not store.invalidator.peers, "the store has settled their ends, and revokes nothing")

    store, vm = record_run(tmp_path, run)

    def seen(path: Path, sent: bool) -> list[str]:
        return sorted(
            repr((line["ino"], line["channel"], line["kind"], line["id"], line["reply"], line["errno"], line["body"]))
            for line in read_lines(path)
            if line["type"] == "message" and line["sent"] is sent and line["ino"] >= 0
        )

    assert seen(store, True)[1:] == seen(vm, False)[1:]
    assert seen(store, False) == seen(vm, True)


def test_large_leaves_are_installed_and_zapped_in_the_journal_as_they_are(tmp_path: Path) -> None:
    """2 MiB leaves: one note for what one fault maps, and a punch of a whole one; a hole in the slot splits another."""
    paths = tmp_path / "store.journal", tmp_path / "vm.journal"
    with recording(paths[0], "memfsd"), recording(paths[1], "kvmsim"):
        store = LocalStore(tmp_path, 4096)
        store.create("large", 2048, page_size="2M")
        local = store.vm("vm")
        local.private_slot(0, 0, page(2048), "large")
        assert local.touch(0, page(2048)) is None
        store.punch("large", 512, 512)
        assert local.touch(page(300), page(600)) is None
        local.vmm.memory.punch_slot(0, page(1100), page(3))
        assert local.touch(page(1024), page(76)) is None
        assert store.findings() == []
        local.close()
        store.close()
    verdict = check([str(path) for path in paths])
    assert (verdict.rule, verdict.where, verdict.why) == ("", "", "")
    installed = [line["data"] for line in read_lines(paths[1]) if line.get("what") == "installed"]
    assert any(data["pages"] >= 512 and data["pages"] % 512 == 0 and data["gfn"] % 512 == 0 for data in installed)


def test_a_large_page_that_splits_keeps_all_rules_and_so_does_a_vm_that_cannot(tmp_path: Path) -> None:
    paths = tmp_path / "store.journal", tmp_path / "vm.journal"
    with recording(paths[0], "memfsd"), recording(paths[1], "kvmsim"):
        store = LocalStore(tmp_path, 4096, split=True)
        for name, tables in (("one", 1 << 10), ("two", 4)):
            store.create(name, 512, page_size="2M")
            local = store.vm(name)
            local.vm.mmu.epts = Ept(), Ept(tables)
            local.private_slot(0, 0, page(512), name)
            assert local.touch(0, page(512)) is None
        store.punch("one", 100, 3)
        with pytest.raises(Refused, match="cannot split its mapping"):
            store.punch("two", 100, 3)
        for local in store.vms:
            assert local.touch(0, page(512)) is None
        store.punch("one", 7, 300)
        store.punch("two", 0, 512)
        assert store.findings() == []
        for local in store.vms:
            local.close()
        store.close()
    for files in ([str(path)] for path in paths):
        verdict = check(files)
        assert (verdict.rule, verdict.where, verdict.why) == ("", "", "")
    assert check([str(path) for path in paths]).rule == ""


CHILD = """
import sys, time
from pathlib import Path
from kvmsim.cpu.accesses import Guest
from kvmsim.kvm.kvm import Kvm
from kvmsim.kvm.region import MemoryRegion
from kvmsim.kvm.vm import Vm
from kvmsim.store import link
from memfsd.uapi.proof import split_token
from tests.support.journaled import recording

path, socket_path, token, journal_path = sys.argv[1:]

def pair(fd, vm, callbacks):
    return link.StoreLink(fd, link._connect(socket_path), split_token(bytes.fromhex(token)), vm, callbacks)

with recording(Path(journal_path), "kvmsim"):
    kvm = Kvm(Vm("child"), pair)
    kvm.slots.set_private_slot(MemoryRegion.private(0, 0, 16 << 12), path)
    assert Guest(kvm).write(kvm.vm.vcpu(0), 0, b"x" * 65536) is None
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_death_and_a_silence_in_the_middle_keep_all_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(memfsd.peers.session, "UpChannel", _impatient)
    store_path, vm_path = tmp_path / "store.journal", tmp_path / "vm.journal"
    with recording(store_path, "memfsd"):
        store = LocalStore(tmp_path, 64)
        store.create("file", 16)
        command = [
            sys.executable,
            "-c",
            CHILD,
            store.path("file"),
            store.socket_path,
            b"".join(store.token("file")).hex(),
        ]
        child = subprocess.Popen(
            [*command, str(vm_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{child.pid}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the VM stands still")
        punch = Beside(lambda: store.punch("file", 0, 8))
        until(lambda: store.guest("file").open_invalidation is not None, "the bracket opens")
        child.send_signal(number)
        with contextlib.suppress(Refused):
            punch.result()
        child.kill()
        child.communicate(timeout=DEADLINE_S)
        until(lambda: store.free_count == 64, "all frames come back")
        store.close()
    for files in ([store_path, vm_path], [store_path], [vm_path]):
        verdict = check([str(path) for path in files])
        assert (verdict.rule, verdict.why) == ("", "")
    notes = [line["what"] for line in read_lines(store_path) if line["type"] == "note"]
    assert ("cut" in notes) is (number is signal.SIGSTOP)
    assert "gone" in notes


def _impatient(sock: socket.socket) -> UpChannel:
    return UpChannel(sock, 0.3)


def test_an_acknowledgement_before_the_zap_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in KVM itself, not in the journal: what the notes tell is what is done."""

    def forgetful(self: Notifier, link: object, begin: object) -> list[tuple[int, int]]:
        return []

    def run(store: LocalStore, one: LocalVm, two: LocalVm) -> None:
        one.touch(page(16), page(4))
        monkeypatch.setattr(Notifier, "on_begin", forgetful)
        store.punch("one", 0, 4)
        monkeypatch.undo()
        one.close()
        two.close()

    journals = [str(path) for path in record_run(tmp_path, run)]
    assert check(journals).rule == "acknowledged"


def test_a_frame_freed_before_the_acknowledgement_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in the store: it does not wait."""
    real = UpChannel.call

    def late(self: UpChannel, kind: Kind, body: object, reply: type) -> object:
        if kind is Kind.INVALIDATE_BEGIN:
            from memfsd.uapi.errors import PeerLost

            raise PeerLost("as if it were dead")
        return real(self, kind, body, reply)  # type: ignore[arg-type]

    def run(store: LocalStore, one: LocalVm, two: LocalVm) -> None:
        one.touch(page(16), page(4))
        monkeypatch.setattr(UpChannel, "call", late)
        monkeypatch.setattr(memfsd.store.invalidator.Invalidator, "disconnect", lambda *_: None)
        with contextlib.suppress(Refused):
            store.punch("one", 0, 4)
        monkeypatch.undo()
        one.close()
        two.close()

    journals = [str(path) for path in record_run(tmp_path, run)]
    assert check(journals[:1]).rule == "freed"
    assert os.path.getsize(journals[0]) > 0
