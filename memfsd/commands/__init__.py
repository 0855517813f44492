"""The two commands. Each answers --help and refuses bad options before it loads what it needs.

memfsd      mount
memfs       what has no standard command: its names; memfs_help: its texts
arguments   types of arguments; facts: what a command says at its end
files       memfs create, seal, fallocate
status      memfs stat
pages       memfs map
check       memfs check
top         memfs top; top_view: what it shows
usage       what VMs say of their memory, through their monitors
vms         memfs vms
poison      memfs poison
device      memfs device
kcore       memfs kcore
swap        memfs swapout and memfs swapoff
elfcore     the head of an ELF core
numa        memfs bind, memfs numastat
moving      memfs move
nodes       memfs offline, memfs online, memfs compact
"""
