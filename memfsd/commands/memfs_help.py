"""What `memfs --help` and `memfs COMMAND --help` teach."""

import errno

OVERVIEW = """\
examples:
  memfs create /mnt/vm.mem --size 1G --guest     a sealed file, ready to attach
  memfs seal /mnt/f guest                        the same as: setfattr -n user.memfsd.seals -v guest /mnt/f
  memfs fallocate -p -o 2M -l 1M /mnt/vm.mem     take a megabyte back from the guest
  memfs check /mnt                               do the rules R1 to R8 hold now?
  memfs top /mnt                                 watch it

Sizes take K, M, G, T or 0x. 'memfs COMMAND --help' explains each command and what it prints.

exit status: 0 done, 1 refused (check: a rule is broken), 2 usage, or standard output cannot be written, 3 check was
refused, 130 interrupted, 141 the reader of standard output went away
"""

COMMANDS = {
    "create": """\
Seals, then chooses the page size, then sets the size; if one of them is refused, no file is left. The size of a
sealed file is set once, to whole pages.

  memfs create /mnt/vm.mem --size 1G --guest
  memfs create /mnt/big.mem --size 64G --guest --page-size 1G
  memfs create /mnt/shared.bin --size 16M          ordinary: a VM's shared memory

On a mount with abi=gmem-6.18 or a later one, --abi or --flags make a guest_memfd: private from birth, its size fixed.
With the flag mmap it can be mapped, where its pages are shared: all of them with init-shared, those that were converted
with gmem-inplace; to touch another is SIGBUS.

  memfs create /mnt/vm.mem --size 1G --flags mmap,init-shared
  memfs create /mnt/vm.mem --size 1G --abi gmem-inplace
""",
    "seal": """\
seals, one-way and forever:
  guest          guest private memory: nobody on the host reads, writes or maps it again. The file must be empty
                 and not open for reading (EBUSY); guest,truncate empties it first
  shrink, grow   the size cannot change in that direction
  write          the contents cannot change; EBUSY while any read-write handle is open
  future-write   the same, beside handles that are open
  seal           no more seals

  memfs seal /mnt/f guest
  memfs seal /mnt/f shrink,grow,seal
""",
    "stat": """\
of a file:
  seals, page_size, numa     as its attributes user.memfsd.*; settable with setfattr
  owner                      the VM it is paired with, for life: paired, cut (silent, not yet dead) or ended
  private, pending           frames the guest uses; frames granted ahead of it and not touched yet
  quarantined                frames that a silent VM could still reach
  punched                    pages that punches have taken back since it was sealed
  leaked                     frames of its window that could not be erased, and are out of service
  populated                  pages for which the kernel has memory (st_blocks of its window): what it costs the host
  vm_shared, held_twice      of its VM: pages of memory that the host reaches, and pages of this file that the VM
                             holds there as well; - where the VM has no monitor that answers
  swapped                    pages in the swap file, where the mount has one
  splits, merges             of a file with large pages: those of which a part was punched, and those whole again
  shared                     frames of an ordinary file
of a mount:
  frames, free, shared ...   the pool: all frames, and how many are in each state
  poisoned, leaked           among them: out of service, since they failed or could not be erased
  device                     frames of devices, which are not among those of the pool
  swap_slots, swap_used      pages that the swap file holds at most, and now
  swapped_out, swapped_in    pages that left and came back since the mount; swap_failed: that could not
  inodes, handles, lookups   what memfsd holds: files, open files, references of the kernel
  splits, merges             large pages split by a punch, and whole again, since the mount (split=on)
  windows, fds, threads      memory objects of sealed files, descriptors, threads: leaks would show here
  punched, populated         over all sealed files; vm_shared, held_twice: over the VMs whose monitors answer

  memfs stat /mnt/vm.mem
  memfs stat /mnt --json
""",
    "map": """\
One line for each run of pages that is contiguous in the file, in the guest and in the pool:
  OFFSET, LENGTH   where in the file
  GPA              guest physical address, - while it is not bound to a memslot
  PFN              first frame of the pool
  NODE             the NUMA node it is on
  PAGE             4K, 2M or 1G; 4K/2M: parts of a page of 2M that is split, or that has failed
  STATE            shared, private, pending, closing, moving, quarantined; without a frame: swapped, poisoned

  memfs map /mnt/vm.mem
""",
    "fallocate": """\
The flags of fallocate(1), which opens files read-write and so needs -o open=rw for sealed ones. A punch comes back
when the VM has let go of the range and its frames are zeroed and free.

  memfs fallocate -l 64M /mnt/vm.mem               allocate the first 64 MiB
  memfs fallocate -p -o 2M -l 1M /mnt/vm.mem       take a megabyte back from the guest
""",
    "move": """\
move_pages(2) for a file: KVM copies private pages into frames of the node while their guest waits, and maps them there.
A large page moves whole. Holes stay holes. What cannot move is counted, with the reason: ordinary files; pages that are
not bound to a memslot while a VM has the file; pages of a VM whose KVM does not move any (kvmsim --no-op move).

  memfs move /mnt/vm.mem 1
  memfs move /mnt/vm.mem -o 1G -l 64M 0

exit status: 0 all are there, 1 some are not
""",
    "offline": """\
Nothing is allocated on the node from now on, and what becomes free there stays away. Private pages move to the nearest
nodes that have room, while their guests run; what cannot move is counted: ordinary files, pages that are not bound, VMs
whose KVM does not move pages. Again later it moves what is left. The last node that is online cannot go.

  memfs offline /mnt 1

exit status: 0 nothing is left on it, 1 something is
""",
    "online": """\
  memfs online /mnt 1
""",
    "compact": """\
Private pages leave blocks of 2M that they hardly use for gaps in others of their node; the blocks are free as a whole
then, for pages of 2M and 1G. Blocks with ordinary pages stay as they are.

  memfs compact /mnt
""",
    "bind": """\
mbind(2) for a file: says where pages of the range go when they are allocated, whoever touches them. What is allocated
already stays where it is. The attribute user.memfsd.numa shows and takes the same, as POLICY[:NODES][@OFFSET+LENGTH].
  default, local              the local node (0), then the nearest
  bind:NODES                  these nodes only: ENOSPC when they are full, whatever others have
  preferred[:NODE]            this node, then those near it; without a node: local
  preferred-many:NODES        these nodes, then the others
  interleave:NODES            one page after the other, by its place in the file
  weighted-interleave:N=W,... W pages on node N, then those of the next (a weight is 1 to 255)
NODES are written 0,2 or 0-3. A range begins at a multiple of the page size.

  memfs bind /mnt/vm.mem interleave:0-1
  memfs bind /mnt/vm.mem -o 1G -l 1G bind:1
  memfs bind /mnt/vm.mem weighted-interleave:0=3,1=1
""",
    "numastat": """\
Frames of each node, counted since the mount as numastat(8) does:
  numa_hit         given to who meant this node
  numa_miss        given to who meant another one, which was full
  numa_foreign     meant for this node, given by another
  interleave_hit   of numa_hit, those that were interleaved
  local_node       given by the node that the store's CPUs are on, which is node 0
  other_node       given by another
  total, used, free   how many there are now
and the table of distances (mount option distances=).

  memfs numastat /mnt
""",
    "swapout": """\
Pages that the VM has touched leave memory: KVM encrypts them, memfsd writes them to the swap file of the mount
(-o swap=FILE), and a touch of the guest brings them back. What was never touched stays, and large pages do if the
mount does not split them (-o split=on). Needs a paired VM: nobody else can read its memory. For root, the owner of the
file, and the user who mounted. Exit status 1 when a page could not leave (the swap file is full, the VM refused it): it
says how much did, and why not all.

  memfs swapout /mnt/vm.mem                        all of it
  memfs swapout /mnt/vm.mem -o 2M -l 1M            a megabyte
""",
    "swapoff": """\
As swapoff(8). If not all fits in the pool, it says how much is left, and swap stays on. Ended half-way (Ctrl-C), no
more pages leave, and the next swapoff goes on. Mount again to have swap again.
A page that cannot come back (its blob was altered, or cannot be read) stays out, and all others come: exit status 1,
with the files, their VMs, and how many pages of each. Punch them, or end the VM.

  memfs swapoff /mnt
""",
    "check": """\
Asks memfsd, and through it every paired VM, and compares both sides. Prints each rule that is broken and where.
  R1 a frame has one VM, a file has one VM      R5 conversion keeps the data around it
  R2 the host never reaches a private frame     R6 frames are freed only after an acknowledgement
  R3 both sides agree on GFN -> frame           R7 an invalidation is a bracket
  R4 a frame keeps its GFN until freed          R8 a new page is zero

exit status: 0 all hold, 1 a rule is broken, 2 usage, or standard output cannot be written, 3 it could not be checked
""",
    "top": """\
The pool by state, its NUMA nodes, the VMs that live, then the sealed files (of many, the largest):
  PRIVATE, PENDING   what the VM uses, and what is granted ahead of it and not touched yet
  SHARED             memory of the VM that the host reaches
  TWICE              what is held both there and private: memory that costs double
  PUNCHED, LEAKED    what punches took back, and what could not be erased
  SIZE, HELD         the file's size, and what it holds of the pool
  FAULTS/s           grants of frames to the VM; with readahead one grant serves many pages
  INVAL/s            ranges taken back from the VM
SHARED and TWICE are what a VM's monitor says, - where it has none that answers. Fills the terminal, and ends with q or
Ctrl-C; this needs rich (pip install 'memfsd[top]'). Without a terminal, and with --json, views follow each other;
--json prints one object for each.

  memfs top /mnt -d 0.5
  memfs top /mnt --once --json                     for scripts
""",
    "vms": """\
The VMs that hold sealed files of the mount (of many files, the largest are looked at):
  STATE      paired, or cut: silent, not yet dead
  FILES      how many they are, HELD what they hold of the pool
  PUNCHED    what punches took back from them, LEAKED what could not be erased
  SHARED     memory of the VM that the host reaches, TWICE what it holds both there and private; - it does not say
  MONITOR    the socket on which the VM's process speaks QMP; - where there is none that may be seen

  memfs vms /mnt
  kvmsim monitor PID                               look into one of them
""",
    "poison": """\
As when hardware reports an uncorrectable error: the frame at OFFSET goes out of service for good (poisoned, in memfs
stat MOUNTPOINT), with what it held. In a file of large pages that is the whole large frame; on a mount with split=on
the 4K frame alone, if the VM can split the mapping.
  sealed file      the guest's next touch of the page ends in KVM_EXIT_MEMORY_ERROR errno=133 (EHWPOISON) hwpoison=1;
                   all other pages go on
  ordinary file    reads and writes of the page are EIO, and SIGBUS through a mapping
A punch, or a truncate, forgets the page; the next touch gets a good frame. With split=on a part of a large page may be
punched, and that part gets good frames. For root and the user who mounted.

  memfs poison /mnt/vm.mem 2M
  memfs poison /mnt --random                       a page of any sealed file, by lot
errors: ENXIO the page has no frame, EHWPOISON it failed before, EINVAL past the end
""",
    "device": """\
A sealed file whose memory is no part of the pool, as memory of a device that has no struct page: born sealed, its size
fixed, bound into private slots as any sealed file, and mapped uncached (UC in kvmsim's info ept). It is never zeroed,
moved, swapped, encrypted or freed while the device is there: what one unmaps is there when it is mapped again.
Allocating and punching are EOPNOTSUPP, another size is EPERM.
  add      the file NAME appears in the root directory; EEXIST if there is one
  remove   the VM that has it lets go of it and acknowledges; from then on its guest's touch ends in
           KVM_EXIT_MEMORY_ERROR errno=19 (ENODEV). The name goes. ETIMEDOUT: the VM did not, and is cut off.
           After an interruption (Ctrl-C), run it again: the name goes then
For root and the user who mounted.

  memfs device add /mnt gpu0 --size 64M --page-size 2M
  memfs device remove /mnt gpu0
""",
    "kcore": """\
An ELF core (ET_CORE, x86-64) for readelf, gdb and their like; frame N of the pool is at address N * 4096. For root and
the user who mounted; the file is readable by its owner alone.
  frames of ordinary files     in PT_LOAD segments with their contents
  private, pending, closing,   in PT_LOAD segments without contents (FileSiz 0), and never read: a guest's bytes are in
  quarantined, poisoned ...    memory that memfs has no descriptor of
  free frames                  in no segment
A note of the owner "memfsd" (type 0x4d460002) lists all that is left out, and why: 0xSTART-0xEND REASON, a line each.
States are of one moment; contents are read after it, while files go on changing, and without what the kernel has not
written back yet (sync -f MOUNTPOINT first).

  memfs kcore /mnt -o pool.core && readelf -n -l pool.core
  memfs kcore /mnt -o - | zstd > pool.core.zst
""",
}

