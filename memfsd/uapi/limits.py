"""Every bound in the system, in one place. Times in seconds, sizes in bytes, counts plain."""

from .units import ORDER_1G, PAGE_SHIFT

# Pool and files.
MAX_POOL_BYTES = 1 << (32 + PAGE_SHIFT - 1)
"""Frame numbers are kept in 32 bits with one value spare: 8 TiB."""
MAX_NODES = 64
MAX_NODE_WEIGHT = 255
"""Of weighted-interleave: it is a byte, as in /sys/kernel/mm/mempolicy/weighted_interleave."""
MAX_POLICIES_PER_FILE = 512
"""Ranges of one file with a NUMA policy of their own."""
MAX_POLICIES_TEXT = 60000
"""What they take in user.memfsd.numa: less than a value of 64 KiB."""
MAX_SWAP_BYTES = 1 << 40
"""Of guest memory in the swap file."""
SWAP_BLOB_BYTES = (1 << PAGE_SHIFT) + 16
"""A page that is swapped out: its ciphertext, and a tag of 16 bytes."""
MAX_SWAP_PAGES = 15
"""So many blobs fit in one packet."""
SWAP_WINDOW_PAGES = 512
"""What one step of eviction looks at, and the bracket that it holds open for that."""
MAX_EXPORTED_PAGES = 1 << 22
"""Pages of one VM that are out: KVM keeps the version of each."""
MAX_FILE_BYTES = (1 << 63) - 1
MAX_INODES = 1 << 22
INODE_BYTES = 1024
"""An inode takes it, and each name of it after the first, of nr_inodes times as much: BOGO_INODE_SIZE, mm/shmem.c."""
XATTR_BYTES = 40
"""What an attribute takes of the same, besides its name and value: struct simple_xattr."""
SHORT_SYMLINK_MAX = 128
"""A target of more bytes takes its length of the same; on tmpfs it takes a page."""
INODE_SHARES_PER_UID = 2
"""One user gets a half of it, but for root and the one who mounted."""
INODE_SHARES_RESERVED = 8
"""An eighth of it is for root and the one who mounted only."""
MAX_LISTED_BYTES = 1 << 29
"""Names that open directories keep for readdir(3): LISTED_NAME_BYTES and its length each."""
MAX_LISTED_BYTES_PER_UID = 1 << 28
"""Of one user, but for root and the one who mounted: 4 million names of 20 bytes."""
RESERVED_LISTED_BYTES = 1 << 27
"""Of them, for root and the one who mounted only."""
LISTED_NAME_BYTES = 41
MAX_HANDLES = 1 << 18
MAX_HANDLES_PER_UID = 1 << 17
"""Of one user, but for root and the one who mounted."""
RESERVED_HANDLES = 1 << 15
"""Of them, for root and the one who mounted only."""
NAME_MAX = 255
SYMLINK_MAX = 4095
LINK_MAX = MAX_INODES
"""Names of one file, directories in one directory: tmpfs knows no bound but its inodes."""
XATTR_NAME_MAX = 255
XATTR_VALUE_MAX = 65536
XATTR_TOTAL_MAX = 1 << 18
"""Sum of names and values one inode may keep (XATTR_BYTES more for each)."""
MAX_PAGE_MAP_BYTES = 1 << 33
"""Of addresses, in both processes: a file of 4 TiB. Further pages are asked for by message."""
MAX_DEVICES = 64
MAX_DEVICE_BYTES = 1 << 40
"""Of one device. Its memory is the host's, and no part of the pool."""

# Pairing.
MAX_PACKET_BYTES = 65536
MAX_RUN_PAGES = 1 << ORDER_1G
"""Pages in one GET_PFN answer: what a 1 GiB leaf maps comes in one."""
MAX_AHEAD_PAGES = 4096
"""The most that readahead grants ahead, and that a fault asks for, but for one large page."""
MAX_CONNECTIONS = 1024
MAX_CONNECTIONS_PER_UID = 512
"""Of one user, but for root and the one who mounted: one user cannot take all places."""
RESERVED_CONNECTIONS = 64
"""Of MAX_CONNECTIONS: places that only root and the one who mounted get, however many users take all others."""
MAX_UNPAIRED_PER_UID = 128
"""Of one user, root included, that have not paired, observers among them: each ends at GREETING_DEADLINE_S, but for
observers that go on asking."""
MAX_WAITERS_PER_UID = 32
"""System calls on the mount that wait for VMs, of one user; the others of this user queue for TURN_DEADLINE_S."""
MAX_WAITERS = 96
"""Of all users together but for root and the one who mounted, who have MAX_WAITERS_PER_UID each besides."""
MAX_CHECK_THREADS = 32
VMS_PER_CHECK_THREAD = 4
"""memfs check asks this many VMs by itself, and has a thread more for each as many, up to MAX_CHECK_THREADS."""
MAX_RECLAIMS = 64
"""VMs that are asked at a time for pages they never touched; and as many for pages that leave to the swap file."""
MAX_RECLAIMS_PER_UID = 16
"""Of them, VMs of one user, but for root and the one who mounted."""
RESERVED_RECLAIMS = 16
"""Of them, for VMs of root and the one who mounted only."""
MAX_MOVE_PAGES = 512
"""Pages that one MOVE spans and copies: a leaf of 2 MiB, or a millisecond of a vCPU's time."""
MAX_COMPACTED_BLOCKS = 256
"""Blocks of 2 MiB that one step of memfs compact empties."""
MAX_BINDINGS_PER_FILE = 32768
MAX_RUNS_PER_REPORT = 1024
MAX_FILES_PER_LIST = 32
MAX_FINDINGS = 64
MAX_LINE_CHARS = 200
"""A finding, a file's name or owner in a report: so many of them fit in one packet, whatever the alphabet."""
MAX_NAME_BYTES = 64
MAX_GFN = 1 << 40
"""52-bit guest physical addresses; bit 51 is the SHARED bit, so private GFNs end at 2^39."""

