"""One VMM, its own process: its vCPUs write, convert and verify until asked to stop, or until the store is gone.

The last line that it prints is a JSON object: what became of it. Started by soaklib.fleet alone.
"""

import contextlib
import ctypes
import errno
import faulthandler
import json
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from memfsd.uapi.errors import EHWPOISON, Refused
from soaklib.kvm import STORE_GONE, Trouble, Vm
from soaklib.ledger import COUNTERS, Ledger, Moments, Over
from soaklib.model import Lost, PageModel, Wrong
from soaklib.pattern import PAGE, Stamp, describe, stamps_of
from soaklib.plan import Plan
from soaklib.programs import Programs

_LOSS_DEADLINE_S = 60.0
_TICK_S = 0.05
_PR_SET_PDEATHSIG = 1


class Vcpu:
    """A guest's program on one vCPU, over the blocks that are its own."""

    def __init__(self, id_: int, plan: Plan, vm: Vm, ledger: Ledger, hazards: Moments, converting: threading.Lock):
        self._id = id_
        self._plan = plan
        self._vm = vm
        self._ledger = ledger
        self._hazards = hazards
        self._converting = converting
        """Held by conversions that endanger other pages, so that hazards come one after the other."""
        self._random = random.Random(f"{plan.seed} vcpu {id_}")
        self.counts: Counter[str] = Counter()
        block_count = plan.page_count // plan.block_pages
        self._blocks = range(id_, block_count, plan.vcpu_count)
        self._shared: dict[int, bool] = {}
        self._models: dict[int, tuple[PageModel, PageModel]] = {}
        for block in self._blocks:
            for page in range(block * plan.block_pages, (block + 1) * plan.block_pages):
                private = PageModel(Stamp(plan.file, page, 0, 0), ledger.moments, hazards)
                self._models[page] = private, PageModel(Stamp(plan.file, page, 1, 0), None, None)
                self._shared[page] = False

    def run(self, others_go_on: threading.Event) -> None:
        """Until the host says stop, or a vCPU has failed."""
        self._verify_everything()
        actions = [(self._write, 40), (self._verify_page, 30), (self._verify_block, 10)]
        if self._plan.policy == "none":
            actions += [(self._look_at_anyone, 10), (self._touch_shared, 2)]
        else:
            actions += [(self._convert, 8), (self._convert_by_touch, 4)]
        choices, weights = zip(*actions, strict=True)
        while not self._ledger.must_stop and others_go_on.is_set():
            self._random.choices(choices, weights)[0]()
        self._verify_everything()

    def outlive_the_store(self) -> None:
        """Once it is gone nothing of it may be read any more."""
        until = time.monotonic() + _LOSS_DEADLINE_S
        private = [page for page, shared in self._shared.items() if not shared]
        pause = threading.Event()
        for page in private:
            while not isinstance(got := self._vm.read(self._id, page, 1, shared=False), Trouble):
                if time.monotonic() > until:
                    raise Wrong(f"page {page:#x} reads as {describe(got)} though the store is gone: {self._vm.lost}")
                pause.wait(0.01)

    # -- actions

    def _write(self) -> None:
        page = self._any_page()
        shared = self._shared[page]
        model = self._models[page][shared]
        before = self._takings_over(page, 1)
        data, written = model.write_begin()
        trouble = self._vm.write(self._id, page, data, shared=shared)
        if trouble is None:
            model.write_end(written)
            self.counts["writes"] += 1
        else:
            self._tolerate(trouble, f"a write of page {page:#x} ({shared=})", before)

    def _verify_page(self) -> None:
        self._verify(self._any_page(), 1)

    def _verify_block(self) -> None:
        """In one access, as far as the pages have the same alias."""
        first = self._random.choice(self._blocks) * self._plan.block_pages
        end = first + self._plan.block_pages
        while first < end:
            count = 1
            while first + count < end and self._shared[first + count] == self._shared[first]:
                count += 1
            self._verify(first, count)
            first += count

    def _verify_everything(self) -> None:
        for block in self._blocks:
            for page in range(block * self._plan.block_pages, (block + 1) * self._plan.block_pages):
                self._verify(page, 1)

    def _verify(self, page: int, count: int) -> None:
        shared = self._shared[page]
        models = [self._models[at][shared] for at in range(page, page + count)]
        before = self._takings_over(page, count)
        ended = [model.read_begin() for model in models]
        got = self._vm.read(self._id, page, count, shared=shared)
        if isinstance(got, Trouble):
            self._tolerate(got, f"a read of pages {page:#x}+{count} ({shared=})", before)
            return
        for index, model in enumerate(models):
            self.counts["taken_pages"] += model.judge(got[index * PAGE : (index + 1) * PAGE], ended[index])
        self.counts["verified_pages"] += count

    def _look_at_anyone(self) -> None:
        """A page of another vCPU: whole, and of this VM and this place, whichever generation."""
        page = self._random.randrange(self._plan.page_count)
        before = self._takings_over(page, 1)
        got = self._vm.read(self._id, page, 1, shared=False)
        if isinstance(got, Trouble):
            self._tolerate(got, f"a read of page {page:#x}", before)
            return
        stamps = stamps_of(got)
        (stamp, *others) = stamps
        if others or (stamp is not None and stamp[:3] != (self._plan.file, page, 0)):
            raise Wrong(f"file {self._plan.file}, private page {page:#x} of another vCPU: holds {describe(got)}")
        self.counts["verified_pages"] += 1

    def _touch_shared(self) -> None:
        """Nobody converts here: an exit."""
        got = self._vm.read(self._id, self._any_page(), 1, shared=True)
        if not isinstance(got, Trouble) or got.errno or got.refused:
            raise Wrong(f"a shared access without a shared slot: {got!r}, not an exit")

    def _convert(self) -> None:
        plan = self._plan
        first = self._random.choice(self._blocks) * plan.block_pages
        count = plan.block_pages
        if plan.page_bytes == PAGE or self._random.random() < 0.3:
            start = self._random.randrange(count)
            first, count = first + start, self._random.randint(1, min(4, count - start))
        private = self._random.random() < 0.5
        self._converted(first, count, private, lambda: self._vm.convert(self._id, first, count, private=private))

    def _convert_by_touch(self) -> None:
        """The guest writes through the other alias, and user space converts."""
        page = self._any_page()
        wanted_shared = not self._shared[page]
        model = self._models[page][wanted_shared]
        data, written = model.write_begin()
        done = self._converted(
            page, 1, not wanted_shared, lambda: self._vm.write(self._id, page, data, shared=wanted_shared)
        )
        if done:
            model.write_end(written)
            self.counts["writes"] += 1

    def _converted(self, first: int, count: int, private: bool, action: Callable[[], Trouble | None]) -> bool:
        """Whether all of it happened. What did happen is asked of the VM, and must agree with what was answered."""
        before = self._takings_over(0, self._plan.page_count)
        with contextlib.ExitStack() as hazard:
            if self._plan.policy == "recreate" and not private:
                hazard.enter_context(self._converting)
                for page in range(first, first + count):
                    if not self._shared[page]:
                        hazard.enter_context(self._hazards.taking(*self._vm.slot_around(page)))
            trouble = action()
        what = f"a conversion of pages {first:#x}+{count} to {'private' if private else 'shared'}"
        was = [self._shared[page] for page in range(first, first + count)]
        now = self._vm.shared_pages(first, count)
        if trouble is not None:
            self._tolerate(trouble, what, before)
            if trouble.refused and now != was:
                raise Wrong(f"{what} was refused, and yet changed them: {trouble.why}")
        elif now != [not private] * count:
            raise Wrong(f"{what} was answered as done, and is not: shared {now}")
        for page, old, new in zip(range(first, first + count), was, now, strict=True):
            if old != new:
                self._shared[page] = new
                private_model, shared_model = self._models[page]
                shared_model.emptied()
                if not self._plan.keeps_private:
                    private_model.emptied()
        return trouble is None

    # -- what is allowed to fail

    def _takings_over(self, first: int, count: int) -> "Over":
        return Over(self._ledger.moments, first, count)

    def _tolerate(self, trouble: Trouble, what: str, takings: "Over") -> None:
        """The pool may be full; what is behind the end of a file that shrinks just now cannot be had, nor a page whose
        frame has failed and that is about to be punched."""
        if trouble.errno in STORE_GONE:
            self._vm.await_loss()
        if self._vm.lost:
            raise Lost(self._vm.lost)
        if trouble.refused:
            self.counts["refused"] += 1
        if trouble.errno == errno.ENOSPC:
            self.counts["pool_full"] += 1
            return
        if trouble.errno == EHWPOISON and takings.met_any():
            self.counts["memory_failures"] += 1
            return
        past_the_end = trouble.errno == (errno.EINVAL if trouble.refused else errno.EFAULT)
        if past_the_end and takings.met_any():
            return
        raise Wrong(f"vCPU {self._id}, {what}: {trouble.why or trouble}")

    def _any_page(self) -> int:
        block = self._random.choice(self._blocks)
        return block * self._plan.block_pages + self._random.randrange(self._plan.block_pages)


