"""Where kvmsim answers otherwise than the recorded KVM, and why: the one list of it, and docs/fidelity.md from it.

tests/fidelity holds it to be exact: what is not listed here is the same, and what is listed does differ.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from .cases import Op
from .recording import Answer, Recording

_OK: Answer = {"result": 0}


@dataclass(frozen=True)
class Deviation:
    """answers: by case, by index of the op in it, the name of kvmsim's errno, or "0"."""

    title: str
    why: str
    answers: dict[str, dict[int, str]]


_BOTH = ("slot/v1", "slot/v2")

DEVIATIONS: tuple[Deviation, ...] = (
    Deviation(
        "Guest physical addresses end at 2^48",
        "kvmsim's EPT has four levels, which reach 2^48; bit 51 of a GPA is the SHARED bit. A real KVM's end where "
        "the CPU's physical addresses do (2^52 on the recorded machine). The check is made where KVM makes it: last.",
        {
            **{f"{group}/gpa_bit48": {0: "EINVAL"} for group in _BOTH},
            **{f"{group}/gpa_bit51": {0: "EINVAL", 1: "EINVAL", 2: "EINVAL"} for group in _BOTH},
            **{f"{group}/gpa_bit52": {1: "EINVAL", 2: "EINVAL"} for group in _BOTH},
            "gslot/gpa_bit48": {1: "EINVAL"},
        },
    ),
    Deviation(
        "Private slots have an address space of their own",
        "As the thread asks: shared is address space 0, private is 1. So a GPA can have a shared and a private slot at "
        "once, and address space 1 exists.",
        {
            "gslot/overlap_gpa_vs_plain": {2: "0"},
            "gslot/overlap_plain_vs_gpa": {2: "0"},
            "gslot/address_space": {1: "0"},
        },
    ),
    Deviation(
        "There is one call, and it is v2",
        "KVM_SET_USER_MEMORY_REGION knows no KVM_MEM_GUEST_MEMFD even when it deletes; kvmsim has only what "
        "KVM_SET_USER_MEMORY_REGION2 does, where a deletion with the flag works.",
        {"slot/v1/delete_with_gmem_flag": {1: "0"}},
    ),
    Deviation(
        "Private slots have no userspace_addr",
        "There is no host mapping of private memory, so none can be out of line.",
        {"gslot/unaligned_uaddr": {1: "0"}},
    ),
    Deviation(
        "A file is named by its path",
        "kvmsim opens the file itself, so what is EBADF for an fd that is not open is open(2)'s errno, at the same "
        "place in the order of checks.",
        {
            "gslot/fd_bad": {0: "ENOENT"},
            "gslot/fd_closed": {2: "ENOENT"},
            "gslot/fd_bad_before_the_end_of_gpas": {0: "ENOENT"},
            "gslot/fd_bad_before_past_eof": {1: "ENOENT"},
        },
    ),
    Deviation(
        "A file of another VM is EPERM",
        "The store refuses a second owner with EPERM, as the 2021 seal code did; KVM answers EINVAL. A guest_memfd "
        "belongs to a VM when it is made, a sealed file when its first slot is.",
        {"gslot/another_vms": {3: "EPERM", 4: "EPERM"}},
    ),
    Deviation(
        "A file range that another slot has is EEXIST",
        "So it is in Linux from 7.2 on; the recorded kernel is older and answers EINVAL.",
        {
            "gslot/overlap_file_exact": {2: "EEXIST"},
            "gslot/overlap_file_partial": {2: "EEXIST"},
            "gslot/overlap_file_via_dup": {3: "EEXIST"},
        },
    ),
    Deviation(
        "A page keeps its GFN",
        "The store does not bind a page at another GFN than before (`fixed_gfn`), as TDX and SNP hardware do not; "
        "upstream Linux does not enforce it. A mount with `fixed_gfn=off` answers as KVM does.",
        {"gslot/readd_at_another_gpa": {3: "EINVAL"}},
    ),
)

NOT_ASKED = {f"{group}/{name}" for group in _BOTH for name in ("uaddr_unmapped", "uaddr_kernel")}
"""Cases about addresses of a real process: kvmsim has no host address space, its shared slots name a memory and
an offset."""


def deviating() -> Iterator[tuple[str, int, Answer]]:
    """(case, op, kvmsim's answer) of every listed deviation."""
    for deviation in DEVIATIONS:
        for name, answers in deviation.answers.items():
            for at, text in answers.items():
                yield name, at, _OK if text == "0" else {"errno": text}


def render(recording: Recording) -> str:
    """docs/fidelity.md."""
    meta = recording.meta
    asked = [recorded for recorded in recording.cases if recorded.case.name not in NOT_ASKED]
    op_count = sum(len(recorded.answers) for recorded in asked)
    deviating_count = sum(len(answers) for deviation in DEVIATIONS for answers in deviation.answers.values())
    lines = [
        "# Fidelity: memslots beside a real KVM",
        "",
        "<!-- Made by `tools/record-kvm --render` from tools/fidelity/deviations.py: edit that. -->",
        "",
        "KVM_SET_USER_MEMORY_REGION and KVM_SET_USER_MEMORY_REGION2 were asked on a real /dev/kvm, each case in a",
        f"fresh process (Linux {meta['kernel']}, {meta['machine']}, {meta['date']}), and the answers kept in",
        "`tests/fidelity/kvm-memslots.json`. `tests/fidelity` asks kvmsim the same. The same errno must come, also",
        "where two things are wrong at once, so the checks are in the same order. All that differs is listed here.",
        "",
        f"* {op_count} ops of {len(asked)} cases are asked of both;",
        f"  {deviating_count} answers differ, for {len(DEVIATIONS)} reasons.",
        f"* {len(NOT_ASKED)} cases are about addresses of a real process and are not asked of kvmsim, which has no",
        "  host address space (a shared slot names a memory and an offset in it):",
        f"  {_names(NOT_ASKED)}.",
        "",
        "Record again with `tools/record-kvm --date DATE` on a machine with /dev/kvm (Linux 6.8 or later), then",
        "`tools/record-kvm --render`. Some answers are a machine's own (its address width, its kernel): these cases",
        "say so in the recording (`varies`), and are left out when a test records some again and compares.",
        "",
        "## What differs",
    ]
    for deviation in DEVIATIONS:
        lines += [
            "",
            f"### {deviation.title}",
            "",
            deviation.why,
            "",
            "| case | op | KVM | kvmsim |",
            "|---|---|---|---|",
        ]
        for name, answers in deviation.answers.items():
            recorded = recording[name]
            for at, text in answers.items():
                kvm_text = str(recorded.answers[at].get("errno", 0))
                lines.append(f"| {name} | {at}: {_spelt(recorded.case.ops[at])} | {kvm_text} | {text} |")
    return "\n".join([*lines, ""])


def _names(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _spelt(op: Op) -> str:
    """A region in one line, without what is zero."""
    parts = [f"slot={op['slot']:#x}", f"gpa={op['gpa']:#x}", f"size={op['size']:#x}"]
    parts += [f"{key}={op[key]}" for key in ("vm", "gmem") if op.get(key)]
    parts += [f"{key}={op[key]:#x}" for key in ("flags", "off") if op.get(key)]
    if isinstance(op["uaddr"], list) and op["uaddr"][1]:
        parts.append(f"uaddr={op['uaddr'][0]}+{op['uaddr'][1]:#x}")
    return f"`{' '.join(parts)}`"
