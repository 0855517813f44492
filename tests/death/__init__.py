"""The death table: a process is killed, stopped or cut off at every named point, on a real mount.

traps       what happens at one named point of one process, wired in from outside
deadlines   shortened
launcher    memfsd, kvmsim and memfs as forked processes
scenarios   what the two of them are doing when it happens
bench       one mount, and the words for what is checked on it
model       a cell: one point, one scenario, one fault, one victim
cell        run it, and look at what is left
table       which cells there are, and how they are shown
worker      a bench in its own process
defects     mistakes that the table must see
pool        cells on several mounts side by side
"""
