"""The story of tools/demo. Each step: the command a person types, what came back, and whether it held."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from memfsd.common.stdio import fill_standard_fds

MEBIBYTE = 1 << 20
LOADED_AT = MEBIBYTE
HOLE_AT, HOLE_SIZE = LOADED_AT + 0x10000, 0x10000
DEADLINE_S = 20.0
SHOWN_LINES = 8


class Broken(Exception):
    """A step cannot go on."""


class Story:
    """Prints the steps, counts what held."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._colours = sys.stdout.isatty()
        self.held = 0
        self.failed = 0

    def chapter(self, title: str) -> None:
        print(f"\n{self._paint('1', title)}", flush=True)

    def shell(self, command: str, holds: Callable[[int, str], bool], claim: str) -> str:
        """Run a shell command, show it and what it printed, and judge (exit status, output)."""
        print(f"  $ {command}")
        done = subprocess.run(
            ["/bin/bash", "-c", command],
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=DEADLINE_S,
            check=False,
        )
        output = done.stdout.decode(errors="replace").rstrip("\n")
        self._show(output)
        self.judge(holds(done.returncode, output), claim)
        return output

    def guest(self, vm: "Attached", line: str, holds: Callable[[dict[str, object]], bool], claim: str) -> None:
        """Give the attached simulator a command, show what it answered, and judge that."""
        print(f"  (kvmsim) {line}")
        answer = vm.ask(line)
        self._show(_in_words(answer))
        self.judge(holds(answer), claim)

    def judge(self, held: bool, claim: str) -> None:
        self.held += held
        self.failed += not held
        mark = self._paint("32", "✓") if held else self._paint("31", "✗")
        print(f"    {mark} {claim}", flush=True)

    def attribute(self, path: str, name: str) -> str:
        return os.getxattr(self._directory / path, f"user.memfsd.{name}").decode()

    def _show(self, output: str) -> None:
        lines = output.splitlines()
        for line in lines[:SHOWN_LINES]:
            print(f"    {line[:110]}")
        if len(lines) > SHOWN_LINES:
            print(f"    ... {len(lines) - SHOWN_LINES} more lines")

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colours else text


class Attached:
    """`kvmsim attach FILE --json` as a second process, given a line at a time."""

    def __init__(self, directory: Path, file: str) -> None:
        self._process = subprocess.Popen(
            ["kvmsim", "attach", file, "--gpa", "0", "--json"],
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, object]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Broken("kvmsim ended")
        answer: dict[str, object] = json.loads(line)
        return answer

    def ask(self, line: str) -> dict[str, object]:
        self.tell(line)
        return self.answer()

    def kill(self) -> int:
        """SIGKILL; the exit status."""
        if self._process.poll() is None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        return self._process.wait(DEADLINE_S)


def main() -> int:
    fill_standard_fds()
    started = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    directory = Path(tempfile.mkdtemp(prefix="memfsd-demo-"))
    (directory / "mnt").mkdir()
    story = Story(directory)
    try:
        with _clean_up(directory):
            _tell(story, directory)
    except KeyboardInterrupt:
        print("\ninterrupted: unmounted and cleaned up")
        return 130
    except (Broken, subprocess.TimeoutExpired, OSError) as error:
        story.judge(False, f"the story broke off: {error}")
    print(f"\n{story.held} held, {story.failed} failed, in {time.monotonic() - started:.1f} s")
    return 1 if story.failed else 0


def _tell(story: Story, directory: Path) -> None:
    _seal(story)
    program = Path(shutil.which("bash") or sys.executable).resolve()
    vm = Attached(directory, "mnt/vm.mem")
    try:
        _run(story, vm, program)
        _keep_private(story, directory, program)
        _take_back(story, vm, program)
        _share(story, vm)
        _exits(story, vm)
    finally:
        status = vm.kill()
    _die(story, vm.pid, status)
    _unmount(story, directory)


def _check(story: Story) -> None:
    story.shell("memfs check mnt", lambda status, out: status == 0 and "R1-R8 hold" in out, "the rules R1 to R8 hold")


