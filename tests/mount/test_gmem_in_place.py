"""kvmsim and guest_memfds of a real mount: pages are converted in place, and a VM of another ABI gets no file."""

import subprocess
from pathlib import Path

import pytest

from tests.support.host_memory import shared
from tests.support.real_mount import BIN, DEADLINE_S, ENVIRONMENT, PAGE, MountFactory

IN_PLACE = """
gmem create g file={path} size=64K flags=mmap
slot set2 0 gpa=0 size=64K gmem=g
write 0 "secret"
read 0 6 shared
expect exit MEMORY_FAULT flags=0 gpa=0 size=4K
gmem attributes g 0 4K shared
read 0 6
expect exit MEMORY_FAULT flags=8
read 0 6 shared
expect data "secret"
write 0 "public" shared
gmem attributes g 0 4K private
read 0 6
expect data "public"
gmem attributes g 0 1 private
expect errno EINVAL
gmem attributes g 64K 4K private
expect errno EINVAL
gmem close g
read 0 6
expect errno EFAULT
"""


ENCRYPTED = """
gmem create g file={path} size=64K flags=mmap
slot set2 0 gpa=0 size=64K gmem=g
write 0 "secret"
gmem attributes g 0 4K shared
write 8 "public" shared
gmem attributes g 0 4K private
read 0 14
expect data 0000000000000000000000000000
"""


def run(script: str, abi: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "kvmsim", "run", "--abi", abi, *options, "-"],
        input=script,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_pages_are_converted_in_place_and_keep_their_contents(mount: MountFactory) -> None:
    mounted = mount("abi=gmem-inplace,size=16M")
    done = run(IN_PLACE.format(path=mounted.path / "g"), "gmem-inplace")
    assert done.returncode == 0, done.stdout + done.stderr


A24 = """
gmem open g file={path}
slot set2 0 gpa=0 size=16K gmem=g
read 0 16 shared
expect data aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
read 0x3ff0 16 shared
expect data aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
write 0 {ones} shared
"""


@pytest.mark.parametrize("abi", ["gmem-6.18", "gmem-7.2", "gmem-inplace"])
def test_a24_the_host_and_the_guest_share_a_file_without_userspace_addr(mount: MountFactory, abi: str) -> None:
    """guest_memfd_test.c, end to end: what the host wrote the guest sees, and what the guest wrote the host sees."""
    path = mount(f"abi={abi},size=16M").path / "g"
    made = [str(BIN / "memfs"), "create", "--flags", "mmap,init-shared", "--size", "16K", str(path)]
    subprocess.run(made, env=ENVIRONMENT, check=True, timeout=DEADLINE_S, stdout=subprocess.DEVNULL)
    with open(path, "r+b", buffering=0) as file, shared(file.fileno(), 4 * PAGE) as mapping:
        mapping[:] = b"\xaa" * len(mapping)
        done = run(A24.format(path=path, ones="ff" * 4 * PAGE), abi)
        assert done.returncode == 0, done.stdout + done.stderr
        assert mapping[:] == b"\xff" * len(mapping)


def test_with_memory_encryption_a_page_that_becomes_private_is_zero(mount: MountFactory) -> None:
    """As on TDX and SNP; what becomes shared is ciphertext."""
    mounted = mount("abi=gmem-inplace,size=16M")
    done = run(ENCRYPTED.format(path=mounted.path / "g"), "gmem-inplace", "--memory-encryption", "on")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_file_that_a_vm_of_another_abi_creates_is_refused_and_gone(mount: MountFactory) -> None:
    mounted = mount("abi=gmem-7.2,size=16M")
    done = run(f"gmem create g file={mounted.path / 'g'} size=64K\n", "gmem-6.18")
    assert done.returncode == 1
    assert "kvmsim --abi gmem-7.2" in done.stdout
    assert list(Path(mounted.path).iterdir()) == []


POLICIES = """
policy {policy}
gmem create g file={path} size=4M{flags}
slot set2 0 gpa=0 size=4M gmem=g
{private}
write 0 "secret"
write 12K "beside"
map 0 8K shared
expect ok
read 0 6 shared
expect data {after}
write 0 "public" shared
read 12K 6
expect data "beside"
write 0x3ff000 "shared" shared
write 0x3ff000 "again private"
read 0 6
expect data {back}
"""


@pytest.mark.parametrize(
    ("policy", "abi", "flags", "private", "after", "back"),
    [
        ("attributes", "gmem-6.18", "", "attributes 0 4M private", "000000000000", "000000000000"),
        ("inplace", "gmem-inplace", " flags=mmap", "", '"secret"', '"public"'),
    ],
)
def test_a_policy_converts_by_attributes(
    mount: MountFactory, policy: str, abi: str, flags: str, private: str, after: str, back: str
) -> None:
    mounted = mount(f"abi={abi},size=16M")
    script = POLICIES.format(
        path=mounted.path / "g", policy=policy, flags=flags, private=private, after=after, back=back
    )
    done = run(script, abi)
    assert done.returncode == 0, done.stdout + done.stderr
