"""Proof of possession: who read a token proves it, and a proof is good for one side of one connection."""

import pytest

from memfsd.uapi.proof import (
    ID_BYTES,
    KVM,
    NONCE_BYTES,
    PROOF_BYTES,
    STORE,
    TOKEN_BYTES,
    Token,
    ino_of,
    key_of,
    make_token,
    prove,
    proves,
    split_token,
)

SECRET, SALT = b"s" * 16, bytes(range(8))
KVM_NONCE, STORE_NONCE = b"k" * NONCE_BYTES, b"m" * NONCE_BYTES


@pytest.mark.parametrize("ino", [1, 255, 256, (1 << 63) - 1])
def test_the_store_needs_only_the_id_to_find_file_and_key_again(ino: int) -> None:
    token = make_token(SECRET, ino, SALT)
    assert ino_of(token.id) == ino
    assert key_of(SECRET, token.id) == token.key
    assert len(token.id) == ID_BYTES


def test_a_token_travels_through_the_attribute_as_it_is() -> None:
    token = make_token(SECRET, 7, SALT)
    assert split_token(token.id + token.key) == token


@pytest.mark.parametrize("size", [0, TOKEN_BYTES - 1, TOKEN_BYTES + 1])
def test_an_attribute_of_another_length_is_no_token(size: int) -> None:
    with pytest.raises(ValueError, match=f"{TOKEN_BYTES} bytes, not {size}"):
        split_token(bytes(size))


def test_two_files_and_two_secrets_have_different_keys() -> None:
    keys = {make_token(secret, ino, SALT).key for secret in (SECRET, b"t" * 16) for ino in (1, 2)}
    assert len(keys) == 4


def test_a_proof_is_that_of_its_label_token_and_nonces_alone() -> None:
    token = make_token(SECRET, 7, SALT)
    proof = prove(KVM, token, KVM_NONCE, STORE_NONCE)
    assert len(proof) == PROOF_BYTES
    assert proves(proof, KVM, token, KVM_NONCE, STORE_NONCE)
    assert not proves(proof, STORE, token, KVM_NONCE, STORE_NONCE), "reflected"
    assert not proves(proof, KVM, token, KVM_NONCE, KVM_NONCE), "replayed"
    assert not proves(proof, KVM, token, STORE_NONCE, STORE_NONCE), "replayed"
    assert not proves(proof, KVM, make_token(SECRET, 8, SALT), KVM_NONCE, STORE_NONCE), "another file's"
    assert not proves(proof, KVM, Token(token.id, bytes(16)), KVM_NONCE, STORE_NONCE), "the key is not known"
    assert not proves(b"", KVM, token, KVM_NONCE, STORE_NONCE)
