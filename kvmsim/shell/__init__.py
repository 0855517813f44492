"""The script language, and what its commands do.

script/          lines to commands, commands to a verdict
script_command   kvmsim run and kvmsim attach; prompt: what the latter shows at a terminal
arguments        their command lines
lines            commands from a pipe, as they come
execute          commands to calls
script_vm        what `vm NAME` makes
interrupt        SIGINT ends the command that runs, and nothing else
vcpu_commands    commands that run vCPUs
image            a host file that `populate` adds, or `boot` loads
gmem_commands    guest_memfds, slots with both memories, memory attributes
gdb              --gdb: gdb's remote protocol; gdb_packets: its packets
host_commands    the `hva` commands
info             `info ...`
"""
