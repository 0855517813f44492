"""What records VMs, looks at them, compares designs and explores schedules. Of the other rooms only api loads them.

journal/    `kvmsim journal`, and a KVM that records
monitor/    QMP on a socket of each process, and `kvmsim monitor`
tracing/    `kvmsim trace`, `stat` and `perf`: what reads traces
views/      `kvmsim top` and reports: what people look at
compare/    `kvmsim compare`: the same guests over all designs, measured
vmms/       `kvmsim vmms`: models of real VMMs through conversions that fail; `kvmsim abi`
race/       `kvmsim race`: both sides under a scheduler
outputfile  what they write as a whole: a page, a picture, a converted trace, a record
"""
