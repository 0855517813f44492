"""Seeded bugs: each is a line or two of the real code, changed while a test runs and in no other way.

The function's source is taken, edited, compiled in its own module and put in its place. An edit whose line is not
there exactly once is an error, so that no mutant silently becomes the code itself.
"""

import contextlib
import importlib
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """scenarios: where it is looked for, in this order."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    """(module:Class.method, what is there, what takes its place)"""
    scenarios: tuple[str, ...]
    random_runs: int = 300
    """After every order was tried as far as there is time."""


def _mutant(name: str, where: str, *edits: tuple[str, str], at: str, random_runs: int = 300) -> Mutant:
    return Mutant(name, tuple((where, old, new) for old, new in edits), tuple(at.split()), random_runs)


_FAULTS = "kvmsim.kvm.faults:Faults"
_CALLBACKS = "kvmsim.kvm.notifier:Notifier"
_SLOTS = "kvmsim.kvm.ioctls:SlotIoctls"
_ENGINE = "kvmsim.cpu.x86.engine:Engine"
_MMU = "kvmsim.kvm.mmu.mmu:Mmu"
_INVALIDATOR = "memfsd.store.invalidator:Invalidator"
_RELOCATOR = "kvmsim.kvm.relocator:Relocator"
_PAIRED = "memfsd.store.pairings:PairedFile"
_SWAPPER = "memfsd.store.swapper:Swapper"
_GMEM = "memfsd.core.gmem:GuestMemory"
_UNMAPPER = "kvmsim.kvm.unmapper:Unmapper"

_MEMFDS = "memfsd.store.guest_memfds:GuestMemfds"
_GUEST_MEMFDS = "kvmsim.kvm.guest_memfds:GuestMemfds"
_LINK = "kvmsim.store.link:StoreLink"
_PAGES = "memfsd.core.memory.page_table:FilePages"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "page map closed after BEGIN",
        (
            (f"{_GMEM}.invalidate_begin", "            guest.page_map.close(guest.seq)\n", "            pass\n"),
            (
                f"{_GMEM}.take",
                "        assert closing is not None\n",
                "        assert closing is not None\n"
                "        if guest.page_map is not None:\n"
                "            guest.page_map.close(guest.seq)\n",
            ),
        ),
        ("map-x-bind",),
        random_runs=1200,
    ),
    _mutant(
        "page map not cleared",
        f"{_PAGES}._unmap_page",
        ("            self.published.hide(pgoff, 1)\n", "            pass\n"),
        at="map-x-punch",
    ),
    _mutant(
        "page map not cleared when pages move",
        f"{_PAGES}.unmap",
        ("                self.published.hide(pgoff, count)\n", "                pass\n"),
        at="map-x-reclaim map-x-move",
    ),
    _mutant(
        "page map read without the staleness test",
        f"{_MMU}.install",
        (
            "if (self.in_progress or page_fault.seq != self.invalidate_seq) and self.is_stale(page_fault, count):",
            "if False:",
        ),
        at="map-x-punch",
    ),
    _mutant(
        "page map read whatever its gate says",
        "kvmsim.store.page_map:PageMap.lookup",
        ("if pgoff >= self.page_count or self.words[GATE] != seq << 1:", "if pgoff >= self.page_count:"),
        at="map-x-bind",
        random_runs=1200,
    ),
    _mutant(
        "page map of a lost store read",
        f"{_LINK}.find",
        ("if page_map is None or self.lost:", "if page_map is None:"),
        at="map-x-death-of-the-store",
    ),
    _mutant(
        "copied while a vCPU is inside",
        f"{_CALLBACKS}.on_move",
        ("self._unmapper.kick_all()", "pass"),
        at="move-x-fault",
    ),
    _mutant(
        "shown at END where it was",
        f"{_RELOCATOR}._relocate",
        ("blocked.add((gfn, pfn + delta, count)", "blocked.add((gfn, pfn, count)"),
        at="move-x-fault",
    ),
    _mutant(
        "contents not copied",
        f"{_RELOCATOR}._copy",
        ("link.memory.move(piece.source, piece.target, piece.page_count)", "pass"),
        at="move-x-fault",
    ),
    _mutant(
        "a page that was taken away meanwhile counts as moved",
        f"{_RELOCATOR}._relocate",
        ("if blocked.runs(piece.gfn, end) != piece.known:", "if False:"),
        at="move-x-unbind",
    ),
    _mutant(
        "old frames freed before the acknowledgement of a move",
        f"{_INVALIDATOR}.invalidate_held",
        (
            "                answer, failure = self._begin(peer, closing)\n",
            "                if closing.strategy.reason == 3:\n"
            "                    from memfsd.uapi.messages import MoveReply\n"
            "                    self._take(file, closing, MoveReply([]))\n"
            "                answer, failure = self._begin(peer, closing)\n",
        ),
        at="move-x-fault",
    ),
    _mutant(
        "sequence read after the lookup",
        f"{_FAULTS}._install",
        (
            "        mmu.lock.acquire()\n",
            '        page_fault = __import__("msgspec").structs.replace(page_fault, seq=mmu.invalidate_seq)\n'
            "        mmu.lock.acquire()\n",
        ),
        at="fault-x-punch",
    ),
    _mutant(
        "stale check left out",
        f"{_MMU}.install",
        (
            "if (self.in_progress or page_fault.seq != self.invalidate_seq) and self.is_stale(page_fault, count):",
            "if False:",
        ),
        at="fault-x-punch",
    ),
    _mutant(
        "stale check blind for an open invalidation",
        f"{_MMU}.is_stale",
        ("return self.in_progress > 0 and", "return False and"),
        at="fault-x-punch",
    ),
    _mutant(
        "stale check blind for a sequence that moved",
        f"{_MMU}.is_stale",
        ("if page_fault.seq != self.invalidate_seq:", "if False:"),
        at="fault-x-punch",
    ),
    _mutant(
        "stale check without the lock",
        f"{_FAULTS}._install",
        (
            "            if not (mmu.install_large(page_fault, pfn, count, order) if order else "
            "mmu.install(page_fault, pfn, count)):\n",
            "            mmu.lock.release()\n"
            "            installed = mmu.install(page_fault, pfn, count)\n"
            "            mmu.lock.acquire()\n"
            "            if not installed:\n",
        ),
        at="fault-x-punch",
    ),
    Mutant(
        "acknowledgement before the zap",
        (
            (
                f"{_CALLBACKS}.on_begin",
                "                        runs = mmu.zap(gfn, gfn + count, private=bool(alias))\n",
                "                        runs = list[Run]()\n",
            ),
            (
                f"{_CALLBACKS}.on_end",
                "            if self._open.pop(link, None) is not None:\n",
                "            if (late := self._open.pop(link, None)) is not None:\n"
                "                self._vm.mmu.zap(*late, private=True)\n",
            ),
        ),
        ("access-x-punch",),
    ),
    _mutant(
        "acknowledgement while a vCPU is inside",
        f"{_CALLBACKS}.on_begin",
        ("self._unmapper.kick_all()", "pass"),
        at="access-x-punch",
    ),
    _mutant(
        "acknowledgement while machine code is inside",
        f"{_CALLBACKS}.on_begin",
        ("self._unmapper.kick_all()", "pass"),
        at="code-x-punch",
    ),
    _mutant(
        "TLB of machine code kept over a kick",
        f"{_ENGINE}.enter",
        ("            self.flush()\n", "            pass\n"),
        at="code-x-punch",
    ),
    _mutant(
        "TLB of machine code kept when its data moves",
        f"{_ENGINE}.enter",
        ("            self.flush()\n", "            pass\n"),
        at="code-x-move",
    ),
    _mutant(
        "translated code kept over a kick",
        f"{_ENGINE}.enter",
        ("            self.flush()\n", "            self.flush_tlb()\n"),
        at="code-x-punch",
    ),
    _mutant(
        "decrypted copies not written back",
        "kvmsim.cpu.x86.decrypted:Copies.write_back",
        ("            if self._state.copies[at].dirty:\n", "            if False:\n"),
        at="encrypted-code-x-punch",
    ),
    _mutant(
        "decrypted copies kept out of guest mode",
        "kvmsim.cpu.x86.decrypted:Copies.write_back",
        ("        if not self._homes:\n", "        if not self.is_full:\n"),
        at="encrypted-code-x-punch",
    ),
    _mutant(
        "a page that is unmapped while it moves counts as mapped",
        f"{_RELOCATOR}._relocate",
        ("            link.memory.moved(piece.source, piece.target, piece.page_count)\n", "            pass\n"),
        at="encrypted-convert-x-move",
    ),
    _mutant(
        "END left out",
        f"{_INVALIDATOR}.invalidate_held",
        ("self._end(peer, closing, seq)", "pass"),
        at="fault-x-punch",
    ),
    _mutant(
        "END twice",
        f"{_INVALIDATOR}.invalidate_held",
        ("self._end(peer, closing, seq)", "self._end(peer, closing, seq), self._end(peer, closing, seq)"),
        at="fault-x-punch",
    ),
    _mutant(
        "END twice, in the VM",
        f"{_CALLBACKS}.on_end",
        ("self._vm.mmu.invalidate_end()", "self._vm.mmu.invalidate_end(), self._vm.mmu.invalidate_end()"),
        at="fault-x-punch",
    ),
    _mutant(
        "bindings changed between BEGIN and END: bind",
        f"{_PAIRED}.bind",
        ("with self._invalidator.hold(guest_of(file)), self._service.lock:", "with self._service.lock:"),
        at="punch-x-bind",
    ),
    _mutant(
        "bindings changed between BEGIN and END: unbind",
        f"{_PAIRED}.unbind",
        ("with self._invalidator.hold(guest_of(file)):", "if True:"),
        at="punch-x-unbind",
    ),
    _mutant(
        "invalidate_lock forgotten by an invalidation",
        f"{_INVALIDATOR}.invalidate",
        ("with self.hold(guest_of(file)):", "if True:"),
        at="punch-x-punch",
    ),
    _mutant(
        "frame freed before the acknowledgement",
        f"{_INVALIDATOR}.invalidate_held",
        ("answer, failure = self._begin(peer, closing)", "pass"),
        (
            "        finally:\n",
            "            if peer is not None:\n"
            "                answer, failure = self._begin(peer, closing)\n"
            "        finally:\n",
        ),
        at="access-x-punch",
    ),
    _mutant(
        "a punch that is answered and takes nothing",
        "memfsd.store.files:Files._work",
        ("if taken is None:", "if True:"),
        at="access-x-punch",
    ),
    _mutant(
        "half-open range off by one: what a punch takes",
        "memfsd.store.files:Files._work",
        (
            "InvalidateRange(Ino(ino), *taken, strategy, size, now)",
            "InvalidateRange(Ino(ino), taken[0], taken[1] - 1, strategy)",
        ),
        at="access-x-punch",
    ),
    _mutant(
        "frame not zeroed",
        "memfsd.host.effect_runner:EffectRunner._scrub",
        ("self._windows.punch(effect.window, effect.runs)", "pass"),
        at="access-x-punch",
    ),
    _mutant(
        "TLB flush forgotten",
        f"{_MMU}._flush",
        ("if not removed:", "if True:"),
        at="access-x-punch",
    ),
    _mutant(
        "quarantine skipped",
        f"{_INVALIDATOR}.end_or_disconnect",
        ("self.disconnect(peer, str(lost))", "peer.hang_up()"),
        at="punch-x-silence",
    ),
    _mutant(
        "death counted before it is proven, by a punch",
        f"{_INVALIDATOR}.end_or_disconnect",
        ("if peer.said_bye or peer.process.wait_dead(patience):", "if True:"),
        at="punch-x-silence",
    ),
    _mutant(
        "death counted before it is proven, by a session",
        f"{_PAIRED}.connection_lost",
        (
            "if not peer.said_bye and not peer.process.wait_dead(self._pairings.deadlines.proof_s, stop_fd):",
            "if False:",
        ),
        at="punch-x-cut",
    ),
    _mutant(
        "paired again while BYE is carried out",
        "memfsd.store.pairings:Pairings.pair",
        ("with self.invalidator.hold(guest_of(file)), service.lock:", "with service.lock:"),
        at="bye-x-pair",
    ),
    _mutant(
        "half-open range off by one: what a BEGIN zaps",
        f"{_CALLBACKS}.on_begin",
        ("self._shown(link, begin.start, begin.end)", "self._shown(link, begin.start, begin.end - 1)"),
        at="access-x-punch",
    ),
    _mutant(
        "half-open range off by one: what is stale, at its end",
        f"{_MMU}.is_stale",
        ("page_fault.gfn < self.range_end", "page_fault.gfn < self.range_end - 1"),
        at="fault-x-punch",
    ),
    _mutant(
        "half-open range off by one: what is stale, at its start",
        f"{_MMU}.is_stale",
        ("self.range_start < page_fault.gfn + count", "self.range_start + 1 < page_fault.gfn + count"),
        at="fault-x-punch",
    ),
    _mutant(
        "BEGIN overtakes a slot that goes away",
        f"{_CALLBACKS}._shown",
        ("wait_for(lambda: not self._unmapper.is_deleting, ACK_DEADLINE_S)", "wait_for(lambda: True, ACK_DEADLINE_S)"),
        at="end-x-punch convert-x-punch",
    ),
    _mutant(
        "a page visible before it is bound",
        f"{_SLOTS}.fill_slot",
        (
            "with self._pairings.announce_change(slot), self._unmapper.hold_off_faults(start, end):",
            "with self._pairings.announce_change(slot):",
        ),
        at="fault-x-bind",
    ),
    _mutant(
        "a refusal believed of a slot that is gone",
        f"{_FAULTS}._not_granted",
        ("if (stale or number == errno.EAGAIN)", "if (number == errno.EAGAIN)"),
        at="fault-x-unbind",
    ),
    _mutant(
        "a page whose frame failed gets another one",
        f"{_GMEM}.get_pfn",
        ("if guest.absent.count:", "if False:"),
        at="poison-x-fault",
    ),
    _mutant(
        "a frame that failed is used again",
        "memfsd.core.private.strategies:Poison.take",
        ("FrameState.POISONED", "FrameState.FREE"),
        at="poison-x-fault",
    ),
    _mutant(
        "a punch does not forget that a frame failed",
        "memfsd.core.private.strategies:Unmap.take",
        ("taking.guest.absent.take(taking.start, taking.end)", "pass"),
        at="poison-x-punch",
    ),
    _mutant(
        "a page fails without its invalidate_lock",
        "memfsd.store.failures:Failures.poison",
        ("with self._invalidator.hold(guest_of(file)):", "if True:"),
        at="poison-x-punch",
    ),
    _mutant(
        "the frame that fails is the one that the page had before the invalidate_lock",
        "memfsd.store.failures:Failures.poison",
        (
            "            with self._invalidator.hold(guest_of(file)):\n",
            "            early = file.pages.lookup(pgoff)\n            with self._invalidator.hold(guest_of(file)):\n",
        ),
        (
            "        assert pfn is not None\n",
            "        if is_sealed and early not in (None, pfn):\n"
            "            from memfsd.uapi.frame_state import FrameState\n"
            "            self._service.pool.set_state(early, 1, FrameState.POISONED)\n"
            "        assert pfn is not None\n",
        ),
        at="poison-x-move",
    ),
    _mutant(
        "a page moves without its invalidate_lock",
        "memfsd.store.mover:Mover.relocate",
        ("with self._invalidator.hold(file.guest, until):", "if True:"),
        at="poison-x-move",
    ),
    _mutant(
        "tags of frames kept that the store takes back",
        f"{_CALLBACKS}.on_begin",
        ("link.memory.forget(pfn - link.base, count)", "pass"),
        at="encrypted-access-x-punch",
    ),
    _mutant(
        "tags forgotten while a vCPU is inside",
        f"{_CALLBACKS}.on_begin",
        (
            "        self._unmapper.kick_all()\n"
            "        # Without Mmu.lock: until the acknowledgement the frames are nobody else's.\n"
            "        for _, pfn, count in taken:\n"
            "            link.memory.forget(pfn - link.base, count)\n",
            "        for _, pfn, count in taken:\n"
            "            link.memory.forget(pfn - link.base, count)\n"
            "        self._unmapper.kick_all()\n",
        ),
        at="encrypted-access-x-punch",
    ),
    Mutant(
        "tags forgotten when the store may have granted the frames again",
        (
            (
                f"{_CALLBACKS}.on_begin",
                "            link.memory.forget(pfn - link.base, count)\n",
                "            self.late = [*getattr(self, 'late', []), (pfn - link.base, count)]\n",
            ),
            (
                f"{_CALLBACKS}.on_end",
                "        with self._vm.mmu.lock:\n",
                "        for frame, count in self.__dict__.pop('late', []):\n"
                "            link.memory.forget(frame, count)\n"
                "        with self._vm.mmu.lock:\n",
            ),
        ),
        ("encrypted-access-x-punch",),
    ),
    _mutant(
        "frames not noted that leave a slot with their contents",
        f"{_UNMAPPER}.unmapped",
        ("memory.unmapped(frame, count)", "pass"),
        at="encrypted-convert-x-punch",
    ),
    _mutant(
        "a device that is removed is still granted",
        "memfsd.core.private.strategies:Revoke.take",
        ("taking.guest.device.is_gone = True", "pass"),
        at="revoke-x-fault",
    ),
    _mutant(
        "a device is removed before its VM has let go of it",
        "memfsd.store.devices:Devices.remove",
        (
            "self._invalidator.invalidate_held(file, InvalidateRange(ino, Pgoff(0), end, REVOKE))",
            "guest.device.is_gone = end > 0",
        ),
        at="revoke-x-fault",
    ),
    _mutant(
        "a device leaves the EPT of its VM only in part",
        "memfsd.store.devices:Devices.remove",
        ("end = Pgoff(file.size >> PAGE_SHIFT)", "end = Pgoff(1)"),
        at="revoke-x-fault",
    ),
    _mutant(
        "stale check of a large leaf left out",
        f"{_MMU}.install_large",
        ("if self.is_stale(run, count):", "if False:"),
        at="split-x-fault",
    ),
    _mutant(
        "stale check of a large leaf for the fault's page alone",
        f"{_MMU}.install_large",
        ("if self.is_stale(run, count):", "if self.is_stale(page_fault, 1):"),
        at="split-x-fault",
    ),
    _mutant(
        "a refused split taken for an acknowledgement",
        f"{_INVALIDATOR}.invalidate_held",
        ("if not closing.is_refused:", "if True:"),
        at="split-x-no-table",
    ),
    _mutant(
        "a bracket that a refused split leaves open",
        f"{_CALLBACKS}.on_begin",
        (
            "                mmu.split_leaves([(gfn, Gfn(gfn + count)) for gfn, _, count in ranges])\n",
            "                mmu.invalidate_begin(ranges[0][0], Gfn(ranges[0][0] + 1))\n"
            "                mmu.split_leaves([(gfn, Gfn(gfn + count)) for gfn, _, count in ranges])\n",
        ),
        at="split-x-no-table",
    ),
    _mutant(
        "swap: blobs are made while a vCPU is inside",
        f"{_CALLBACKS}.on_begin",
        (
            "        self._unmapper.kick_all()\n",
            "        if begin.reason not in _SWAPS:\n            self._unmapper.kick_all()\n",
        ),
        at="swap-out-x-fault",
    ),
    Mutant(
        "swap: pages in use are given away",
        (
            (f"{_MMU}.block", "self._unmap(start, end, True)", "self.epts[PRIVATE].runs(start, end)"),
            (
                f"{_MMU}.exportable",
                "subtract(run[0], run[0] + run[2], mapped)",
                "subtract(run[0], run[0] + run[2], [])",
            ),
        ),
        ("swap-out-x-fault",),
    ),
    _mutant(
        "swap: a page that is out is a hole",
        f"{_GMEM}._until_absent",
        ("            raise SwappedOut(pgoff)\n", "            guest.absent.take(pgoff, pgoff + 1)\n"),
        at="swap-in-x-fault",
    ),
    _mutant(
        "swap: a large frame is granted where a part of the large page is out",
        f"{_GMEM}._is_fresh",
        (" and not (guest.absent and guest.absent.first(first, last) < last)", ""),
        at="swap-large-x-fault",
    ),
    _mutant(
        "swap: a punch leaves what is out",
        "memfsd.core.private.strategies:Unmap.take",
        ("        taking.guest.absent.take(taking.start, taking.end)\n", "        pass\n"),
        at="swap-in-x-punch",
    ),
    _mutant(
        "swap: KVM does not forget what was punched",
        f"{_CALLBACKS}.on_begin",
        ("if self._vm.exports.by_gfn and begin.reason in _TAKES_AWAY:", "if False:"),
        at="swap-in-x-punch",
    ),
    _mutant(
        "swap: a page comes in without the invalidate_lock",
        f"{_SWAPPER}.swap_in",
        ("        with self._invalidator.hold(guest_of(file)):\n", "        if True:\n"),
        at="swap-in-x-punch",
    ),
    _mutant(
        "swap: a hole in a slot leaves what is out",
        f"{_SLOTS}._retire",
        ("            self._vm.exports.destroy(segments)\n", "            pass\n"),
        at="swap-x-unbind",
    ),
    _mutant(
        "swap: what is destroyed while it comes in stays",
        "kvmsim.kvm.swap:Swap._settle",
        ("            if version is not None:\n", "            if True:\n"),
        at="swap-x-unbind",
    ),
    _mutant(
        "swap: what came in is not known to be there",
        "kvmsim.kvm.swap:Swap._settle",
        ("            self._vm.mmu.blocked.add(", "            (lambda *_: None)("),
        at="swap-x-unbind",
    ),
    _mutant(
        "swap: frames are free before the pages have left the file",
        f"{_GMEM}.swapped_out",
        ("            taken = file.pages.unmap(pgoff, Pgoff(pgoff + 1))\n", "            taken = [(pgoff, pfn, 1)]\n"),
        at="swap-out-x-fault",
    ),
    _mutant(
        "attribute read after get_pfn, and after the staleness test",
        f"{_FAULTS}.fault",
        ("            if vm.rules.asks_file:\n", "            if False:\n"),
        (
            "                if self._install(vcpu, page_fault, found):\n",
            "                if self._install(vcpu, page_fault, found):\n"
            "                    if vm.rules.asks_file:\n"
            "                        allowed = self._as_the_file_says(page_fault)\n"
            "                        if isinstance(allowed, MemoryErrorExit):\n"
            "                            return allowed\n",
        ),
        at="inplace-x-fault",
    ),
    _mutant(
        "attribute read before the sequence",
        f"{_FAULTS}._as_the_file_says",
        ("limit=limit, order=order)", "limit=limit, order=order, seq=self._vm.mmu.invalidate_seq)"),
        at="inplace-x-fault",
    ),
    _mutant(
        "attribute stored before the zap, by the VM",
        "kvmsim.kvm.attribute_ioctls:AttributeIoctls.set",
        (
            "                vm.attributes.reserve()\n",
            "                vm.attributes.reserve()\n"
            "                vm.attributes.store(start, end, private=private)\n"
            "                vm.mmu.lock.release()\n"
            "                vm.mmu.lock.acquire()\n",
        ),
        at="attributes-x-two-faults",
    ),
    _mutant(
        "attribute stored before the zap, by the file",
        f"{_MEMFDS}.set_attributes",
        (
            "                if changing is not None:\n",
            "                if changing is not None:\n"
            "                    guest_of(file).memfd.convert(*changing, to_shared=to_shared)\n",
        ),
        at="inplace-x-inplace",
    ),
    _mutant(
        "attributes stored while a vCPU is inside",
        "kvmsim.kvm.attribute_ioctls:AttributeIoctls.set",
        ("            self._unmapper.kick_all()\n", "            pass\n"),
        at="attributes-x-two-faults",
    ),
    _mutant(
        "EAGAIN that changed something",
        f"{_MEMFDS}.set_attributes",
        (
            "        try:\n",
            "        start = asked.offset >> PAGE_SHIFT\n"
            "        guest_of(file).memfd.convert(start, start + (asked.size >> PAGE_SHIFT), to_shared=to_shared)\n"
            "        try:\n",
        ),
        at="inplace-x-silence",
    ),
    _mutant(
        "bound range released at close without zap",
        f"{_GUEST_MEMFDS}._take_private",
        ("                self._unmapper.zap(slot.segments, private=True)\n", "                pass\n"),
        at="release-x-fault",
    ),
    _mutant(
        "shared pages of the file kept until the store has heard that their slot goes",
        f"{_GUEST_MEMFDS}._take_private",
        ("                    self._slots.delete(id_, private=False)\n", "                    pass\n"),
        (
            "            self._pairings.forget(slot, slot.segments)\n",
            "            self._pairings.forget(slot, slot.segments)\n"
            "            self._slots.delete(id_, private=False)\n",
        ),
        at="shared-x-unbind",
    ),
    _mutant(
        "shared pages of the file shown before BEGIN finds their slot",
        f"{_GUEST_MEMFDS}._create",
        ("with self._unmapper.hold_off_faults(slot.gfn, slot.end):", "if True:"),
        at="shared-x-bind",
        random_runs=2000,
    ),
    _mutant(
        "shared pages of a store that is dead",
        f"{_CALLBACKS}.on_lost",
        ("        self._unmapper.zap(shared, private=False)\n", "        pass\n"),
        at="shared-x-death-of-the-store",
    ),
    _mutant(
        "shared pages of the file kept when they are reclaimed",
        f"{_CALLBACKS}.on_begin",
        (", shared=self._shared(link, pgoff, pgoff + count)", ""),
        at="shared-x-reclaim",
    ),
    _mutant(
        "pages that become private stay in the host's page cache",
        "memfsd.core.private.strategies:Convert.take",
        ("            effects.insert(0, ForgetCache(taking.ino, taking.start, taking.end))\n", "            pass\n"),
        at="inplace-x-host-access",
    ),
    _mutant(
        "what a mapping stored is lost when its page becomes private",
        "memfsd.core.host_access:HostAccess.write",
        (
            "closing is not None and closing.start <= pgoff < closing.end\n            if not is_closing and",
            "False\n            if not is_closing and",
        ),
        at="inplace-x-host-access",
    ),
    _mutant(
        "private pages are shown to the host",
        "memfsd.core.host_access:HostAccess.read",
        ("if not memfd.is_shared(first, end):", "if False:"),
        at="inplace-x-host-access",
    ),
)


@contextlib.contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """The code has this bug until the end."""
    with contextlib.ExitStack() as stack:
        for where in dict.fromkeys(where for where, _, _ in mutant.edits):
            stack.enter_context(_edited(mutant, where))
        yield


@contextlib.contextmanager
def _edited(mutant: Mutant, where: str) -> Iterator[None]:
    module_name, _, path = where.partition(":")
    class_name, _, name = path.partition(".")
    module = importlib.import_module(module_name)
    owner = getattr(module, class_name)
    original = owner.__dict__[name]
    lines, _ = inspect.getsourcelines(original)
    # Without its decorator: the points of a hot method are put around whatever is in its place when somebody observes.
    written = "".join(itertools.dropwhile(lambda line: not line.lstrip().startswith("def "), lines))
    indent = len(written) - len(written.lstrip())
    source = textwrap.dedent(written)
    for place, old, new in mutant.edits:
        if place == where:
            old, new = (_dedented(part, indent) for part in (old, new))
            assert source.count(old) == 1, f"{mutant.name}: {old!r} is {source.count(old)} times in {where}"
            source = source.replace(old, new)
    made: dict[str, object] = {}
    exec(compile(source, f"<mutant: {mutant.name}>", "exec"), vars(module), made)
    setattr(owner, name, made[name])
    try:
        yield
    finally:
        setattr(owner, name, original)


def _dedented(part: str, indent: int) -> str:
    """Whole lines of an edit are indented as in the file."""
    lines = part.split("\n")
    return "\n".join(line[indent:] if line.startswith(" " * indent) else line for line in lines)
