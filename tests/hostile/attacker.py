"""A process that says anything to a memfsd: python -m tests.hostile.attacker SOCKET SEED COUNT FILE...

It pairs with each of the files, binds, faults, and goes on with what makes no sense until COUNT packets are sent; then
it waits to be killed, its connections open and its answers unread.
"""

import contextlib
import os
import socket
import sys

from memfsd.peers.upchannel import set_deadline
from memfsd.uapi import messages as m
from memfsd.uapi.framing import encode_request
from memfsd.uapi.limits import MAX_PACKET_BYTES
from memfsd.uapi.messages import Kind
from tests.hostile.packets import Hostile
from tests.support.greeting import hello

KINDS = [Kind.HELLO, Kind.PAIR, Kind.PING, Kind.CHECK, Kind.MAP, Kind.LIST, Kind.KCORE, Kind.GET_PFN, Kind.MOVE]
PAIRED = [*[Kind.BIND, Kind.UNBIND, Kind.GET_PFN] * 6, Kind.STAT, Kind.PING, Kind.PAIR]


def connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    set_deadline(sock, 20)
    sock.connect(path)
    return sock


def pair(path: str, file: str) -> tuple[socket.socket, list[int]]:
    """Paired and bound, with all that came along."""
    sock = connect(path)
    fd = os.open(file, os.O_WRONLY)
    to_pair = hello(sock, fd, "attacker", sorted(m.KVM_OPERATIONS))
    assert isinstance(to_pair, m.Pair)
    for id_, kind, body in (
        (2, Kind.PAIR, to_pair),
        (3, Kind.BIND, m.Bind(0, 0, 0, 4)),
        (4, Kind.GET_PFN, m.GetPfn(0, 4, 0)),
    ):
        sock.send(encode_request(id_, kind, body))
        _, fds, _, _ = socket.recv_fds(sock, MAX_PACKET_BYTES, 2)
        if fds:
            kept = [fd, *fds]
    return sock, kept


def main(path: str, seed: int, count: int, files: list[str]) -> None:
    paired = [pair(path, file)[0] for file in files]
    hostile, sock, sent = Hostile(seed, KINDS), None, 0
    of_vm = [Hostile(seed + number, PAIRED) for number in range(1, len(paired) + 1)]
    while sent < count:
        if paired and sent % 2:
            number = sent // 2 % len(paired)
            packet = of_vm[number].answerable(sent)
            paired[number].send(packet)
            paired[number].recv(MAX_PACKET_BYTES)
        else:
            sock = sock or connect(path)
            try:
                sock.send(hostile.anything(sent))
                ended = not sock.recv(MAX_PACKET_BYTES)
            except ConnectionError:
                ended = True
            if ended:
                sock.close()
                sock = None
        sent += 1
    for one in paired:
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                one.send(encode_request(9, Kind.STAT, m.Empty()))
    print("done", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
