"""HELLO and PAIR: possession of the fd, one VM for life, and the order of the messages."""

import fcntl
import os
import socket

import pytest

import kvmsim.store.link
import memfsd.peers.session
from memfsd.common.mounts import Mount
from memfsd.core.files.inodes import InodeTable
from memfsd.peers.process import PeerProcess
from memfsd.uapi import messages as m
from memfsd.uapi import names
from memfsd.uapi.messages import Kind
from memfsd.uapi.proof import KEY_BYTES, KVM, PROOF_BYTES, STORE, TOKEN_BYTES, Token, prove
from memfsd.uapi.units import PAGE_SIZE
from tests.support.both_sides import LocalStore, errno_of, page
from tests.support.wire import Wire, settled


def test_pairing_hands_over_a_window_as_long_as_the_pool_and_an_up_channel(store: LocalStore) -> None:
    file = store.create("file", 8)
    with Wire(store) as wire:
        hello = wire.hello()
        assert hello.version == m.PROTOCOL_VERSION
        reply = wire.pair()
        assert (reply.ino, reply.size_bytes, reply.order, reply.seq) == (file.ino, page(8), 0, 0)
        assert (reply.window_frames, reply.memory_type) == (1024, m.MemoryType.WB)
        assert os.fstat(wire.window).st_size == 1024 * PAGE_SIZE
        assert fcntl.fcntl(wire.window, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK, "no SIGBUS for who maps it"
        assert wire.up is not None and wire.up.type == socket.SOCK_SEQPACKET
        assert wire.ask(Kind.BYE) == m.Empty()
        settled(store)


def test_hello_exchanges_the_operation_tables(store: LocalStore) -> None:
    with Wire(store) as wire:
        assert set(wire.hello().operations) == set(m.STORE_OPERATIONS)
        assert not m.RESERVED_KINDS & (m.STORE_OPERATIONS | m.KVM_OPERATIONS), "no reserved one is offered"


def test_a_token_pairs_one_vm(store: LocalStore) -> None:
    store.create("file", 8)
    token = store.token("file")
    with Wire(store) as first, Wire(store) as second:
        first.hello(token)
        assert isinstance(first.pair(), m.PairReply)
        second.hello(token)
        assert second.pair() == "EPERM"
        first.ask(Kind.BYE)


def test_a_wrong_proof_is_eacces_and_the_right_one_still_works(store: LocalStore) -> None:
    store.create("file", 8)
    with Wire(store) as wire, Wire(store) as other:
        wire.hello()
        assert wire.pair(b"") == "EINVAL"
        assert wire.pair(bytes(PROOF_BYTES)) == "EACCES"
        assert wire.pair(prove(STORE, wire.token, wire.nonce, wire.store_nonce)) == "EACCES", (
            "the store's own, reflected"
        )
        other.hello(wire.token)
        assert wire.pair(prove(KVM, other.token, other.nonce, other.store_nonce)) == "EACCES", "of another connection"
        thief = Token(wire.token.id, bytes(KEY_BYTES))
        assert wire.pair(prove(KVM, thief, wire.nonce, wire.store_nonce)) == "EACCES", "the id without the key"
        assert isinstance(wire.pair(), m.PairReply)
        wire.ask(Kind.BYE)


@pytest.mark.parametrize("id_", [b"", bytes(16), b"\xff" * 16, (1).to_bytes(8, "little") + bytes(8)])
def test_a_token_that_no_file_made_is_eacces(store: LocalStore, id_: bytes) -> None:
    store.create("file", 8)
    store.token("file")
    with Wire(store) as wire:
        assert wire.hello(token=Token(id_, bytes(16))) == "EACCES"
        assert isinstance(wire.hello(), m.HelloReply)


def test_tokens_of_others_use_up_nothing(store: LocalStore) -> None:
    """A reader of the file may read as many as he likes: the owner's first one still pairs, and the store grows by
    nothing. Decision 17."""
    store.create("file", 8)
    first = store.token("file")
    assert len({store.token("file").id for _ in range(2000)}) == 2000
    with Wire(store) as wire:
        wire.hello(first)
        assert isinstance(wire.pair(), m.PairReply)
        wire.ask(Kind.BYE)


def test_a_token_is_looked_up_without_a_look_at_other_files(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each HELLO once went through all inodes with the store's lock held, and every stat(2) waited for that."""
    store.create("file", 8)
    token = store.token("file")
    with monkeypatch.context() as patched:
        patched.setattr(InodeTable, "__iter__", lambda _: pytest.fail("all inodes were visited"))
        patched.setattr(InodeTable, "sealed_files", lambda _: pytest.fail("all sealed files were visited"))
        with Wire(store) as wire:
            assert wire.hello(token=Token(bytes(16), bytes(16))) == "EACCES"
            assert isinstance(wire.hello(token), m.HelloReply)
            assert isinstance(wire.pair(), m.PairReply)
            wire.ask(Kind.BYE)


def test_a_second_vm_is_eperm_while_the_first_lives_and_ever_after(store: LocalStore) -> None:
    store.create("file", 8)
    with Wire(store) as first, Wire(store) as second:
        first.paired("file", 8)
        second.hello(vm="second")
        assert second.pair() == "EPERM"
        assert first.ask(Kind.PING) == m.Empty(), "the first one does not notice"
        first.ask(Kind.BYE)
        assert first.ended()
        assert second.pair() == "EPERM"


def test_a_vm_that_lost_its_connection_is_a_second_vm(store: LocalStore) -> None:
    store.create("file", 8)
    with Wire(store) as first:
        first.paired("file", 8)
        first.ask(Kind.BYE)
    with Wire(store) as again:
        again.hello()
        assert again.pair() == "EPERM"


@pytest.mark.parametrize("version", [0, 1, m.PROTOCOL_VERSION - 1, m.PROTOCOL_VERSION + 1, 0xFFFFFFFF])
def test_another_version_is_refused_and_the_right_one_may_be_said_then(store: LocalStore, version: int) -> None:
    with Wire(store) as wire:
        assert wire.hello(version=version) == "EPROTONOSUPPORT"
        assert isinstance(wire.hello(), m.HelloReply)


def test_hello_twice_is_eproto(store: LocalStore) -> None:
    with Wire(store) as wire:
        wire.hello()
        assert wire.hello() == "EPROTO"
        assert wire.ask(Kind.PING) == m.Empty()


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Kind.PAIR, m.Pair(bytes(32), bytes(16))),
        (Kind.BIND, m.Bind(0, 0, 0, 1)),
        (Kind.UNBIND, m.Unbind(0, 1)),
        (Kind.GET_PFN, m.GetPfn(0, 1, 0)),
        (Kind.STAT, m.Empty()),
        (Kind.PING, m.Empty()),
        (Kind.BYE, m.Empty()),
        (Kind.CHECK, m.Empty()),
        (Kind.MAP, m.Map(1, 0)),
    ],
    ids=lambda value: value.name if isinstance(value, Kind) else "",
)
def test_anything_before_hello_is_eproto(store: LocalStore, kind: Kind, body: m.Body) -> None:
    with Wire(store) as wire:
        assert wire.ask(kind, body) == "EPROTO"
        assert isinstance(wire.hello(), m.HelloReply)


