"""HELLO and PAIR by hand, for processes that speak the wire without kvmsim."""

import os
import socket

from memfsd.uapi import messages as m
from memfsd.uapi.framing import decode_header, decode_reply, encode_request
from memfsd.uapi.limits import MAX_PACKET_BYTES
from memfsd.uapi.messages import Kind
from memfsd.uapi.names import XATTR_TOKEN
from memfsd.uapi.proof import KVM, NONCE_BYTES, SECRET_BYTES, prove, split_token


def hello(sock: socket.socket, fd: int, name: str, operations: list[int]) -> m.Pair | int:
    """As a guest with the file behind fd: the PAIR to say next, or the errno of the refusal."""
    token, nonce = split_token(os.getxattr(fd, XATTR_TOKEN)), os.urandom(NONCE_BYTES)
    body = m.Hello(m.PROTOCOL_VERSION, m.Role.GUEST, name, operations, token.id, nonce)
    sock.send(encode_request(1, Kind.HELLO, body))
    packet = sock.recv(MAX_PACKET_BYTES)
    if decode_header(packet).errno:
        return decode_header(packet).errno
    reply = decode_reply(Kind.HELLO, packet)
    assert isinstance(reply, m.HelloReply)
    return m.Pair(prove(KVM, token, nonce, reply.nonce), os.urandom(SECRET_BYTES))
