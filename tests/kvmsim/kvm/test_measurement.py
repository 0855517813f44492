"""MRTD, against records written out by hand."""

import hashlib

from kvmsim.kvm.measurement import Measurement

PAGE = bytes(range(256)) * 16


def record(name: bytes, gpa: int) -> bytes:
    buffer = bytearray(128)
    buffer[: len(name)] = name
    buffer[16:24] = gpa.to_bytes(8, "little")
    return bytes(buffer)


def digest(*pages: tuple[int, bytes]) -> bytes:
    measured = Measurement()
    for gpa, page in pages:
        measured.add(gpa, page)
    return measured.digest()


def test_a_page_is_an_add_record_and_sixteen_chunks_each_after_its_record() -> None:
    expected = hashlib.sha384(record(b"MEM.PAGE.ADD", 0x5000))
    for number in range(16):
        expected.update(record(b"MR.EXTEND", 0x5000 + 256 * number))
        expected.update(PAGE[256 * number : 256 * (number + 1)])
    assert digest((0x5000, PAGE)) == expected.digest()
    assert len(expected.digest()) == 48


def test_nothing_is_the_empty_hash() -> None:
    assert digest() == hashlib.sha384().digest()


def test_order_place_and_every_byte_count() -> None:
    other = bytes([*PAGE[:-1], PAGE[-1] ^ 1])
    digests = {
        digest((0, PAGE), (4096, other)),
        digest((4096, other), (0, PAGE)),
        digest((0, PAGE), (8192, other)),
        digest((0, PAGE), (4096, PAGE)),
        digest((0, other), (4096, PAGE)),
    }
    assert len(digests) == 5
    assert digest((0, PAGE), (4096, other)) == digest((0, PAGE), (4096, other))


def test_a_copy_goes_on_by_itself() -> None:
    measured = Measurement()
    copied = measured.copy()
    copied.add(0, PAGE)
    assert measured.digest() == digest()
    assert copied.digest() == digest((0, PAGE))
