"""A real KVM answers one case. As a program: ops as JSON on stdin, answers as JSON on stdout.

It imports nothing of ours, so that `ask` can run it alone in a fresh process: what a case leaves behind (fds,
VMs, mappings) ends with it, and fds have the same numbers each time.

Numbers and layouts: include/uapi/linux/kvm.h (Linux 6.18).
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import struct
import subprocess
import sys
from typing import Any

_KVM_CREATE_VM = 0xAE01
_KVM_CHECK_EXTENSION = 0xAE03
_KVM_CREATE_VCPU = 0xAE41
_KVM_SET_USER_MEMORY_REGION = 0x4020AE46
_KVM_SET_USER_MEMORY_REGION2 = 0x40A0AE49
_KVM_CREATE_GUEST_MEMFD = 0xC040AED4
_KVM_CAP_USER_MEMORY2 = 231
_KVM_CAP_GUEST_MEMFD = 234

_REGION = struct.Struct("=2I3Q")
_REGION2 = struct.Struct("=2I4Q2I14Q")
_GUEST_MEMFD = struct.Struct("=8Q")
_MEMORY_BYTES = 16 * 4096
_DEADLINE_S = 60.0


def unavailable() -> str | None:
    """None when cases can be asked here, else in one line why not."""
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/kvm cannot be opened: {error.strerror}"
    try:
        vm = fcntl.ioctl(kvm, _KVM_CREATE_VM, 0)
    except OSError as error:
        return f"KVM makes no VM: {error.strerror}"
    finally:
        os.close(kvm)
    try:
        if not fcntl.ioctl(vm, _KVM_CHECK_EXTENSION, _KVM_CAP_USER_MEMORY2):
            return "this KVM has no KVM_SET_USER_MEMORY_REGION2 (Linux 6.8)"
        if not fcntl.ioctl(vm, _KVM_CHECK_EXTENSION, _KVM_CAP_GUEST_MEMFD):
            return "this KVM has no guest_memfd for ordinary VMs"
    finally:
        os.close(vm)
    return None


def ask(ops: list[dict[str, object]]) -> list[dict[str, object]]:
    """The answer to each op, {"result": 0} or {"errno": name}. RuntimeError when the process fails."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", __file__],
        input=json.dumps(ops),
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise RuntimeError(f"KVM could not be asked: {last}")
    answers: list[dict[str, object]] = json.loads(done.stdout)
    return answers


class _Asker:
    def __init__(self) -> None:
        self._kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        self._fds: dict[str, int] = {}
        self._memories: dict[str, mmap.mmap] = {}
        self.do({"op": "create_vm", "as": "vm"})
        self.do({"op": "anon", "as": "a"})

    def do(self, op: dict[str, Any]) -> None:
        """OSError is KVM's answer."""
        match op["op"]:
            case "create_vm":
                self._fds[op["as"]] = fcntl.ioctl(self._kvm, _KVM_CREATE_VM, 0)
            case "create_vcpu":
                fcntl.ioctl(self._fds["vm"], _KVM_CREATE_VCPU, op["id"])
            case "anon":
                self._memories[op["as"]] = mmap.mmap(-1, _MEMORY_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            case "create_gmem":
                size = bytearray(_GUEST_MEMFD.pack(op["size"], *[0] * 7))
                self._fds[op["as"]] = fcntl.ioctl(self._fds[op["vm"]], _KVM_CREATE_GUEST_MEMFD, size)
            case "plain_file":
                self._fds[op["as"]] = os.memfd_create(op["as"])
            case "dup":
                self._fds[op["as"]] = os.dup(self._fds[op["of"]])
            case "close":
                # The number stays known: it is what a later op names, and nothing else has it by then.
                os.close(self._fds[op["of"]])
            case "set_region":
                request = _REGION.pack(op["slot"], op["flags"], op["gpa"], op["size"], self._address(op["uaddr"]))
                fcntl.ioctl(self._fds[op.get("vm", "vm")], _KVM_SET_USER_MEMORY_REGION, request)
            case "set_region2":
                gmem = op["gmem"] if isinstance(op["gmem"], int) else self._fds[op["gmem"]]
                request = _REGION2.pack(
                    op["slot"],
                    op["flags"],
                    op["gpa"],
                    op["size"],
                    self._address(op["uaddr"]),
                    op["off"],
                    gmem,
                    *[0] * 15,
                )
                fcntl.ioctl(self._fds[op.get("vm", "vm")], _KVM_SET_USER_MEMORY_REGION2, request)
            case other:
                raise ValueError(f"unknown op {other}")

    def _address(self, uaddr: int | list[Any]) -> int:
        if isinstance(uaddr, int):
            return uaddr
        name, offset = uaddr
        return int(offset) + ctypes.addressof(ctypes.c_char.from_buffer(self._memories[name]))


def _main() -> None:
    asker = _Asker()
    answers: list[dict[str, object]] = []
    for op in json.load(sys.stdin):
        try:
            asker.do(op)
        except OSError as error:
            if error.errno is None:
                raise
            answers.append({"errno": errno.errorcode[error.errno]})
        else:
            answers.append({"result": 0})
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    _main()
