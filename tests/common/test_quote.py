"""Names as ls(1) shows them on a terminal, and lines without control characters."""

import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memfsd.common.quote import printable, quoted


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"vm.mem", "vm.mem"),
        (b"/mnt/a-b_c=1.img", "/mnt/a-b_c=1.img"),
        ("größe".encode(), "größe"),
        (b"", "''"),
        (b"a b", "'a b'"),
        (b"it's", '"it\'s"'),
        (b"it's $5", "'it'\\''s $5'"),
        (b"a\033b", "'a'$'\\033''b'"),
        (b"\033[2J", "$'\\033''[2J'"),
        (b"a\n", "'a'$'\\n'"),
        (b"a\t\nb", "'a'$'\\t\\n''b'"),
        (b"\xff", "$'\\377'"),
        (b"a\xff\xfeb", "'a'$'\\377\\376''b'"),
        ("a\u009bb".encode(), "'a'$'\\302\\233''b'"),
        ("a\u202eb".encode(), "'a'$'\\342\\200\\256''b'"),
        (b"a'\033", "'a'\\'''$'\\033'"),
        (b"~", "'~'"),
        (b"a;b", "'a;b'"),
    ],
)
def test_a_name_is_quoted_as_ls_does(name: bytes, shown: str) -> None:
    assert quoted(name) == shown


names = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name)


@given(st.lists(names, min_size=1, max_size=40))
@example([b"'\033'", b"\033'", b"'", b"\n'\n"])
def test_a_shell_reads_back_the_name(given_names: list[bytes]) -> None:
    shown = [quoted(name) for name in given_names]
    assert all(text.isprintable() for text in shown)
    script = "printf '%s\\0' " + " ".join(shown)
    report = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout
    assert report.split(b"\0")[:-1] == given_names


def test_a_line_keeps_what_is_printable() -> None:
    assert printable("größe\t1") == "größe\t1"
    assert printable("\033[2Ja\r\udcff\u202e") == "\\033[2Ja\\r\\377\\342\\200\\256"
