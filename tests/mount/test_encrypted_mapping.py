"""The memfd_encrypted mapping of the thread on a real mount: a VMA that stands for a sealed file, and an overlay."""

import json
import os
import subprocess
from pathlib import Path

from tests.support.real_mount import BIN, DEADLINE_S, ENVIRONMENT, seal

SCRIPT = """\
hva map vm.mem at=0x100000000
hva map vm.mem
expect errno EBUSY
hva unmap 0x100000000 4K
expect errno EPERM
hva read 0x100000000 1
expect errno EFAULT
slot set 0 private gpa=0 size=32K hva=0x100000000
expect errno EINVAL
slot set 1 shared gpa=1G size=4K hva=0x100000000
expect errno EFAULT
slot set 0 private gpa=0 size=64K hva=0x100000000
write 0 "under the overlay"
write 4K "elsewhere"
hva anon 64K at=0x200000000
policy overlay
write 4K "for the host" shared
host read 4K 12
expect data "for the host"
read 4K 9
expect data "elsewhere"
slot set 2 shared gpa=8K size=4K hva=0x200001000
write 8K "seen by the VMM" shared
hva read 0x200001000 15
expect data "seen by the VMM"
hva unmap 0x200000000 64K
expect errno EBUSY
slot delete 0 private
expect errno EPERM
slot punch 0 gpa=0 size=4K
expect errno EPERM
hva fork child
hva read 0x200001000 4
expect data "seen"
hva read 0x100000000 1
expect errno EFAULT
hva map vm.mem
expect errno EBUSY
hva exit
hva exit
expect errno EPERM
hva dump
info hva
slot delete 2 shared
hva unmap 0x200000000 64K
hva map plain
expect errno EINVAL
hva map none
expect errno ENOENT
hva map small.mem private
expect errno EINVAL
read 0 17
expect data "under the overlay"
"""


def test_every_rule_of_the_mapping_as_a_script(place: Path) -> None:
    for name, size in (("vm.mem", 65536), ("small.mem", 4096)):
        (place / name).touch()
        seal(place / name)
        os.truncate(place / name, size)
    (place / "plain").write_bytes(b"plain")
    done = subprocess.run(
        [BIN / "kvmsim", "run", "-", "--json"],
        input=SCRIPT,
        cwd=place,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, lines[-1]
    report = {line["cmd"]: line for line in lines}
    assert [vma["hva"] for vma in report["hva dump"]["info"]] == [0x2_0000_0000], "nothing encrypted in a dump"
    mapped = {vma["hva"]: vma["flags"] for vma in report["info"]["info"]}
    assert "VM_DONTCOPY" in mapped[0x1_0000_0000]
