"""What both processes run on, besides the contract of uapi. May block, read clocks and ask the kernel.

sync         locks, threads and ends of connections: made here, so that a scheduler can step in
linux        fallocate(2), and which pages of a memfd hold memory
intervals    half-open intervals with values, and sets of them
trace        what happens on either side, reported to whoever observes it; packets: what is sent and received
journal      an observer: a line of JSON for each message; journalfile: the file it is written to
tracing      an observer: events in the kernel's text form; traceevents: which there are; tracefilter: which are wanted;
             tracefile: the file they are written to; _ring: where they wait for it; traceoptions: of a command line
ratelimit    what is dear, done for a small share of the time
qmp          a client of QMP, kvmsim's monitor
rundir       where a program listens: a directory that is ours, and a socket in it
sockets      connections between processes of one mount
observer     a tool's connection to a store; stores: which store a path has
fileioctls   ioctls on files of a mount
fields       attributes that are words of the form "private=0"
mounts       which mount of memfsd a path is on
collecting   the garbage collector where very much lives long
logqueue     logging that waits for nobody
stdio        standard output that is closed, full, or a pipe without reader
arguments    argparse with one line for each error
logs         lines of a log
quote        names with control characters, as ls shows them
lines        lines of a view: tables and bars; fullscreen: a view that fills the terminal
starting     Ctrl-C while a program is still starting
version      of both programs
"""
