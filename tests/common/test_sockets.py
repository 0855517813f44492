"""Credentials of a peer are the kernel's word."""

import os
import socket

from memfsd.common.sockets import Credentials, peer_of


def test_both_ends_see_who_the_other_is() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        me = Credentials(os.getpid(), os.geteuid(), os.getegid())
        assert peer_of(ours) == peer_of(theirs) == me
