"""`kvmsim compare`: the same guests over all designs of conversion and page sizes, measured.

workloads   what the guests do
costs       what is done to a private page: touched, moved, swapped, encrypted
rig         one VM on its own file, and what is measured of it
ram         memory of the guest, as each ABI has it
store       a memfsd mount for the time, when the person names none
table       the results for people and for programs
plot        slots and cost against live conversions, as a picture
arguments   what --help loads
command     the command line
"""