_NO_ROOM = "the pool has not that many free frames, or is out of inodes: see memfs stat MOUNTPOINT"

WHY: dict[tuple[str, int], str] = {
    (
        "create",
        errno.EINVAL,
    ): "the size of a file for a guest is a multiple of its page size, and only sealed files have large pages",
    ("create", errno.EOPNOTSUPP): "files for guests are guest_memfds on this mount: leave out --guest, and say --abi",
    ("create", errno.EEXIST): "it is there already: choose another name, or memfs seal it",
    ("create", errno.ENOSPC): _NO_ROOM,
    (
        "seal",
        errno.EBUSY,
    ): "it holds data (guest,truncate empties it), or someone has it open or mapped: close that first",
    (
        "seal",
        errno.EOPNOTSUPP,
    ): "files for guests are guest_memfds on this mount: memfs create --abi, or mount with abi=thread",
    ("seal", errno.EPERM): "it is sealed against more seals or against shrinking, or is not yours: use a new file",
    ("kcore", errno.ENOSPC): "the core has no room there, and nothing of it is left: choose -o on a larger disk",
    ("fallocate", errno.EINVAL): "of a sealed file: whole pages, more than none, and allocating ends with its size",
    ("fallocate", errno.EPERM): "one of its seals forbids it: memfs stat FILE shows them",
    ("fallocate", errno.ENOSPC): f"{_NO_ROOM}; or the nodes of its policy are full: see memfs numastat MOUNTPOINT",
    (
        "fallocate",
        errno.ENOMEM,
    ): "its VM has no page table left to split the mapping of a large page, and nothing has changed: punch whole ones; "
    "or it is a guest_memfd, and the pool is full: see memfs stat MOUNTPOINT",
    ("numastat", errno.ENODATA): "it is not the root of the mount: name the mount point",
    ("fallocate", errno.ETIMEDOUT): "the VM did not let go of it in time and was cut off; its frames are quarantined"
    " until it is dead",
}
"""What an errno can mean of a command: a filesystem answers nothing else."""
