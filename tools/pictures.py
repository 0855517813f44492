"""The two pictures that the README opens with: `tools/render-pictures` writes them.

docs/processes.svg   the two processes, with a fault and an invalidation
docs/session.svg     a terminal: the commands of SESSION, as they were run, with what they printed
"""

import os
import subprocess
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROCESSES = ROOT / "docs" / "processes.svg"
RECORDED = ROOT / "docs" / "session.svg"
DEADLINE_S = 120

INK, GREY, PAPER = "#1f2933", "#7b8794", "#ffffff"
FAULT, TAKEN = "#1d64b4", "#b4371d"
_FACE = "font-family='DejaVu Sans,Verdana,sans-serif'"
_MONO = "font-family='DejaVu Sans Mono,Menlo,Consolas,monospace'"

SESSION = """\
memfs create mnt/vm.mem --size 16M --guest
cat mnt/vm.mem
kvmsim run demo.kvm
memfs check mnt
"""
SCRIPT = """\
slot set 0 private gpa=0 size=16M file=mnt/vm.mem
write 0x3000 "only the guest reads this"
sh memfs map mnt/vm.mem
sh memfs fallocate -p -o 12K -l 4K mnt/vm.mem
read 0x3000 25
info ept 0x3000
"""


# -- the drawing


def text(x: int, y: int, words: str, *, size: int = 14, colour: str = INK, more: str = "") -> str:
    return f"<text x='{x}' y='{y}' font-size='{size}' fill='{colour}' {more}>{escape(words)}</text>"


def box(x: int, y: int, width: int, height: int, title: str, *lines: str, fill: str = PAPER) -> str:
    """A title in bold, and lines below it."""
    drawn = [f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='6' fill='{fill}' stroke='{INK}'/>"]
    drawn.append(text(x + 12, y + 22, title, more="font-weight='bold'"))
    drawn += [text(x + 12, y + 42 + 18 * n, line, size=12, colour="#52606d") for n, line in enumerate(lines)]
    return "\n".join(drawn)


def arrow(points: str, colour: str) -> str:
    mark = "fault" if colour == FAULT else "taken"
    return f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='2' marker-end='url(#{mark})'/>"


def step(x: int, y: int, number: str, words: str, colour: str) -> str:
    """A numbered step."""
    dot = f"<circle cx='{x}' cy='{y - 4}' r='9' fill='{colour}'/>"
    return (
        dot + text(x, y, number, size=11, colour=PAPER, more="text-anchor='middle'") + text(x + 15, y, words, size=12)
    )


def head(name: str, colour: str) -> str:
    shape = f"<path d='M0,0 L10,5 L0,10 z' fill='{colour}'/>"
    size = "viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' markerHeight='7' orient='auto'"
    return f"<marker id='{name}' {size}>{shape}</marker>"


def processes() -> str:
    """A fault (blue, 1 to 5) runs from the guest to the store and back, an invalidation (red, A to E) the other way."""
    process = "rx='10' fill='#f5f7fa' stroke='#9aa5b1' stroke-dasharray='5 4'"
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 960 500' {_FACE}>",
            f"<title>A page fault and an invalidation</title><defs>{head('fault', FAULT)}{head('taken', TAKEN)}</defs>",
            f"<rect width='960' height='500' fill='{PAPER}'/>",
            f"<rect x='16' y='44' width='330' height='384' {process}/>",
            f"<rect x='614' y='44' width='330' height='384' {process}/>",
            text(16, 30, "kvmsim: VMs and their KVM, one process", size=15, more="font-weight='bold'"),
            text(614, 30, "memfsd: the store, a FUSE mount", size=15, more="font-weight='bold'"),
            box(36, 60, 290, 58, "vCPU", "guest code, TLB"),
            box(36, 158, 290, 58, "private memslot 0", "GPA 0x3000 is page 3 of mnt/vm.mem", fill="#eaf2fb"),
            box(36, 256, 290, 58, "EPT", "GPA 0x3000 → frame 7", fill="#eaf2fb"),
            box(36, 354, 290, 58, "notifier", "a thread that only the store calls", fill="#fbeeea"),
            box(634, 60, 270, 58, "mnt/vm.mem, sealed", "no read(2), no write(2), no mmap(2)"),
            box(634, 158, 270, 58, "page table of the file", "page 3 → frame 7, bound to GPA 0x3000", fill="#eaf2fb"),
            box(634, 256, 270, 58, "pool of frames", "private, pending, shared, free"),
            box(634, 354, 270, 58, "invalidation", "holds the file's invalidate_lock", fill="#fbeeea"),
            arrow("60,118 60,158", FAULT),
            step(76, 142, "1", "touches GPA 0x3000: EPT violation", FAULT),
            arrow("326,176 634,176", FAULT),
            step(362, 168, "2", "GET_PFN page 3 (down channel)", FAULT),
            arrow("634,200 480,200 480,284 326,284", FAULT),
            step(496, 220, "3", "frame 7, granted", FAULT),
            step(362, 276, "4", "mapped", FAULT),
            arrow("60,256 60,216", FAULT),
            step(76, 240, "5", "the access goes on", FAULT),
            arrow("904,88 928,88 928,382 904,382", TAKEN),
            step(650, 142, "A", "the host: fallocate(PUNCH_HOLE)", TAKEN),
            arrow("634,370 326,370", TAKEN),
            step(362, 362, "B", "INVALIDATE_BEGIN (up channel)", TAKEN),
            arrow("60,354 60,314", TAKEN),
            step(76, 338, "C", "zap, flush TLBs, kick vCPUs", TAKEN),
            arrow("326,396 634,396", TAKEN),
            step(362, 416, "D", "acknowledged: nothing maps it", TAKEN),
            arrow("660,354 660,314", TAKEN),
            step(676, 338, "E", "frame 7 is zeroed, and free", TAKEN),
            f"<rect x='36' y='446' width='868' height='34' rx='6' fill='#e4e7eb' stroke='{INK}'/>",
            text(
                470,
                468,
                "the file's window: a memfd that KVM has mapped. Guests reach their bytes without a call.",
                size=12,
                more="text-anchor='middle'",
            ),
            "</svg>\n",
        ]
    )


