"""A monitor for each process of kvmsim: QMP, the protocol of QEMU's monitor, on a Unix socket.

protocol   bytes to requests, answers and events to bytes: no socket
schema     what the commands take and answer, and the events
state      what they answer, read from the VMs; paged where it may be long
handlers   what the commands do
events     trace points to events
arguments  the option --qmp
places     where a process listens, and which processes do
listening  sockets, and a thread that waits for the first client
monitor    the thread that serves all clients
command    `kvmsim monitor`

The other end is memfsd/common/qmp.py. docs/monitor.md has the commands and events for people.
"""
