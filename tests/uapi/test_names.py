"""Names and numbers that programs outside depend on."""

from memfsd.uapi import names


def test_the_attributes_are_those_of_the_contract() -> None:
    assert names.XATTR_PREFIX == b"user.memfsd."
    found = {value for key, value in vars(names).items() if key.startswith("XATTR_") and key != "XATTR_PREFIX"}
    short = {value.removeprefix(names.XATTR_PREFIX) for value in found}
    own = {b"seals", b"page_size", b"numa", b"owner", b"frames", b"socket", b"token"}
    assert short == own | {b"pool", b"counts", b"numastat"}


def test_the_ioctls_are_numbered_as_the_kernels_macros_do() -> None:
    iow = 1 << 30 | 4 << 16 | 0xB7 << 8 | 1
    ior = 2 << 30 | 4 << 16 | 0xB7 << 8 | 2
    assert (iow, ior) == (names.IOC_ADD_SEALS, names.IOC_GET_SEALS)
    assert names.IOC_MOVE_PAGES == 3 << 30 | 4096 << 16 | 0xB7 << 8 | 3