# -- the recording


def recorded() -> list[tuple[str, str]]:
    """Each command of the session with what it printed."""
    sys.path.insert(0, str(ROOT))
    import memfsd

    steps: list[tuple[str, str]] = []
    with memfsd.mounted(size="64M") as mount:
        place = Path(mount.path).parent
        (place / "demo.kvm").write_text(SCRIPT)
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LC_ALL": "C"}
        for command in SESSION.splitlines():
            done = subprocess.run(
                ["/bin/bash", "-c", command],
                cwd=place,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=DEADLINE_S,
                check=False,
            )
            steps.append((command, done.stdout.rstrip("\n")))
    return steps


def terminal(steps: list[tuple[str, str]]) -> str:
    lines: list[tuple[str, str]] = []
    for command, said in steps:
        lines.append(("#9fd3ff", f"$ {command}"))
        lines += [(_colour(line), line) for line in said.splitlines()]
    height = 44 + 18 * len(lines) + 12
    dots = "".join(
        f"<circle cx='{20 + 18 * n}' cy='17' r='5' fill='{c}'/>" for n, c in enumerate(("#f66", "#fc5", "#6c6"))
    )
    drawn = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 860 {height}' {_MONO}>",
        "<title>A sealed file, a guest that uses it, and a punch from the host</title>",
        f"<rect width='860' height='{height}' rx='8' fill='#1b2430'/>{dots}",
    ]
    for number, (colour, line) in enumerate(lines):
        drawn.append(text(20, 52 + 18 * number, line, size=13, colour=colour, more="xml:space='preserve'"))
    return "\n".join([*drawn, "</svg>\n"])


def _colour(line: str) -> str:
    if "not permitted" in line:
        return "#ff9d8a"
    return "#8c9bab" if line[:1].isdigit() and "> " in line[:5] else "#e6edf3"


def main() -> None:
    PROCESSES.write_text(processes())
    RECORDED.write_text(terminal(recorded()))


if __name__ == "__main__":
    main()