def _seal(story: Story) -> None:
    story.chapter("Mount, and make a file private with shell tools")
    story.shell(
        "memfsd -o size=256M mnt", lambda status, _: status == 0, "mounted, and the daemon is in the background"
    )
    story.shell("touch mnt/vm.mem", lambda status, _: status == 0, "an ordinary, empty file")
    story.shell(
        "setfattr -n user.memfsd.seals -v guest mnt/vm.mem", lambda status, _: status == 0, "sealed: one way, forever"
    )
    story.shell("truncate -s 64M mnt/vm.mem", lambda status, _: status == 0, "its size is set, once")
    story.shell(
        "truncate -s 65M mnt/vm.mem", lambda status, out: status != 0 and "not permitted" in out, "and not twice"
    )
    story.shell(
        "stat -c '%n: %s bytes, %b blocks, mode %a' mnt/vm.mem",
        lambda _, out: "67108864 bytes, 0 blocks" in out,
        "64 MiB long, and it holds nothing yet",
    )
    story.shell("ls -l mnt", lambda _, out: "67108864" in out, "ls shows it like any file")
    story.shell("du -k mnt/vm.mem", lambda _, out: out.split()[0] == "0", "du is right")
    _check(story)

    story.chapter("The host cannot reach it")
    story.shell("cat mnt/vm.mem", lambda status, out: status != 0 and "not permitted" in out, "cat is refused")
    story.shell("cp mnt/vm.mem copy", lambda status, out: status != 0 and "not permitted" in out, "cp is refused")
    story.shell(
        "dd if=mnt/vm.mem of=/dev/null count=1",
        lambda status, out: status != 0 and "not permitted" in out,
        "dd cannot read",
    )
    story.shell(
        "dd if=/dev/zero of=mnt/vm.mem bs=4k count=1 conv=notrunc",
        lambda status, out: status != 0 and "not permitted" in out,
        "dd cannot write",
    )
    for words, access, flags in (
        ("read-only", "os.O_RDONLY", "mmap.PROT_READ"),
        ("read-write", "os.O_RDWR", "mmap.PROT_READ | mmap.PROT_WRITE"),
    ):
        story.shell(
            f"python3 -c 'import mmap, os; mmap.mmap(os.open(\"mnt/vm.mem\", {access}), 4096, prot={flags})'"
            " 2>&1 | tail -1",
            lambda _, out: "not permitted" in out,
            f"a {words} mmap is refused",
        )
    story.shell(
        "python3 -c 'import mmap, os; mmap.mmap(os.open(\"mnt/vm.mem\", os.O_WRONLY), 4096, prot=mmap.PROT_WRITE)'"
        " 2>&1 | tail -1",
        lambda _, out: "Permission denied" in out,
        "and so is one of a write-only handle, the only kind there is",
    )


def _run(story: Story, vm: Attached, program: Path) -> None:
    story.chapter("A second process, kvmsim, attaches and pairs; its guest runs a real file through private memory")
    print("  $ kvmsim attach mnt/vm.mem --gpa 0")
    story.guest(vm, "info slots", lambda a: a["ok"] is True, "private slot 0 covers gpa 0 to 64M")
    story.shell(
        "getfattr --only-values -n user.memfsd.owner mnt/vm.mem",
        lambda _, out: f"pid={vm.pid} " in out and "state=paired" in out,
        "the file belongs to that VM now, for life",
    )
    digest = story.shell(f"sha256sum {program}", lambda status, _: status == 0, "a program of this machine").split()[0]
    story.guest(vm, f"load 1M {program}", lambda a: a["ok"] is True, "loaded by the guest's vCPU, fault by fault")
    story.guest(
        vm, f"sha256 1M {program.stat().st_size}", lambda a: a["data"] == digest, "the guest sees exactly those bytes"
    )
    story.shell("du -k mnt/vm.mem", lambda _, out: int(out.split()[0]) > 0, "frames were granted")
    _check(story)


