"""Controlled races: the real code of both sides in one process, under a scheduler that decides who goes on.

points      every named point: messages, locks, mappings, frames; and how they are watched
accesses    what a step touches, and which steps commute
scheduler   one thread at a time, from point to point, in virtual time
primitives  the locks, threads and connections it schedules: memfsd.common.sync makes these instead
scenario    what is raced: text to actors
programs    machine code that races, and what each of its instructions does
slices      a vCPU that runs it, so many instructions at a time
world       a store and its VMs, processes that can be killed, stopped and cut off
page_cache  the kernel between mappings of guest_memfds and the store
mappings    fds that mappings will close
shown       which page of which file a GFN may show
history     what a guest may read
aliases     which pages are private, and when
conversions what actors do with guest_memfds
oracle      R1 to R8 and that everything ends, with both sides in view
runner      one run of a scenario
order       happens-before: which schedules are equivalent
explore     which runs: random, with few preemptions, replayed
exhaustive  which runs: all
deaths      where a process can die
spread      all of them by several processes
workers     which processes: of this machine, or of a cluster
interrupts  Ctrl-C and SIGTERM, once
arguments   what --help loads
minimise, diagram, record, cli   a failure made short, drawn, kept; the command

This package alone of kvmsim knows memfsd beyond its uapi, because it needs both sides. Nothing but the command
`kvmsim race` and tests imports it.
"""