GREETING_DEADLINE_S = 5.0
"""From connect to PAIR: half-open connections end here, and observers that long after their last question but PING."""
ACK_DEADLINE_S = 5.0
"""A peer that has not acknowledged an up-call by then is cut off."""
ANSWER_DEADLINE_S = 30.0
"""kvmsim's patience with the store; longer than ACK_DEADLINE_S, since a grant may wait for one."""
BRACKET_DEADLINE_S = 25.0
"""Patience for another invalidation of the same file, each step of which has its own deadline."""
TURN_DEADLINE_S = 10.0
"""Patience of a system call that has to wait for a VM, for its turn among those of its user."""
RECLAIM_DEADLINE_S = 3.0
"""The pool is full: patience for all VMs together that are asked for pages they never touched; then for an eviction by
another, and for one's own."""
SWAP_OUT_DEADLINE_S = 3.0
"""One bracket: no SWAP_OUT begins later, and no SWAP_IN of what the swap file did not take begins later than that after
its packet; the last one may take ACK_DEADLINE_S more."""
GRANT_DEADLINE_S = 10.0
"""The pool is full: a grant takes back and swaps out again and again, but begins no more later. Its VM must have the
answer, if only ENOSPC, before ANSWER_DEADLINE_S."""
MOVE_DEADLINE_S = 10.0
"""fmove_pages: no MOVE begins, and no wait for another invalidation ends, later; the last one may take ACK_DEADLINE_S
more."""
NODES_DEADLINE_S = 3.0
"""memfs offline and compact: no MOVE of a step begins, and no wait for another invalidation ends, later; the command
asks for another one."""
SWAP_OFF_DEADLINE_S = 3.0
"""memfs swapoff: no SWAP_IN of a step begins later; the command asks for another one."""
REVOKE_DEADLINE_S = 3.0
"""The store ends: patience for all VMs together."""
CHECK_TURN_DEADLINE_S = 4.0
"""memfs check: patience for another check to end."""
CHECK_BRACKETS_DEADLINE_S = 8.0
"""memfs check: patience for the brackets of all files together; each invalidation that runs has its own deadline."""
CHECK_REPORTS_DEADLINE_S = 8.0
"""memfs check: time for the reports of all VMs together; the last question may take ACK_DEADLINE_S more."""
PROOF_DEADLINE_S = 2.0
"""From end of file on a connection to the proof that its process is gone."""

# Journals.
MAX_JOURNAL_BYTES = 1 << 28
"""A journal ends there, with a record that says so."""
MAX_RECORD_BYTES = 1 << 20
"""A line of a journal: the largest packet, spelt out."""

# Traces.
MAX_TRACE_BYTES = 1 << 30
"""A trace ends there."""
MAX_TRACE_QUEUE = 1 << 16
"""Events that are not written yet; more are lost, and counted."""

# kvmsim.
MAX_SLOTS = 32764
"""KVM_USER_MEM_SLOTS of x86 (KVM_MEM_SLOTS_NUM less the kernel's own three)."""
MAX_VCPUS = 256
MAX_ATTRIBUTE_RANGES = 1 << 20
"""Ranges of private memory of one VM: KVM keeps an attribute for each page, and answers ENOMEM."""
MAX_VMS = 64
MAX_REPEAT_DEPTH = 8
"""Blocks of a script in each other."""
MAX_REPEATS = 1_000_000
"""Turns of a block in all, by those around it."""
MAX_SCRIPT_BYTES = 1 << 24
MAX_ACCESS_BYTES = 1 << 20
"""Bytes one `read` or `write` of a script moves."""
MAX_BOOT_BYTES = 64 << 20
"""Of a file that a vCPU boots, and of a segment of it."""
MAX_STEPS = 100_000
"""Instructions of one `cpu step`: each takes some 30 us."""
MAX_GDB_PACKET_BYTES = 16384
MAX_GDB_BREAKPOINTS = 1024
MAX_DISASM = 1000
"""Instructions that one `cpu disasm` shows."""
MAX_VECTOR = 255
"""Of an interrupt."""
PORTS = 1 << 16
"""Of I/O."""
MAX_GMEM_NAMES = 1024
"""Open guest_memfds of one kvmsim: RLIMIT_NOFILE of most programs."""
MAX_VMAS = 65530
"""Mappings of one simulated host process: vm.max_map_count."""
MAX_HOST_PROCESSES = 64

# Monitor of kvmsim (QMP).
MAX_QMP_MESSAGE_BYTES = 1 << 20
MAX_QMP_DEPTH = 64
"""Of objects and arrays in one another, in a request."""
MAX_QMP_CLIENTS = 8
MAX_QMP_REPLY_BYTES = 8 << 20
"""Less than what qemu.qmp reads as one line: 10 MiB."""
MAX_QMP_BACKLOG_BYTES = 16 << 20
"""A client that leaves so much unread is disconnected."""
MAX_QMP_EVENTS = 1024
"""Events that the monitor's thread has not sent yet; more are dropped, and counted."""
MAX_QMP_PAGE = 1024
"""Entries in one answer of query-memslots or query-ept."""
STOP_DEADLINE_S = 5.0
"""`stop`: patience until every vCPU is out of KVM_RUN; one that waits for the store comes later."""
MONITOR_END_DEADLINE_S = 1.0
"""The process ends: time for all clients together to take what was said to them."""