def _keep_private(story: Story, directory: Path, program: Path) -> None:
    story.chapter("Nothing of it can be read through the mount")
    body = program.read_bytes()
    needle = body[len(body) // 2 :][:64]
    read, refused, found = 0, 0, 0
    print("  (read every file and attribute under mnt, and look for 64 bytes from the middle of the program)")
    for path in (directory / "mnt").rglob("*"):
        for name in os.listxattr(path):
            read += 1
            found += needle in os.getxattr(path, name)
        try:
            found += needle in path.read_bytes()
            read += 1
        except PermissionError:
            refused += 1
    story.judge(found == 0 and refused == 1, f"{read} things read, {refused} refused, the bytes found {found} times")
    story.shell(
        "echo 'slot set 0 private gpa=0 size=64M file=mnt/vm.mem' | kvmsim run -",
        lambda status, out: status == 1 and "EPERM" in out,
        "a second VM is refused",
    )


def _take_back(story: Story, vm: Attached, program: Path) -> None:
    story.chapter("A hole is punched from the shell while the guest runs")
    rounds = 40
    print(f"  (kvmsim) touch 0 48M     ... {rounds} times, while:")
    for _ in range(rounds):
        vm.tell("touch 0 48M")
    story.shell(
        f"memfs fallocate -p -o {HOLE_AT:#x} -l {HOLE_SIZE // 1024}K mnt/vm.mem",
        lambda status, _: status == 0,
        "the store called back, the VM acknowledged, the frames were freed, and only then did the command return",
    )
    answers = [vm.answer() for _ in range(rounds)]
    story.judge(all(a["ok"] for a in answers), f"the guest ran on: {rounds} sweeps over its memory")
    body = program.read_bytes()
    before, after = HOLE_AT - LOADED_AT, HOLE_AT + HOLE_SIZE
    zeros = hashlib.sha256(bytes(HOLE_SIZE)).hexdigest()
    story.guest(vm, f"sha256 {HOLE_AT:#x} {HOLE_SIZE}", lambda a: a["data"] == zeros, "the hole reads as zeros")
    kept = hashlib.sha256(body[:before]).hexdigest()
    story.guest(vm, f"sha256 1M {before}", lambda a: a["data"] == kept, "the bytes before it are intact")
    rest = body[before + HOLE_SIZE :]
    kept_after = hashlib.sha256(rest).hexdigest()
    story.guest(vm, f"sha256 {after:#x} {len(rest)}", lambda a: a["data"] == kept_after, "and so are those behind it")
    story.guest(vm, "info stats", lambda a: a["ok"] is True, "vCPUs were kicked out and their TLBs flushed")
    _check(story)


def _share(story: Story, vm: Attached) -> None:
    story.chapter("A range is converted to shared, over an ordinary file on the same mount")
    story.shell("truncate -s 1M mnt/shared.bin", lambda status, _: status == 0, "an ordinary file: the shared memory")
    story.guest(vm, "slot punch 0 gpa=32M size=1M", lambda a: a["ok"] is True, "a hole in the private slot")
    story.guest(
        vm,
        "slot set 1 shared gpa=32M size=1M file=mnt/shared.bin",
        lambda a: a["ok"] is True,
        "a shared slot in its place",
    )
    story.guest(
        vm, 'write 32M "hello, host" shared', lambda a: a["ok"] is True, "the guest writes through the shared alias"
    )
    story.shell("head -c 11 mnt/shared.bin", lambda _, out: out == "hello, host", "the host reads it from the file")
    story.shell(
        "printf 'hello, guest' | dd of=mnt/shared.bin conv=notrunc status=none",
        lambda status, _: status == 0,
        "and answers",
    )
    story.guest(vm, "read 32M 12 shared", lambda a: a["data"] == b"hello, guest".hex(), "the guest reads the answer")
    _check(story)


def _exits(story: Story, vm: Attached) -> None:
    story.chapter("What no slot covers comes back to user space")
    story.guest(
        vm,
        "read 4G 4 shared",
        lambda a: a["exit"] == "KVM_EXIT_MMIO",
        "an access to nothing is MMIO, for the VMM to emulate",
    )
    story.guest(
        vm,
        "read 1M 4 shared",
        lambda a: a["exit"] == "KVM_EXIT_MEMORY_ERROR",
        "the shared alias of private memory is an error",
    )
    story.guest(
        vm, "read 32M 4", lambda a: a["exit"] == "KVM_EXIT_MEMORY_ERROR", "and so is the private alias of shared memory"
    )


def _die(story: Story, pid: int, status: int) -> None:
    story.chapter("kvmsim is killed, and everything comes back")
    print(f"  $ kill -9 {pid}")
    story.judge(status == -signal.SIGKILL, "it had no chance to say goodbye")
    back = _wait_until(lambda: "state=ended" in story.attribute("mnt/vm.mem", "owner"))
    story.judge(back, "the store proved its death (end of file, and the process is gone)")
    _wait_until(lambda: " closing=0 " in story.attribute("mnt", "pool"))
    story.shell("df -k --output=used mnt | tail -1", lambda _, out: int(out) <= 4, "all its frames are free again")
    story.shell(
        "memfs stat mnt/vm.mem",
        lambda _, out: "guest" in out and "blocks  0" in out,
        "the file is empty and still sealed",
    )
    story.shell("cat mnt/vm.mem", lambda status, out: status != 0 and "not permitted" in out, "still nobody reads it")
    story.shell(
        "echo 'slot set 0 private gpa=0 size=64M file=mnt/vm.mem' | kvmsim run -",
        lambda status, out: status == 1 and "EPERM" in out,
        "and it never takes another VM",
    )
    _check(story)


def _unmount(story: Story, directory: Path) -> None:
    story.chapter("Unmount")
    pid = _daemon_of(directory)
    story.shell("umount mnt", lambda status, _: status == 0, "unmounted")
    story.judge(_wait_until(lambda: not Path(f"/proc/{pid}").exists()), "the daemon has ended")


def _daemon_of(directory: Path) -> int:
    """memfsd's socket is named by its process id."""
    return int(Path(os.fsdecode(os.getxattr(directory / "mnt", "user.memfsd.socket"))).stem)


def _wait_until(holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + DEADLINE_S
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@contextlib.contextmanager
def _clean_up(directory: Path) -> Iterator[None]:
    """Whatever happens, nothing stays mounted or running: not even when this process is killed."""
    read_end, write_end = os.pipe()
    guardian = os.fork()
    if guardian == 0:
        os.close(write_end)
        os.setsid()  # what interrupts the story does not reach it
        os.read(read_end, 1)  # nothing is ever written: the story has ended
        _remove(directory)
        os._exit(0)
    os.close(read_end)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.close(write_end)
        os.waitpid(guardian, 0)


def _remove(directory: Path) -> None:
    """Once more as long as something is left: a memfsd that was just being started may still mount."""
    mount = str(directory / "mnt")

    def is_gone() -> bool:
        if f" {mount} " in Path("/proc/self/mountinfo").read_text():
            subprocess.run(["umount", "-l", mount], timeout=DEADLINE_S, check=False)
        shutil.rmtree(directory, ignore_errors=True)
        return not directory.exists()

    _wait_until(is_gone)


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _in_words(answer: dict[str, object]) -> str:
    if answer.get("text"):
        return str(answer["text"])
    if answer["exit"]:
        fields = answer["exit_fields"]
        assert isinstance(fields, dict)
        shown = (f"{k}={v:#x}" if isinstance(v, int) and v > 9 else f"{k}={int(v)}" for k, v in fields.items())
        return " ".join([str(answer["exit"]), *shown])
    if answer["errno"]:
        return f"{answer['errno']}: {answer.get('reason', '')}"
    return str(answer["data"]) if answer["data"] else "ok"


if __name__ == "__main__":
    sys.exit(main())