@pytest.mark.parametrize("kind", [Kind.BIND, Kind.UNBIND, Kind.GET_PFN, Kind.STAT, Kind.CHECK, Kind.MAP])
def test_a_guest_that_has_not_paired_may_only_pair(store: LocalStore, kind: Kind) -> None:
    bodies = {Kind.BIND: m.Bind(0, 0, 0, 1), Kind.UNBIND: m.Unbind(0, 1), Kind.GET_PFN: m.GetPfn(0, 1, 0)}
    with Wire(store) as wire:
        wire.hello()
        assert wire.ask(kind, bodies.get(kind) or (m.Map(1, 0) if kind is Kind.MAP else m.Empty())) == "EPROTO"


def test_pair_twice_is_eproto(store: LocalStore) -> None:
    store.create("file", 8)
    store.create("other", 8)
    with Wire(store) as wire:
        wire.paired("file", 8)
        assert wire.pair() == "EPROTO"
        assert store.guest("other").pairing is None
        wire.ask(Kind.BYE)


def test_an_observer_can_look_but_not_pair(store: LocalStore) -> None:
    store.create("file", 8)
    with Wire(store) as wire:
        wire.hello(role=m.Role.OBSERVER)
        assert wire.ask(Kind.CHECK).findings == []
        assert wire.pair() == "EPROTO"
        assert wire.get_pfn(0) == "EPROTO"


@pytest.mark.parametrize("missing", sorted(m.REQUIRED_KVM_OPERATIONS))
def test_a_vm_that_can_not_be_invalidated_can_not_pair(store: LocalStore, missing: Kind) -> None:
    store.create("file", 8)
    with Wire(store) as wire:
        wire.hello(operations=sorted(m.KVM_OPERATIONS - {missing}))
        assert wire.pair() == "EOPNOTSUPP"
    assert store.guest("file").pairing is None


