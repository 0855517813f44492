"""The service against plain bytes: random operations on ordinary files, applied to both and compared."""

import os
from contextlib import nullcontext

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from memfsd.core.files.inodes import ROOT_INO
from memfsd.uapi.units import PAGE_SIZE
from tests.support.core_store import KEEP_SIZE, ME, NO_LEAKS, PUNCH, CoreStore, refused

P = PAGE_SIZE
POOL = 24
NAMES = st.sampled_from(["a", "b", "c"])
EDGES = st.builds(lambda page, near: max(page * P + near, 0), st.integers(0, 12), st.sampled_from([-1, 0, 0, 1, 100]))
LENGTHS = st.one_of(st.integers(1, 2 * P), st.builds(int.__mul__, st.integers(1, 20), st.just(P)))
CHOICE = st.integers(0, 1 << 16)


class Node:
    """A file: its bytes, which pages take a frame, and which of those were written."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.pages: set[int] = set()
        self.written: set[int] = set()

    def zero(self, start: int, end: int) -> None:
        end = min(end, len(self.data))
        if start < end:
            self.data[start:end] = bytes(end - start)

    def drop(self, first: int, last: int | None = None) -> None:
        for page in [page for page in self.pages if page >= first and (last is None or page < last)]:
            self.pages.discard(page)
            self.written.discard(page)


class ServiceMachine(RuleBasedStateMachine):
    """names: what each name stands for. handles: open files, by the store's number, also without a name."""

    def __init__(self) -> None:
        super().__init__()
        self.store = CoreStore(pages=POOL)
        self.names: dict[str, Node] = {}
        self.handles: dict[int, Node] = {}

    # -- the model

    def nodes(self) -> set[Node]:
        return {*self.names.values(), *self.handles.values()}

    def free(self) -> int:
        return POOL - sum(len(node.pages) for node in self.nodes())

    def pick(self, choice: int) -> tuple[int, Node]:
        return list(self.handles.items())[choice % len(self.handles)]

    def inode(self, handle: int):  # type: ignore[no-untyped-def]
        return self.store.service.handles.file(handle).file

    # -- names

    @rule(name=NAMES)
    def create_or_open(self, name: str) -> None:
        if name in self.names:
            file = self.store.names.lookup(ROOT_INO, name.encode())
        else:
            file = self.store.make(name)
            self.names[name] = Node()
        if len(self.handles) < 6:
            self.handles[self.store.open(file)] = self.names[name]  # type: ignore[arg-type]

    @rule(name=NAMES)
    def unlink(self, name: str) -> None:
        with nullcontext() if name in self.names else refused("ENOENT"):
            self.store.unlink(name)
        self.names.pop(name, None)

    @rule(old=NAMES, new=NAMES)
    def rename(self, old: str, new: str) -> None:
        with nullcontext() if old in self.names else refused("ENOENT"):
            effects = self.store.service.rename(
                ROOT_INO, old.encode(), ROOT_INO, new.encode(), 0, self.store.tick(), ME
            )
            self.store.perform(effects)
        if old in self.names and self.names[old] is not self.names.get(new):
            self.names[new] = self.names.pop(old)

    @rule(old=NAMES, new=NAMES)
    def link(self, old: str, new: str) -> None:
        if old in self.names:
            ino = self.store.names.lookup(ROOT_INO, old.encode()).ino
            with refused("EEXIST") if new in self.names else nullcontext():
                self.store.service.link(ino, ROOT_INO, new.encode(), self.store.tick())
            self.names.setdefault(new, self.names[old])

    @precondition(lambda self: self.handles)
    @rule(choice=CHOICE)
    def close(self, choice: int) -> None:
        handle, _ = self.pick(choice)
        self.store.close(handle)
        del self.handles[handle]

    # -- data

    @precondition(lambda self: self.handles)
    @rule(choice=CHOICE, offset=EDGES, length=LENGTHS, byte=st.integers(1, 255))
    def write(self, choice: int, offset: int, length: int, byte: int) -> None:
        """Fills holes from the front until the pool is full."""
        handle, node = self.pick(choice)
        free, page, end = self.free(), offset // P, offset
        new: list[int] = []
        while end < offset + length and (page in node.pages or len(new) < free):
            if page not in node.pages:
                new.append(page)
            page += 1
            end = min(page * P, offset + length)
        if end == offset:
            with refused("ENOSPC"):
                self.store.write(handle, offset, bytes(length))
            return
        assert self.store.write(handle, offset, bytes([byte]) * length) == end - offset
        node.pages.update(new)
        node.written.update(range(offset // P, -(-end // P)))
        node.data.extend(bytes(max(end - len(node.data), 0)))
        node.data[offset:end] = bytes([byte]) * (end - offset)

    @precondition(lambda self: self.handles)
    @rule(choice=CHOICE, size=EDGES)
    def truncate(self, choice: int, size: int) -> None:
        handle, node = self.pick(choice)
        self.store.resize(self.inode(handle), size)
        if size <= len(node.data):
            node.drop(-(-size // P))
        if size < len(node.data):
            del node.data[size:]
        else:
            node.data.extend(bytes(size - len(node.data)))
        self.take_over(handle, node, {size // P})

    @precondition(lambda self: self.handles)
    @rule(choice=CHOICE, offset=EDGES, length=LENGTHS)
    def punch(self, choice: int, offset: int, length: int) -> None:
        handle, node = self.pick(choice)
        self.store.fallocate(self.inode(handle), PUNCH, offset, length)
        node.zero(offset, offset + length)
        first, last = -(-offset // P), (offset + length) // P
        node.drop(first, last)
        self.take_over(handle, node, {offset // P, (offset + length) // P})

    @precondition(lambda self: self.handles)
    @rule(choice=CHOICE, offset=EDGES, length=LENGTHS, keep=st.booleans())
    def allocate(self, choice: int, offset: int, length: int, keep: bool) -> None:
        """All or nothing."""
        handle, node = self.pick(choice)
        end = offset + length
        new = set(range(offset // P, -(-end // P))) - node.pages
        mode = KEEP_SIZE if keep else 0
        if len(new) > self.free():
            with refused("ENOSPC"):
                self.store.fallocate(self.inode(handle), mode, offset, length)
            return
        self.store.fallocate(self.inode(handle), mode, offset, length)
        node.pages |= new
        if not keep:
            node.data.extend(bytes(max(end - len(node.data), 0)))

    def take_over(self, handle: int, node: Node, pages: set[int]) -> None:
        """Whether zeros are written into a cut page that nobody wrote before is the store's own affair."""
        file = self.inode(handle)
        for page in (pages & node.pages) - node.written:
            if (None, file.pages.lookup(page)) in self.store.memory:
                node.written.add(page)

    # -- compared

    @precondition(lambda self: self.handles)
    @rule(choice=CHOICE, offset=EDGES, length=LENGTHS)
    def read(self, choice: int, offset: int, length: int) -> None:
        handle, node = self.pick(choice)
        assert self.store.read(handle, offset, length) == bytes(node.data[offset : offset + length])

    @precondition(lambda self: self.handles)
    @rule(choice=CHOICE, offset=EDGES)
    def seek(self, choice: int, offset: int) -> None:
        handle, node = self.pick(choice)
        file, size = self.inode(handle), len(node.data)
        if offset >= size:
            with refused("ENXIO"):
                self.store.seek(file, offset, os.SEEK_HOLE)
            return
        at = offset
        while at < size and at // P in node.written:
            at = min((at // P + 1) * P, size)
        assert self.store.seek(file, offset, os.SEEK_HOLE) == at
        data = [page for page in sorted(node.written) if page >= offset // P and page * P < size]
        if data:
            assert self.store.seek(file, offset, os.SEEK_DATA) == max(data[0] * P, offset)
        else:
            with refused("ENXIO"):
                self.store.seek(file, offset, os.SEEK_DATA)

    @invariant()
    def contents_sizes_blocks_and_links_agree(self) -> None:
        for handle, node in self.handles.items():
            file = self.inode(handle)
            assert (file.size, file.block_count) == (len(node.data), 8 * len(node.pages))
            assert file.nlink == sum(other is node for other in self.names.values())
            assert self.store.read(handle, 0, 1 << 20) == bytes(node.data)
        assert self.store.pool.free_count == self.free()

    @invariant()
    def the_rules_hold(self) -> None:
        assert self.store.audit() == []

    def teardown(self) -> None:
        for handle in self.handles:
            self.store.close(handle)
        for name in self.names:
            self.store.unlink(name)
        self.store.forget_all()
        assert self.store.leaks() == NO_LEAKS


TestService = ServiceMachine.TestCase
TestService.settings = settings(max_examples=40, stateful_step_count=40, deadline=None, derandomize=True)
