"""A VM whose memory says where each page came from, and everything that a conversion may change about it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest

from kvmsim.kvm.exits import Exit
from memfsd.uapi.errors import Refused
from tests.support.both_sides import LocalStore, page

PAGES = 16
"""Private pages from GFN 0; page N begins with the byte N + 1."""
WHOLE = [number + 1 for number in range(PAGES)]
DESIGNS = (("recreate", "kept"), ("punch", "kept"), ("overlay", "kept"), ("overlay", "freed"))
STEPS = {"slots": ("set_shared_slot", "delete_slot", "fill_slot"), "blocking": ("hide", "detach", "create_private")}
"""What a design asks of KVM's parts; each may be refused."""


class State(NamedTuple):
    """Slots of both spaces, the store's bindings, the bytes that both aliases show, and frames."""

    slots: Sequence[object]
    bindings: Sequence[object]
    private: list[int | None]
    shared: list[bytes | None]
    free: int
    lost: int


class World:
    def __init__(self, store: LocalStore, policy: str, under: str, max_slots: int = 64) -> None:
        self.store = store
        store.create("file", PAGES)
        self.local = store.vm(max_slots=max_slots)
        self.local.private_slot(0, 0, page(PAGES), "file")
        self.local.vmm.set_policy(policy, under)
        for number in range(PAGES):
            assert self.local.write(page(number), bytes([number + 1])) is None

    def map(self, first: int, pages: int, *, private: bool) -> Exit | None:
        """The explicit request, under the policy."""
        local = self.local
        return local.vmm.run(local.vcpu, lambda: local.guest.map(local.vcpu, page(first), page(pages), private=private))

    def touch(self, number: int, *, shared: bool, data: bytes | None = None) -> object:
        """The implicit request, under the policy: read a byte, or write."""
        local, gpa = self.local, page(number)
        if data is None:
            return local.vmm.run(local.vcpu, lambda: local.read(gpa, 1, shared=shared))
        return local.vmm.run(local.vcpu, lambda: local.write(gpa, data, shared=shared))

    def private_bytes(self) -> list[int | None]:
        """The first byte of each page, None where a private access is an exit."""
        return [_first(self.local.read(page(number), 1)) for number in range(PAGES)]

    def shared_bytes(self) -> list[bytes | None]:
        """Eight bytes of each page, None where a shared access is an exit."""
        found = []
        for number in range(PAGES):
            got = self.local.read(page(number), 8, shared=True)
            found.append(got if isinstance(got, bytes) else None)
        return found

    def state(self) -> State:
        slots = [
            (space.as_id, slot.id, slot.gfn, slot.page_count, slot.flags, slot.pgoff, tuple(slot.segments))
            for space in self.local.vm.slots
            for slot in space
        ]
        private, shared = self.private_bytes(), self.shared_bytes()
        return State(
            slots,
            list(self.store.guest("file").bindings),
            private,
            shared,
            self.store.free_count,
            self.local.vmm.tally.lost_pages,
        )


class Breaker:
    """Refuses the `at`-th of the steps that a conversion asks for (from 0), and then no more."""

    def __init__(self, world: World, patch: pytest.MonkeyPatch) -> None:
        self.world = world
        self._at: int | None = None
        self.count = 0
        kvm = world.local.kvm
        (link,) = kvm.pairings.links.values()
        steps = [(getattr(kvm, part), step) for part, steps in STEPS.items() for step in steps]
        for thing, name in [*steps, (link, "punch"), (link, "bind"), (link, "unbind")]:
            patch.setattr(thing, name, self._breaking(getattr(thing, name)))

    def arm(self, at: int) -> None:
        self._at, self.count = at, 0

    def disarm(self) -> bool:
        """True when the fault has come."""
        fired, self._at = self._at is None, None
        return fired

    def _breaking(self, step: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            if self._at is not None:
                if self.count == self._at:
                    self._at = None
                    raise Refused(5, "injected")
                self.count += 1
            return step(*arguments, **named)

        return call


def _first(got: object) -> int | None:
    return got[0] if isinstance(got, bytes) else None
