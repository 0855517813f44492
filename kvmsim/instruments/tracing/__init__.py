"""What reads the traces of --trace, and the journals of --journal: `kvmsim trace`, `kvmsim stat`, `kvmsim perf`.

reader       lines of several files as happenings, merged by time; or one file as it grows
timeline     happenings as tracks, slices, flows and counters
perfetto     a timeline as a Perfetto file
counting     events and statistics counted, by VM: kvm_stat(1)
exit_times   exits by reason, with their times: perf kvm stat report
command      kvmsim trace list | convert;  stat_command: kvmsim stat;  perf_command: kvmsim perf report
"""