def test_a_vm_without_report_is_never_asked_for_it(store: LocalStore) -> None:
    store.create("file", 8)
    with Wire(store) as wire:
        wire.hello(operations=sorted(m.REQUIRED_KVM_OPERATIONS))
        wire.pair()
        assert store.findings() == []
        assert wire.up is not None
        wire.up.setblocking(False)
        with pytest.raises(BlockingIOError):
            wire.up.recv(1)
        wire.ask(Kind.BYE)


def test_only_the_owner_of_the_file_or_root_may_pair(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stranger(PeerProcess):
        def __init__(self, connection: socket.socket) -> None:
            super().__init__(connection)
            self.uid = 4242

    monkeypatch.setattr(memfsd.peers.session, "PeerProcess", Stranger)
    file = store.create("file", 8)
    with Wire(store) as wire:
        assert wire.hello() == "EACCES"
        store.service.inodes.chown(file, 4242)
        assert isinstance(wire.hello(), m.HelloReply)
        store.service.inodes.chown(file, 0)
        assert wire.pair() == "EACCES", "it was given away since"
        assert store.guest("file").pairing is None
        store.service.inodes.chown(file, 4242)
        assert isinstance(wire.pair(), m.PairReply)
        wire.ask(Kind.BYE)


def test_the_first_slot_of_a_file_pairs_and_more_of_them_do_not_pair_again(store: LocalStore) -> None:
    store.create("file", 8)
    local = store.vm("alice")
    local.private_slot(0, 0, page(4), "file")
    local.private_slot(1, page(64), page(4), "file", page(4))
    pairing = store.guest("file").pairing
    assert pairing is not None and (pairing.vm, pairing.pid) == ("alice", os.getpid())
    assert store.server.session_count() == 1


def test_two_slots_of_one_file_are_disjoint_and_apart(store: LocalStore) -> None:
    store.create("file", 8)
    local = store.vm()
    local.private_slot(0, 0, page(4), "file")
    local.private_slot(1, page(64), page(4), "file", page(4))
    local.write(page(3), b"end of the first")
    local.write(page(64), b"start of the second")
    assert (local.read(page(3), 3), local.read(page(64), 5)) == (b"end", b"start")
    assert [(b.slot, b.gfn, b.start, b.end) for b in store.guest("file").bindings] == [(0, 0, 0, 4), (1, 64, 4, 8)]
    store.punch("file", 3, 2)
    assert (local.read(page(3), 3), local.read(page(64), 5)) == (bytes(3), bytes(5))


def test_two_files_in_one_vm_are_two_pairings(store: LocalStore) -> None:
    store.create("low", 8)
    store.create("high", 8)
    local = store.vm()
    local.private_slot(0, 0, page(8), "low")
    local.private_slot(1, page(8), page(8), "high")
    data = bytes(range(256)) * 64
    assert local.write(page(6), data) is None, "one access over both"
    assert local.read(page(6), len(data)) == data
    store.punch("low", 0, 8)
    assert local.read(page(6), len(data)) == bytes(page(2)) + data[page(2) :]
    assert store.server.session_count() == 2


def test_two_vms_of_a_process_do_not_see_each_other(store: LocalStore) -> None:
    store.create("one", 8)
    store.create("two", 8)
    first, second = store.vm("first"), store.vm("second")
    first.private_slot(0, 0, page(8), "one")
    second.private_slot(0, 0, page(8), "two")
    first.write(0, b"first's")
    second.write(0, b"second's")
    assert (first.read(0, 7), second.read(0, 8)) == (b"first's", b"second's")
    frame = store.file("one").pages.lookup(0)
    assert frame is not None
    assert os.pread(second.link().memory.fd, 7, page(frame)) == bytes(7), "the frame is empty in the other's window"
    assert errno_of(second.private_slot, 1, page(64), page(1), "one") == "EPERM"
    first.close()
    assert second.read(0, 8) == b"second's"


def test_a_file_of_a_store_that_is_gone_is_ehostdown(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attributes are cached by nobody, so this needs a daemon that dies between them and the connection."""
    store.create("file", 8)
    local = store.vm()
    attributes = {names.XATTR_SEALS: b"guest", names.XATTR_SOCKET: b"/gone", names.XATTR_TOKEN: bytes(TOKEN_BYTES)}
    monkeypatch.setattr(os, "getxattr", lambda fd, name: attributes[name])
    monkeypatch.setattr(kvmsim.store.link, "mount_of", lambda fd: Mount(os.fstat(fd).st_dev, "/mnt", os.getuid()))
    with open(store.path("file"), "wb") as file:
        assert errno_of(kvmsim.store.link.pair, file.fileno(), "vm", local.kvm) == "EHOSTDOWN"
