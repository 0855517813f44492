"""Every command of the contract, every mistake with its place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsim.shell.script import commands as c
from kvmsim.shell.script.grammar import EXIT_REASONS, FORMS, help_text, parse_line
from kvmsim.shell.script.repeat import parse_script
from kvmsim.shell.script.words import ScriptError
from memfsd.uapi import limits

CONTRACT: list[tuple[str, c.Command]] = [
    ("vm guest1", c.SwitchVm("guest1")),
    ("vcpu 1", c.CreateVcpu(1)),
    (
        "slot set 0 private gpa=0x100000 size=64M file=/mnt/g",
        c.SlotSet(0, True, 0x100000, 64 << 20, "/mnt/g", 0, 0),
    ),
    (
        "slot set 1 shared gpa=1G size=4K file='a b' offset=8K flags=readonly",
        c.SlotSet(1, False, 1 << 30, 4096, "a b", 8192, 2),
    ),
    ("slot set 2 shared gpa=0 size=1T", c.SlotSet(2, False, 0, 1 << 40, None, 0, 0)),
    ("slot set 2 shared size=4K gpa=0 flags=log_dirty,readonly", c.SlotSet(2, False, 0, 4096, None, 0, 3)),
    ("slot set 2 shared gpa=0 size=0 flags=0x10", c.SlotSet(2, False, 0, 0, None, 0, 16)),
    ("slot delete 3 private", c.SlotDelete(3, True)),
    ("slot delete 3 shared", c.SlotDelete(3, False)),
    ("slot punch 0 gpa=2M size=4K", c.SlotPunch(0, 2 << 20, 4096)),
    ("slot dirty 3", c.SlotDirty(3)),
    ("slot set2 1 gpa=2M size=64K", c.SlotSet2(1, 2 << 20, 65536, None, 0, None, 0)),
    ("slot set2 1 gpa=0 size=4K gmem=g offset=8K hva=0", c.SlotSet2(1, 0, 4096, "g", 8192, 0, 0)),
    ("slot delete2 1", c.SlotDelete2(1)),
    ("attributes 2M 64K private", c.SetAttributes(2 << 20, 65536, True)),
    ("attributes 0 4K shared", c.SetAttributes(0, 4096, False)),
    ("gmem create g file=f size=64K", c.GmemCreate("g", "f", 65536, 0)),
    ("gmem create g file=f size=64K flags=mmap,init-shared", c.GmemCreate("g", "f", 65536, 3)),
    ("gmem open g file='a b'", c.GmemOpen("g", "a b")),
    ("gmem attributes g 0 4K shared", c.GmemAttributes("g", 0, 4096, False)),
    ("gmem dup g h", c.GmemDup("g", "h")),
    ("gmem close g", c.GmemClose("g")),
    ("read 0x1000 16", c.Read(0, 0x1000, 16, False)),
    ("read vcpu=2 0x1000 16 shared", c.Read(2, 0x1000, 16, True)),
    ("read 0x1000 16 shared vcpu=2", c.Read(2, 0x1000, 16, True)),
    ("read 0xffffffffffffffff 1M", c.Read(0, (1 << 64) - 1, 1 << 20, False)),
    ('write 4096 "a #1" # text', c.Write(0, 4096, b"a #1", False)),
    ("write 4K vcpu=1 0xdeadBEEF shared", c.Write(1, 4096, b"\xde\xad\xbe\xef", True)),
    ("write 0 00ff", c.Write(0, 0, b"\x00\xff", False)),
    ("write 0 'vcpu=1'", c.Write(0, 0, b"vcpu=1", False)),
    ('write 0 "é"', c.Write(0, 0, "é".encode(), False)),
    ("touch vcpu=1 1G 1G shared", c.Touch(1, 1 << 30, 1 << 30, True)),
    ("prefault 2M 8K", c.PreFault(0, 2 << 20, 8192, False)),
    ("prefault vcpu=1 0 0 shared", c.PreFault(1, 0, 0, True)),
    ("host tamper 0x1000 ff", c.HostTamper(0x1000, b"\xff")),
    ("populate 0x1000 image.bin", c.Populate(0, 0x1000, "image.bin")),
    ("populate vcpu=1 0 'a b'", c.Populate(1, 0, "a b")),
    ("finalize", c.Finalize()),
    ("measurement", c.ShowMeasurement()),
    ("map 0 2M private", c.MapRange(0, 0, 2 << 20, True)),
    ("map vcpu=3 0 2M shared", c.MapRange(3, 0, 2 << 20, False)),
    ("load 0x100000 /bin/true", c.Load(0, 0x100000, "/bin/true")),
    ("boot a.elf", c.Boot(0, "a.elf", None, None)),
    ("boot vcpu=1 guest:ring at=4K entry=0x1004", c.Boot(1, "guest:ring", 4096, 0x1004)),
    ("cpu run", c.CpuRun(0)),
    ("cpu run vcpu=2", c.CpuRun(2)),
    ("cpu step", c.CpuStep(0, 1)),
    ("cpu step 100 vcpu=1", c.CpuStep(1, 100)),
    ("cpu regs vcpu=1", c.CpuRegs(1)),
    ("cpu irq 0x20 vcpu=1", c.CpuIrq(1, 0x20)),
    ("cpu nmi", c.CpuNmi(0)),
    ("cpu disasm", c.CpuDisasm(0, None, 8)),
    ("cpu disasm 0x1000 3", c.CpuDisasm(0, 0x1000, 3)),
    ("load 0 'a=b'", c.Load(0, 0, "a=b")),
    ("sha256 0x100000 8G", c.Sha256(0, 0x100000, 8 << 30)),
    ("load vcpu=1 0 file", c.Load(1, 0, "file")),
    ("sha256 vcpu=1 0 4K", c.Sha256(1, 0, 4096)),
    ("tdvmcall 0x10001 0x8000000000000 2M", c.Tdvmcall(0, 0x10001, 1 << 51, 2 << 20, 0, 0)),
    ("tdvmcall vcpu=1 1 2 3 4 5", c.Tdvmcall(1, 1, 2, 3, 4, 5)),
    ("hypercall 12 0x1000 1 16", c.Hypercall(0, 12, 0x1000, 1, 16, 0, 0, 0)),
    ("hypercall vcpu=1 0xffffffffffffffff -1 2 3 4 5 6", c.Hypercall(1, (1 << 64) - 1, (1 << 64) - 1, 2, 3, 4, 5, 6)),
    ("hlt vcpu=1", c.Hlt(1)),
    ("shutdown", c.Shutdown(0)),
    ("resume", c.Resume(0, None, None)),
    ('resume vcpu=1 data="ab"', c.Resume(1, b"ab", None)),
    ("resume ret=-22", c.Resume(0, None, (1 << 64) - 22)),
    ("start read vcpu=1 0 4", c.Start(c.Read(1, 0, 4, False))),
    ("start resume vcpu=2 data=00", c.Start(c.Resume(2, b"\0", None))),
    ("join vcpu=1", c.Join(1)),
    ("kick", c.Kick(0)),
    ("cap exit_hypercall 0x1000", c.CapExitHypercall(0x1000)),
    ("ioport 0x500 exit count=8", c.Ioport(0x500, "exit", 8)),
    ("ioport 0x3f8 serve", c.Ioport(0x3F8, "serve", 1)),
    ("host read 0x1000 4", c.HostRead(0x1000, 4)),
    ("host write 0x1000 01020304", c.HostWrite(0x1000, b"\1\2\3\4")),
    ("slot set 0 private gpa=0 size=64M hva=0x1000", c.SlotSet(0, True, 0, 64 << 20, None, 0, 0, 0x1000)),
    ("hva map 'a b'", c.HvaMap("a b", None, None, 0, False)),
    ("hva map a private at=1G length=4K offset=8K", c.HvaMap("a", 1 << 30, 4096, 8192, True)),
    ("hva anon 1M at=0x1000", c.HvaAnon(1 << 20, 0x1000)),
    ("hva unmap 0x1000 4K", c.HvaUnmap(0x1000, 4096)),
    ("hva read 0x1000 4", c.HvaRead(0x1000, 4)),
    ('hva write 0x1000 "x"', c.HvaWrite(0x1000, b"x")),
    ("hva fork child", c.HvaFork("child")),
    ("hva exit", c.HvaExit()),
    ("hva dump", c.HvaDump()),
    ("policy punch", c.SetPolicy("punch")),
    ("policy overlay", c.SetPolicy("overlay", "kept")),
    ("policy overlay under=freed", c.SetPolicy("overlay", "freed")),
    ("info slots", c.Info("slots")),
    ("info ept 1M", c.Info("ept", 1 << 20)),
    ("repeat 3", c.Repeat(3, "i")),
    ("repeat 3 counter=page", c.Repeat(3, "page")),
    ("end", c.End()),
    ("quiet on", c.Quiet(True)),
    ("quiet off", c.Quiet(False)),
    ("sh echo 'it is \\' | wc # \"", c.Sh("echo 'it is \\' | wc # \"")),
    ("expect ok", c.ExpectOk()),
    ("expect errno EEXIST", c.ExpectErrno("EEXIST")),
    ("expect errno EOPNOTSUPP", c.ExpectErrno("EOPNOTSUPP")),
    ("expect exit MMIO", c.ExpectExit("MMIO", ())),
    (
        "expect exit kvm_exit_memory_error gpa=0x1000 size=4K",
        c.ExpectExit("MEMORY_ERROR", (("gpa", "0x1000"), ("size", "4K"))),
    ),
    ("expect exit MMIO reason=x", c.ExpectExit("MMIO", (("reason", "x"),))),
    ('expect data "hello"', c.ExpectData(b"hello")),
    ("expect data 0x00", c.ExpectData(b"\0")),
    ("expect status 3", c.ExpectStatus(3)),
    ("expect ret 0x8000000000000002", c.ExpectRet((1 << 63) + 2)),
    ("expect ret -1000", c.ExpectRet((1 << 64) - 1000)),
]


@pytest.mark.parametrize(("line", "command"), CONTRACT, ids=[line for line, _ in CONTRACT])
def test_the_contract(line: str, command: c.Command) -> None:
    parsed = parse_line(line, 1)
    assert parsed == command
    assert type(parsed) is type(command)


def test_the_contract_above_has_every_form() -> None:
    parsed = [parse_line(line, 1) for line, _ in CONTRACT]
    assert {command.name for command in parsed if command} == {form.name for form in FORMS}


def test_a_command_remembers_where_it_came_from() -> None:
    command = parse_line("  slot set 1 shared  gpa=0 size=4K ", 12)
    assert command is not None
    assert (command.line, command.name, command.source) == (
        12,
        "slot set",
        "slot set 1 shared  gpa=0 size=4K",
    )
    assert command.columns == {"id": 12, "private": 14, "gpa": 22, "size": 28}


MISTAKES: list[tuple[str, int, str]] = [
    ("raed 0 1", 1, "unknown command 'raed': did you mean 'read'?"),
    ("READ 0 1", 1, "did you mean 'read'?"),
    ("xyzzy", 1, "choose from vm, vcpu, slot"),
    ('"" 0 1', 1, "unknown command ''"),
    ('"slot set" 0', 1, "unknown command 'slot set'"),
    ("start", 6, "'start' needs COMMAND"),
    ("start read 0", 13, "'read' needs LEN"),
    ("start raed 0 1", 7, "did you mean 'read'?"),
    ("start vcpu 1", 7, "'vcpu' runs no vCPU, so it cannot be started: read, write"),
    ("start start read 0 1", 7, "'start' runs no vCPU"),
    ("start sh true", 7, "'sh' runs no vCPU"),
    ("hypercall", 10, "'hypercall' needs NR"),
    ("hypercall x", 11, "'x' is not a number: write hex with 0x, or decimal"),
    ("hypercall -x", 11, "'x' is not a number"),
    ("hypercall 0x10000000000000000", 11, "does not fit in 64 bits"),
    ("hypercall 18446744073709551616", 11, "does not fit in 64 bits"),
    ("resume ret=", 12, "'' is not a number"),
    ("cap", 4, "'cap' needs one of: exit_hypercall"),
    ("ioport 0x10000 exit", 8, "'0x10000': ports are 0 to 0xffff"),
    ("ioport 0 exit count=0", 21, "'0': at a time 1 to 65536 ports"),
    ("ioport 0", 9, "'ioport' needs one more word: exit or serve"),
    ("slot", 5, "'slot' needs one of: set, delete, punch"),
    ("slot sat 0", 6, "did you mean 'set'?"),
    ("expect failure", 8, "unknown expect command 'failure'"),
    ("read", 5, "'read' needs GPA: write read [vcpu=N] GPA LEN [shared]"),
    ("read 0x1000", 12, "'read' needs LEN"),
    ("read 0x1000   # note", 12, "'read' needs LEN"),
    ("read 0 1 shared more", 17, "unexpected 'more'"),
    ("read 0 1 sharde", 10, "did you mean 'shared'?"),
    ("read 0 1 private", 10, "unknown word 'private'"),
    ("read 12z 1", 6, "'12z' is not an address"),
    ("read 0x1g 1", 6, "'0x1g' is not a number"),
    ("read -4096 1", 6, "'-4096' is not an address"),
    ("read 0x10000000000000000 1", 6, "does not fit in 64 bits"),
    (f"read {'9' * 5000} 1", 6, "does not fit in 64 bits"),
    (f"vcpu {'9' * 5000}", 6, "does not fit in 64 bits"),
    ("read 0 0", 8, "a length of 0"),
    ("read 0 1M1", 8, "'1M1' is not a size"),
    ("read 0 1048577", 8, "more than one command reads (1048576 bytes)"),
    ("host read 0 2M", 13, "more than one command reads"),
    ("sha256 0 0", 10, "a length of 0"),
    ("touch 0 0", 9, "a length of 0"),
    ("read 0 1 vcpu=x", 15, "'x' is not a number"),
    ("read 0 1 vcpu=", 15, "'' is not a number"),
    ("read vcpu=1 0 1 vcpu=1", 17, "vcpu= is given twice"),
    ("read vpcu=1 0 1", 6, "unknown read option 'vpcu': did you mean 'vcpu'?"),
    ("load 0 a=b", 8, "quote the word"),
    ("load 0 ''", 8, "empty path"),
    ("write 0 hello", 9, 'neither hex bytes nor quoted: for text write "..."'),
    ("write 0 abc", 9, "odd number of hex digits"),
    ("write 0 0x", 9, "no bytes"),
    ('write 0 ""', 9, "no bytes"),
    ("write 0 'open", 9, "add the closing '"),
    ("map 0 4K", 9, "'map' needs one more word: private or shared"),
    ("map 0 4K privat", 10, "did you mean 'private'?"),
    ("slot set 0 private gpa=0 size=4K", 33, "needs file=PATH"),
    ("slot set 0 shared gpa=0 size=4K offset=0", 33, "offset= needs file=PATH"),
    ("slot set 0 shared gpa=0", 24, "needs size=S"),
    ("slot set 0 shared gpa=0 size=", 30, "'' is not a size"),
    ("slot set x shared gpa=0 size=1", 10, "'x' is not a number"),
    ("slot set 4294967296 shared gpa=0 size=1", 10, "does not fit in 32 bits"),
    (
        "slot set 0 shared gpa=0 size=1 flags=readonyl",
        38,
        "unknown flag 'readonyl': did you mean 'readonly'?",
    ),
    ("slot set 0 shared gpa=0 size=1 flags=", 38, "unknown flag ''"),
    ("slot set 0 shared gpa=0 size=1 file=", 37, "empty path"),
    ("vm ''", 4, "empty name"),
    (f"vm {'n' * 65}", 4, "longer than a name may be (64 bytes)"),
    ("slot set 0 shared gpa=0 size=4K file=a hva=0", 40, "file= and hva= both say what the slot shows: keep one"),
    ("hva map a shared", 11, "unknown word 'shared': choose from private"),
    ("policy overlay under=it", 22, "unknown word 'it': choose from kept, freed"),
    ("policy punch under=freed", 14, "under= goes with policy overlay"),
    ("policy punhc", 8, "unknown policy 'punhc': did you mean 'punch'?"),
    ("info", 5, "'info' needs one more word: slots, ept, mmu, memory, attributes, run, stats, vms, hva or gmem"),
    ("info slot", 6, "unknown topic 'slot': did you mean 'slots'?"),
    ("sh", 3, "'sh' needs COMMAND"),
    ("  sh  ", 5, "'sh' needs COMMAND"),
    ("expect", 7, "'expect' needs one of: ok, errno, exit, data, ret, status"),
    ("expect ok now", 11, "unexpected 'now'"),
    ("expect errno EXIST", 14, "unknown errno 'EXIST': did you mean 'EEXIST'?"),
    ("expect errno 17", 14, "unknown errno '17'"),
    ("expect exit MMOI", 13, "unknown exit reason 'MMOI': did you mean 'MMIO'?"),
    ("expect exit MMIO len=4 len=4", 24, "len= is given twice"),
    ("expect exit gpa=0", 18, "'expect exit' needs REASON"),
    ("expect status 256", 15, "choose 0 to 255"),
    ("help", 1, "unknown command 'help'"),
]


@pytest.mark.parametrize(("line", "column", "said"), MISTAKES, ids=[line[:40] for line, *_ in MISTAKES])
def test_a_mistake_is_one_line_at_its_column(line: str, column: int, said: str) -> None:
    with pytest.raises(ScriptError) as raised:
        parse_line(line, 3)
    assert said in raised.value.message
    assert (raised.value.line, raised.value.column) == (3, column)
    assert "\n" not in raised.value.message
    assert len(raised.value.message) < 250


def test_data_is_bounded_by_what_one_access_moves() -> None:
    most = limits.MAX_ACCESS_BYTES
    assert parse_line("write 0 " + "00" * most, 1) == c.Write(0, 0, bytes(most), False)
    with pytest.raises(ScriptError, match="more than one command moves"):
        parse_line("write 0 " + "00" * (most + 1), 1)


@pytest.mark.parametrize("reason", EXIT_REASONS)
def test_exit_reasons_with_and_without_prefix_in_any_case(reason: str) -> None:
    for written in (reason, f"KVM_EXIT_{reason}", reason.lower()):
        assert parse_line(f"expect exit {written}", 1) == c.ExpectExit(reason, ())


def test_a_script_is_its_commands_in_order_with_their_lines() -> None:
    parsed = list(parse_script(b"\xef\xbb\xbf# a script\r\n\nvm a # one\r\n\n  expect ok\nexpect ok\nvcpu 1"))
    assert [(command.line, command) for command in parsed] == [
        (3, c.SwitchVm("a")),
        (5, c.ExpectOk()),
        (6, c.ExpectOk()),
        (7, c.CreateVcpu(1)),
    ]


def test_an_empty_script_has_no_commands() -> None:
    assert list(parse_script(b"")) == []


@pytest.mark.parametrize(
    ("script", "line", "column", "said"),
    [
        (b"vm a\nread 0\n", 2, 7, "'read' needs LEN"),
        (b"# nothing yet\n  expect ok\nvm a\n", 2, 3, "there is none"),
        (b"vm a\nsh \xc3\xa9 \xff\n", 2, 6, "byte 0xff is not UTF-8"),
        (b"vm a\nvm b\rvm c\n", 2, 5, "control character U+000D"),
        (b"#" * (limits.MAX_SCRIPT_BYTES + 1), 1, 1, "longer than 16777216 bytes"),
    ],
)
def test_a_script_with_a_mistake_is_refused_as_a_whole(script: bytes, line: int, column: int, said: str) -> None:
    with pytest.raises(ScriptError) as raised:
        parse_script(script)
    assert (raised.value.line, raised.value.column) == (line, column)
    assert said in raised.value.message


_WORDS = (
    *("vm", "slot", "set", "read", "write", "map", "expect", "exit", "ok", "sh", "info", "private", "shared"),
    *(
        "0",
        "4K",
        "0x1",
        "gpa=0",
        "size=4K",
        "vcpu=1",
        "file=f",
        "MMIO",
        "=",
        '""',
        "'a",
        '"b"',
        "#",
        "\\",
        "é",
    ),
)


@given(st.lists(st.sampled_from(_WORDS), max_size=8).map(" ".join) | st.text(max_size=40))
def test_any_line_is_a_command_nothing_or_a_script_error(line: str) -> None:
    command, error = None, None
    try:
        command = parse_line(line, 1)
    except ScriptError as refusal:
        error = refusal
    assert command is None or command.source == line.strip(" \t")
    assert error is None or (1 <= error.column <= len(line) + 1 and "\n" not in error.message)


def test_help_shows_the_synopsis_of_the_contract() -> None:
    assert help_text("read") == "read [vcpu=N] GPA LEN [shared]\n    the guest reads"
    slots = help_text("slot").splitlines()[::2]
    assert slots == [
        "slot set ID private|shared gpa=G size=S [file=PATH] [offset=O] [hva=ADDR] [flags=readonly,log_dirty]",
        "slot delete ID private|shared",
        "slot punch ID gpa=G size=S",
        "slot dirty ID",
        "slot set2 ID gpa=G size=S [gmem=NAME] [offset=O] [hva=ADDR] [flags=readonly,log_dirty]",
        "slot delete2 ID",
    ]
    assert help_text("expect exit").startswith("expect exit REASON [field=value]...\n")
    assert help_text().count("\n    ") == len(FORMS)
    with pytest.raises(ValueError, match="did you mean 'slot'"):
        help_text("slto")
