"""The command memfsd: mounts, and stays or goes into the background."""

import contextlib
import errno
import logging
import logging.handlers
import os
import signal
import sys
import time
from argparse import ArgumentTypeError, Namespace

from memfsd.common import trace
from memfsd.common.arguments import Parser
from memfsd.common.journalfile import open_journal, start_journal
from memfsd.common.logqueue import LogQueue, StderrHandler
from memfsd.common.logs import OneLine
from memfsd.common.quote import printable, quoted
from memfsd.common.stdio import fill_standard_fds, with_stdout
from memfsd.common.traceoptions import add_trace_arguments, open_asked
from memfsd.common.version import VERSION
from memfsd.uapi.errors import Refused, errno_name
from memfsd.uapi.limits import MAX_POOL_BYTES
from memfsd.uapi.messages import OPTIONAL_STORE_OPERATIONS, STORE_OPERATIONS, Kind, operation_name, operation_named
from memfsd.uapi.names import FSTYPE
from memfsd.uapi.units import PAGE_SIZE

_HELP = """\
options (-o, comma separated):
  size=SIZE               pool of frames for all files (K, M, G, T; default: half of the memory)
  nr_inodes=N             inodes, each name after a file's first, and 1024 bytes of extended attributes (K, M; default:
                          half as many as the machine has pages); one user but root and you gets half of them
  abi=NAME                thread (default): sealed files; or guest_memfd as Linux has it: gmem-6.18, gmem-7.2,
                          gmem-inplace. VMs must speak the same (kvmsim --abi). With guest_memfd the mount is noexec
                          unless exec is given, and nothing is read ahead
  nodes=N                 split the pool in N NUMA nodes (default 1)
  distances=ROW/ROW...    of the nodes, each row as 10:20:20 (default: 10 to itself, 20 to others): where an allocation
                          goes on when a node is full
  guest                   every new regular file is born sealed: guest private memory
  resize=once|any         a sealed file's size is set once (default), or may shrink and grow
  seal_nonempty=refuse|truncate
                          sealing a file that is not empty: EBUSY (default), or truncate it first
  open=strict|rw          sealed files open write-only (default), or read-write for fallocate(1) and xfs_io
  split=off|on            a part of a page of 2M or 1G cannot be punched (default), or can: the page is split
  fixed_gfn=on|off        a file page keeps its GFN forever (default on, or off with an abi of guest_memfd)
  swap=FILE               where pages of guests go when the pool is full, encrypted by their KVM; not on the mount. One
                          that a daemon left behind that was killed is refused
  swap_size=SIZE          guest memory that it holds: needed when FILE is new or empty, and taken from the disk at once
  swap_reset              reinitialize FILE, whatever a daemon left in it
  socket=PATH             where kvmsim connects (default: under /run/memfsd; read it as user.memfsd.socket)
  relatime|strictatime|noatime, nodiratime
                          when reading sets the access time (default relatime)
and FUSE's and mount(8)'s: allow_other, ro, noexec, nosuid, nodev, nosymfollow, auto_unmount, fsname=, ...

also: mount -t fuse.memfsd SOURCE MOUNTPOINT -o ..., and fstab(5), where memfsd is in mount's PATH (/usr/local/bin)

exit status: 0 mounted (or, with -f, unmounted), 1 could not mount, 2 usage
"""


_OPTIONAL = ", ".join(sorted(map(operation_name, OPTIONAL_STORE_OPERATIONS)))


def main() -> None:
    fill_standard_fds()
    sys.exit(run(sys.argv[1:]))


def _parser() -> Parser:
    parser = Parser(
        prog="memfsd", description="Mount a filesystem whose sealed files are guest private memory.", epilog=_HELP
    )
    parser.add_argument("-f", action="store_true", dest="foreground", help="stay in the foreground")
    parser.add_argument("-d", action="store_true", dest="debug", help="log each refusal; stay in the foreground")
    parser.add_argument("-o", action="append", default=[], dest="options", metavar="OPT[,OPT]...")
    parser.add_argument(
        "--no-op",
        type=_optional_operation,
        action="append",
        default=[],
        metavar="OPERATION",
        help=f"be a store that lacks an operation which VMs may use: {_OPTIONAL}",
    )
    parser.add_argument("--journal", metavar="FILE", help="record every message to and from VMs; see kvmsim journal")
    add_trace_arguments(parser, "--filter")
    parser.add_argument("--version", action="version", version=f"memfsd {VERSION}")
    parser.add_argument("source", metavar="SOURCE", nargs="?", default=FSTYPE, help="any word, as mount(8) gives it")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    return parser


