"""Random steps for a World: what a guest, its user space and people at the mount do, in any order."""

import random
from collections.abc import Callable

from kvmsim.kvm.hypercalls import MAP_GPA, SHARED_BIT
from memfsd.uapi.units import PAGE_SIZE

from .vm_model import GPA_END, Home

CORNERS = [0, GPA_END - PAGE_SIZE, GPA_END, SHARED_BIT, SHARED_BIT | GPA_END, 2 * SHARED_BIT, (1 << 64) - PAGE_SIZE]


class Steps:
    """Endless; the same seed gives the same ones. `step` is a line for World.step."""

    def __init__(
        self, seed: int, homes: dict[str, list[Home]], page: int = 1, *, split: bool = False, swap: bool = False
    ) -> None:
        """page: pages of 4 KiB in one of the files; what is done to a file at the mount is counted in them, but for the
        cuts of split, in 4 KiB. swap: they may also be swapped out."""
        self._random, self._page, self._split, self._swap = random.Random(seed), page, split, swap
        self._homes = homes
        self._vm = ""
        self._makers: dict[Callable[[], str], int] = {
            self._read: 14,
            self._write: 16,
            self._touch: 5,
            self._sha256: 3,
            self._map: 8,
            self._tdvmcall: 4,
            self._hypercall: 2,
            self._halt: 1,
            self._resume: 5,
            self._answer: 8,
            self._kick: 1,
            self._host: 4,
            self._set_private: 8,
            self._set_ordinary: 4,
            self._delete: 2,
            self._delete_at: 2,
            self._punch_slot: 2,
            self._policy: 3,
            self._cap: 1,
            self._wild: 5,
            self._together: 3,
            self._pre_fault: 3,
            self._populate: 4,
        }

    def step(self) -> str:
        rnd = self._random
        if rnd.random() < 0.08:
            return self._store()
        self._vm = rnd.choice(list(self._homes))
        (maker,) = rnd.choices(list(self._makers), list(self._makers.values()))
        return f"{self._vm} {maker()}"

    # -- places

    def _home(self) -> Home:
        return self._random.choice(self._homes[self._vm])

    def _pages(self, most: int = 6) -> tuple[int, int]:
        """GFN and pages, in and around a file's home."""
        home = self._home()
        first, last = self._random.choice([(-2, home.count + 1), (3, 6)])  # some pages more often: much happens to them
        gfn = min(max(home.gfn + self._random.randint(first, last), 0), GPA_END // PAGE_SIZE - 1)
        return gfn, self._random.randint(1, most)

    def _across(self) -> tuple[int, int]:
        """Over the border between two files that lie side by side, or all of both; else at a file's end."""
        home, rnd = self._home(), self._random
        after = [other for other in self._homes[self._vm] if other.gfn == home.gfn + home.count]
        if after and rnd.random() < 0.3:
            return home.gfn, home.count + after[0].count
        before = rnd.randint(1, 3)
        return home.gfn + home.count - before, before + rnd.randint(1, 3)

    def _span(self) -> tuple[str, int]:
        """GPA and bytes of an access: up to three pages, at any offset."""
        rnd = self._random
        gfn, _ = self._pages()
        gpa = gfn * PAGE_SIZE + rnd.choice([0, rnd.randrange(PAGE_SIZE), PAGE_SIZE - rnd.randint(1, 9)])
        length = rnd.choice([1, 4, rnd.randint(1, 16), rnd.randint(1, PAGE_SIZE), rnd.randint(1, 3 * PAGE_SIZE)])
        if rnd.random() < 0.1:
            gpa |= SHARED_BIT
        return f"{gpa:#x}", length

    def _on(self) -> str:
        return f"vcpu={self._random.choice([0, 0, 1, 2])}"

    def _shared(self) -> str:
        return self._random.choice(["", " shared"])

    def _data(self, length: int) -> str:
        """Random bytes, repeated."""
        return f"{self._random.randbytes(4).hex()}*{length}"

    # -- the guest

    def _read(self) -> str:
        gpa, length = self._span()
        return f"read {self._on()} {gpa} {length}{self._shared()}"

    def _write(self) -> str:
        gpa, length = self._span()
        return f"write {self._on()} {gpa} {self._data(length)}{self._shared()}"

    def _touch(self) -> str:
        gpa, length = self._span()
        return f"touch {self._on()} {gpa} {length}{self._shared()}"

    def _sha256(self) -> str:
        gpa, length = self._span()
        return f"sha256 {self._on()} {gpa} {length}"

    def _map(self) -> str:
        gfn, count = self._pages()
        if self._random.random() < 0.3:
            gfn, count = self._across()
        elif self._page > 1 and self._random.random() < 0.3:
            gfn, count = gfn & -self._page, self._page
        return f"map {self._on()} {gfn * PAGE_SIZE:#x} {count * 4}K {self._random.choice(['private', 'shared'])}"

    def _tdvmcall(self) -> str:
        rnd = self._random
        gfn, count = self._pages(3)
        leaf = rnd.choice([MAP_GPA, MAP_GPA, MAP_GPA, rnd.getrandbits(64), 0])
        gpa = rnd.choice([0, SHARED_BIT]) | gfn * PAGE_SIZE
        gpa = rnd.choice([gpa, gpa, gpa, gpa + rnd.randint(1, 4095), rnd.getrandbits(64), rnd.choice(CORNERS)])
        sizes = [0, rnd.randint(1, 9000), rnd.getrandbits(64), 5 << 20, 1 << 30]
        size = rnd.choice([count * PAGE_SIZE] * 5 + sizes)
        return f"tdvmcall {self._on()} {leaf:#x} {gpa:#x} {size:#x}"

    def _hypercall(self) -> str:
        rnd = self._random
        gfn, count = self._pages()
        nr = rnd.choice([12, 12, rnd.randint(0, 70), rnd.getrandbits(64)])
        gpa = rnd.choice([gfn * PAGE_SIZE, rnd.getrandbits(64)])
        count = rnd.choice([count, 0, rnd.getrandbits(64)])
        return f"hypercall {self._on()} {nr:#x} {gpa:#x} {count:#x} {rnd.choice([0, 16])}"

    def _halt(self) -> str:
        return f"{self._random.choice(['hlt', 'shutdown'])} {self._on()}"

    def _wild(self) -> str:
        """Anywhere in 64 bits, mostly in the 52 that a guest can name."""
        rnd = self._random
        gpa = rnd.choice([rnd.getrandbits(52), rnd.getrandbits(64), rnd.choice(CORNERS), rnd.getrandbits(48)])
        gpa = max(0, gpa + rnd.choice([0, -1, 1, -rnd.randint(1, 9000)])) % (1 << 64)
        length = rnd.choice([1, rnd.randint(1, 3 * PAGE_SIZE)])
        private, shared = (f"slot set {rnd.choice([0, 3, 5, 64, 70])} {kind}" for kind in ("private", "shared"))
        file = self._home().file
        huge = rnd.choice([length, 1 << 40, (1 << 52) - 1, (1 << 63) - 1])
        return rnd.choice(
            [
                f"read {self._on()} {gpa:#x} {length}{self._shared()}",
                f"write {self._on()} {gpa:#x} {self._data(length)}{self._shared()}",
                f"touch {self._on()} {gpa:#x} {huge}{self._shared()}",
                f"sha256 {self._on()} {gpa:#x} {huge}",
                f"map {self._on()} {gpa:#x} {min(huge, 1 << 30)} {rnd.choice(['private', 'shared'])}",
                f"host read {gpa:#x} {length}",
                f"host write {gpa:#x} {self._data(length)}",
                f"{private} gpa={gpa:#x} size={huge} file={file}",
                f"{private} gpa={gpa & -PAGE_SIZE:#x} size=8K file={file}",
                f"{private} gpa={self._pages()[0] * PAGE_SIZE:#x} size=4K file={file} offset={gpa & -PAGE_SIZE:#x}",
                f"{shared} gpa={gpa:#x} size={length}",
                f"slot punch {rnd.randint(0, 5)} gpa={gpa:#x} size={huge}",
            ]
        )

    def _together(self) -> str:
        """Three vCPUs, each at a page of its own."""
        first, lines = self._pages()[0], []
        for vcpu in range(3):
            gpa = min(first + vcpu, GPA_END // PAGE_SIZE - 3 + vcpu) * PAGE_SIZE + self._random.randrange(
                PAGE_SIZE - 16
            )
            what = self._random.choice(["read", "write", "touch"])
            rest = self._data(8) if what == "write" else "8"
            lines.append(f"{what} vcpu={vcpu} {gpa:#x} {rest}{self._shared()}")
        return "together " + " ; ".join(lines)

    # -- user space

    def _resume(self) -> str:
        answers = [
            f" data={self._random.randbytes(self._random.choice([1, 4, 8])).hex()}",
            " ret=0",
            f" ret={self._random.choice([11, 22])}",
        ]
        return f"resume {self._on()}{self._random.choice(['', '', '', *answers])}"

    def _pre_fault(self) -> str:
        gfn, count = self._pages()
        return f"prefault {self._on()} {gfn * PAGE_SIZE:#x} {count * 4}K{self._shared()}"

    def _populate(self) -> str:
        gfn, count = self._pages(3)
        vcpu, byte = self._random.choice([0, 0, 1, 2]), self._random.randbytes(1).hex()
        return f"populate {vcpu} {gfn * PAGE_SIZE:#x} {count} {byte}"

    def _answer(self) -> str:
        value = self._random.choice([0, 0, 11, 22, 255])
        return f"answer {self._random.choice([0, 0, 1, 2])} {value:02x}"

    def _kick(self) -> str:
        return f"kick {self._on()}"

    def _host(self) -> str:
        gpa, length = self._span()
        return f"host read {gpa} {length}" if self._random.random() < 0.5 else f"host write {gpa} {self._data(length)}"

    def _set_private(self) -> str:
        """As a rule at its place in its file; sometimes not, or another VM's file."""
        rnd, home = self._random, self._home()
        gfn, count = self._pages(home.count)
        offset = gfn - home.gfn
        if rnd.random() < 0.2:
            offset += rnd.choice([-1, 1, 3])
            home = rnd.choice([home for homes in self._homes.values() for home in homes])
        flags = rnd.choice([""] * 6 + [" flags=4", " flags=readonly", " flags=8"])
        size = rnd.choice([f"{count * 4}K"] * 9 + ["0"])
        where = f"gpa={gfn * PAGE_SIZE:#x} size={size} file={home.file} offset={max(offset, 0) * 4}K"
        return f"slot set {rnd.randint(0, 5)} private {where}{flags}"

    def _set_ordinary(self) -> str:
        rnd = self._random
        gfn, count = self._pages()
        flags = rnd.choice(["", "", "", " flags=log_dirty", " flags=readonly", " flags=4", " flags=16"])
        size = rnd.choice([f"{count * 4}K"] * 9 + ["0"])
        return f"slot set {rnd.randint(0, 5)} shared gpa={gfn * PAGE_SIZE:#x} size={size}{flags}"

    def _delete(self) -> str:
        return f"slot delete {self._random.randint(0, 5)} {self._random.choice(['private', 'shared', 'shared'])}"

    def _delete_at(self) -> str:
        return f"slot delete-at {self._pages()[0]:#x}"

    def _punch_slot(self) -> str:
        gfn, count = self._pages(3)
        return f"slot punch {self._random.randint(0, 5)} gpa={gfn * PAGE_SIZE:#x} size={count * 4}K"

    def _policy(self) -> str:
        return "policy " + self._random.choice(["none", "punch", "recreate", "overlay", "overlay under=freed"])

    def _cap(self) -> str:
        return f"cap exit_hypercall {self._random.choice([0, 0, 0x1000, self._random.getrandbits(64)]):#x}"

    # -- people at the mount

    def _store(self) -> str:
        rnd = self._random
        home = rnd.choice([home for homes in self._homes.values() for home in homes])
        start, count = rnd.randrange(-(-home.count // self._page)), rnd.randint(1, 4)
        steps = [f"store {what} {home.file} {start} {count}" for what in ("punch", "allocate", "fail", "move")]
        if self._split:
            first = rnd.choice([rnd.randrange(home.count), rnd.randrange(8), home.count - 3])
            steps += [f"store cut {home.file} {first} {rnd.choice([1, 3, 100, 513])}"] * 6
        if self._swap:
            steps += [f"store swapout {home.file} {start} {count}"] * 4
        return rnd.choice(["store reclaim", *steps])
