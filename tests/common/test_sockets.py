"""Credentials of a peer are the kernel's word."""

import os
import socket

from memfsd.common.sockets import Credentials, peer_of, receive_with_fds


def test_both_ends_see_who_the_other_is() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        me = Credentials(os.getpid(), os.geteuid(), os.getegid())
        assert peer_of(ours) == peer_of(theirs) == me


def test_descriptors_come_with_their_packet_and_are_close_on_exec() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        socket.send_fds(ours, [b"with"], [0, 1])
        ours.send(b"without")
        packet, fds, _ = receive_with_fds(theirs, 16, 2)
        assert packet == b"with"
        assert [os.get_inheritable(fd) for fd in fds] == [False, False]
        assert receive_with_fds(theirs, 16, 2)[:2] == (b"without", [])
        socket.send_fds(ours, [b"three"], [0, 1, 2])
        packet, more, flags = receive_with_fds(theirs, 16, 1)
        assert packet == b"three"
        assert flags & socket.MSG_CTRUNC
    for fd in fds + more:
        os.close(fd)
