"""The table as docs/semantics-guest-seal.md: `tools/render-seal` writes it, a test compares it."""

import sys
from pathlib import Path

from memfsd.common.arguments import Parser
from memfsd.common.stdio import fill_standard_fds
from tests.attack.all_attacks import ATTACKS, GROUPS
from tests.attack.table import Attack

DOCUMENT = Path(__file__).parents[2] / "docs" / "semantics-guest-seal.md"

_OPENING = f"""\
# The guest seal against everything

<!-- Made by `tools/render-seal` from the tables of tests/attack: edit those. -->

Calls of Linux by which a program could reach a file's contents, {len(ATTACKS)} attacks, and what comes of each.
`tests/attack` carries them out, row by row: as root, as the file's owner and as another user, with all permissions
in the file's mode, so that only the seal protects it; in `open=strict` and in `open=rw`; while a guest keeps a
secret in the file's memory. After each no byte of the secret has come out, and the guest's memory has the sha256
that it had, in the same frames.

* **ordinary**: a file of the mount that is not sealed, opened read-write. Where it says "works" the test has seen
  the data come out, or go in: the attack is one.
* **write-only**: the sealed file, through a handle that was opened write-only. One from before the seal and one
  from after it give the same.
* **strict**, **rw**: the sealed file, opened read-write (or by the call itself), on a mount with this open mode.

"open: EPERM" is open(2) itself that is refused; a signal is what the process gets. The three users get the same,
but where the last column says what the two that are not root get.

## Before the seal

A handle that can read, and so every mapping, keeps the file from being sealed: EBUSY, and nothing is truncated. The
tests hold it in another process, in flight in a Unix socket, in a loop device, as a file registered with io_uring,
and in mappings of every kind whose handle was closed. O_PATH and write-only handles do not hinder the seal. Pages
that a pipe holds from before the seal show what the file held then, and never the guest's memory, which lives in
other pages. close(2) does not wait for memfsd, but the seal waits for the closes
that came before it: what is EBUSY is still held.
"""

_CLOSING = """\
(1) The call may also not end until a signal ends it: Linux (6.18, `__mm_populate`) asks again and again for a page
whose read fails. It harms only the caller, and is one more reason for `open=strict`.

What root can do besides is in [decisions/0007-what-root-can-reach.md](decisions/0007-what-root-can-reach.md).
"""


def document() -> str:
    parts = [_OPENING]
    for title, attacks in GROUPS:
        parts.append(f"## {title}\n\n" + "\n".join([*_HEAD, *map(_row, attacks)]) + "\n")
    return "\n".join([*parts, _CLOSING])


_HEAD = ("| call | ordinary | write-only | strict | rw | not root |", "|---|---|---|---|---|---|")


def _row(attack: Attack) -> str:
    blind = attack.blind or ""
    if attack.blind_rw is not None:
        blind += f" (rw: {attack.blind_rw})"
    call = attack.call.replace("|", "\\|")
    rw = f"{attack.rw} (1)" if attack.may_loop else attack.rw
    cells = (call, attack.ordinary, blind, attack.strict, rw, _others(attack))
    return f"| {' | '.join(cells)} |"


def _others(attack: Attack) -> str:
    if attack.stranger is not None:
        return f"{attack.stranger} (ordinary, of another owner)"
    outcomes = sorted(set(attack.unprivileged.values()))
    columns = [name for name in ("ordinary", "blind", "strict", "rw") if name in attack.unprivileged]
    if not columns:
        return ""
    where = "" if len(columns) == 4 else f" ({', '.join(columns).replace('blind', 'write-only')})"
    return ", ".join(outcomes) + where


if __name__ == "__main__":
    fill_standard_fds()
    about = "Write docs/semantics-guest-seal.md from the tables of tests/attack."
    Parser(prog="tools/render-seal", description=about).parse_args()
    DOCUMENT.write_text(document())
    sys.stdout.write(f"{DOCUMENT.relative_to(DOCUMENT.parents[1])}: {len(ATTACKS)} attacks\n")