class Vmm:
    """The threads of one process."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._ledger = Ledger(Path(plan.ledger), plan.page_count)
        self._failures: list[str] = []
        self._lost = ""
        self._longest_gap_s = 0.0
        self._go_on = threading.Event()
        self._go_on.set()
        self._done = threading.Event()

    def run(self) -> dict[str, object]:
        plan = self._plan
        try:
            vm = Vm(
                plan.name,
                plan.path,
                plan.size_bytes,
                plan.policy,
                plan.under,
                plan.vcpu_count,
                encrypted=plan.encrypted,
            )
        except Refused as refused:
            return {"fate": "refused", "why": refused.reason}
        hazards, converting = Moments.of_pages(plan.page_count), threading.Lock()
        vcpus: list[Vcpu] | list[Programs] = (
            [Programs(plan, vm, self._ledger)]
            if plan.runs_code
            else [Vcpu(id_, plan, vm, self._ledger, hazards, converting) for id_ in range(plan.vcpu_count)]
        )
        ticker = threading.Thread(target=self._tick, args=(vm, vcpus))
        threads = [threading.Thread(target=self._run_vcpu, args=(vcpu,)) for vcpu in vcpus]
        for thread in (ticker, *threads):
            thread.start()
        self._ledger.tell_ready()
        for thread in threads:
            thread.join()
        if self._lost and not self._failures:
            for vcpu in vcpus:
                try:
                    vcpu.outlive_the_store()
                except Wrong as wrong:
                    self._failures.append(str(wrong))
        self._done.set()
        ticker.join()
        vm.close()
        if self._failures:
            return {"fate": "failed", "why": "; ".join(self._failures)}
        fate = "lost" if self._lost else "ended"
        return {"fate": fate, "why": self._lost, "longest_gap_s": self._longest_gap_s}

    def _run_vcpu(self, vcpu: Vcpu | Programs) -> None:
        try:
            vcpu.run(self._go_on)
        except Lost as lost:
            self._lost = str(lost)
        except Wrong as wrong:
            self._failures.append(str(wrong))
        except Exception:
            self._failures.append(traceback.format_exc())
        finally:
            if self._failures or self._lost:
                self._go_on.clear()

    def _tick(self, vm: Vm, vcpus: list[Vcpu] | list[Programs]) -> None:
        ticked = time.monotonic()
        while True:
            last = self._done.wait(_TICK_S)
            ticked, before = time.monotonic(), ticked
            self._longest_gap_s = max(self._longest_gap_s, ticked - before)
            sums: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
            for vcpu in vcpus:
                sums.update(dict(vcpu.counts))
            sums["faults"] = vm.fault_count
            sums["conversions"] = vm.converted_count
            sums["lost_pages"] = vm.lost_page_count
            self._ledger.count(sums)
            if last:
                return


def main() -> int:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    faulthandler.register(signal.SIGUSR1)
    report = Vmm(Plan(**json.loads(sys.argv[1]))).run()
    print(json.dumps(report), flush=True)
    return 1 if report["fate"] == "failed" else 0


if __name__ == "__main__":
    sys.exit(main())
