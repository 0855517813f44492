"""Proof of possession, in both directions, before anything is paired.

A token is read with fgetxattr(2) through an fd of a sealed file, so it travels through the file system: only who holds
the fd and who serves the mount know it. Its id goes over the socket and its key never does. Store and VM each prove the
key over both nonces and under its own label, so that neither proof can be replayed or reflected.
"""

import hmac
from typing import NamedTuple

ID_BYTES = 16
KEY_BYTES = 16
TOKEN_BYTES = ID_BYTES + KEY_BYTES
NONCE_BYTES = 16
PROOF_BYTES = 32
SECRET_BYTES = 16

STORE = b"memfsd store"
KVM = b"memfsd kvm"


class Token(NamedTuple):
    """What user.memfsd.token reads: both, one after the other."""

    id: bytes
    key: bytes


def make_token(secret: bytes, ino: int, salt: bytes) -> Token:
    """A token of the file `ino`. The store keeps the file's secret and nothing per token: the id says all that it
    needs to find the key again, so nobody can use up, displace, or pile up tokens."""
    id_ = ino.to_bytes(8, "little") + salt[:8]
    return Token(id_, key_of(secret, id_))


def key_of(secret: bytes, id_: bytes) -> bytes:
    return hmac.digest(secret, id_, "sha256")[:KEY_BYTES]


def ino_of(id_: bytes) -> int:
    return int.from_bytes(id_[:8], "little")


def split_token(value: bytes) -> Token:
    """The value of the attribute; ValueError when it has another length."""
    if len(value) != TOKEN_BYTES:
        raise ValueError(f"a token has {TOKEN_BYTES} bytes, not {len(value)}")
    return Token(value[:ID_BYTES], value[ID_BYTES:])


def prove(label: bytes, token: Token, kvm_nonce: bytes, store_nonce: bytes) -> bytes:
    return hmac.digest(token.key, label + token.id + kvm_nonce + store_nonce, "sha256")


def proves(proof: bytes, label: bytes, token: Token, kvm_nonce: bytes, store_nonce: bytes) -> bool:
    return hmac.compare_digest(proof, prove(label, token, kvm_nonce, store_nonce))