def _optional_operation(text: str) -> Kind:
    operation = operation_named(text, STORE_OPERATIONS)
    if operation is None:
        raise ArgumentTypeError(f"'{text}' is not an operation of the store: choose {_OPTIONAL}")
    if operation not in OPTIONAL_STORE_OPERATIONS:
        raise ArgumentTypeError(f"no VM can do without {text}: choose {_OPTIONAL}")
    return operation


def run(arguments: list[str]) -> int:
    asked = Namespace()
    # --help and --version write to it, and the mount does not.
    status = with_stdout("memfsd", lambda: _parser().parse_args(arguments, asked) is None)
    if status:
        return status

    # Imported late: the FUSE stack takes longer to load than --help may take.
    from memfsd.fuse.mount import check_fuse, parse_options, prepare_mountpoint

    try:
        options = parse_options(
            asked.options, _half_of_memory(), asked.source, page_map=Kind.PAGE_MAP not in asked.no_op
        )
    except Refused as refused:
        return _fail(refused, 2)
    try:
        check_fuse(options.fuse | options.attributes)
        mountpoint = prepare_mountpoint(asked.mountpoint)
        journal_fd = -1 if asked.journal is None else _open_journal(asked.journal, mountpoint)
        _refuse_hidden(asked.trace, mountpoint, "trace")
        begin_trace = open_asked(asked, "memfsd")
    except Refused as refused:
        return _fail(refused, 1)

    foreground = asked.foreground or asked.debug
    to_parent = None if foreground else _fork_daemon()
    _log_to(foreground, asked.debug)

    def ready() -> None:
        if to_parent is not None:
            try:
                os.write(to_parent, b"0")
            except BrokenPipeError:  # who started us was interrupted
                os.kill(os.getpid(), signal.SIGTERM)
            os.close(to_parent)
            _detach_stdio()

    from memfsd.daemon import serve

    warn = logging.getLogger("memfsd").warning
    try:
        with contextlib.ExitStack() as ending:
            if journal_fd >= 0:
                journal = start_journal(journal_fd, "memfsd", time.monotonic_ns, warn)
                ending.callback(journal.close)
                ending.enter_context(trace.observed(store=journal))
            if begin_trace is not None:
                tracing = begin_trace(warn)
                ending.callback(tracing.close)
                ending.enter_context(trace.observed(store=tracing))
            serve(mountpoint, options, ready)
    except Refused as refused:
        return _fail(refused, 1)
    return 0


def _open_journal(path: str, mountpoint: str) -> int:
    _refuse_hidden(path, mountpoint, "journal")
    return open_journal(path)


def _refuse_hidden(path: str | None, mountpoint: str, what: str) -> None:
    if path is not None and os.path.commonpath([os.path.realpath(path), mountpoint]) == mountpoint:
        raise Refused(
            errno.EINVAL,
            f"{what} {quoted(path)}: the mount on {quoted(mountpoint)} would hide it: choose another place",
        )


def _fail(refused: Refused, status: int) -> int:
    print(f"memfsd: {printable(refused.reason)} ({errno_name(refused.errno)})", file=sys.stderr)
    return status


def _half_of_memory() -> int:
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min(size - size % PAGE_SIZE, MAX_POOL_BYTES)


def _fork_daemon() -> int:
    """The pipe on which the child reports to its parent; the parent waits, and ends here with the child's fate."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        os.setsid()
        os.chdir("/")
        return write_end
    os.close(write_end)
    report = os.read(read_end, 1)
    if report == b"0":
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status) or 1)


def _detach_stdio() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)


def _log_to(foreground: bool, debug: bool) -> None:
    # Where nobody takes the log (no /dev/log, stderr closed), there is nobody to take a traceback about that either.
    logging.raiseExceptions = False
    handler: logging.Handler = StderrHandler() if foreground else logging.handlers.SysLogHandler("/dev/log")
    handler.setFormatter(OneLine("memfsd: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[LogQueue(handler)])
    for chatty in ("pyfuse3", "trio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
