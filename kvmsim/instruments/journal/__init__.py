"""`kvmsim journal`, which reads what --journal recorded (memfsd/common/journal.py).

reader.py     lines of several files, in the order of their times
conversation.py   requests and replies, states and brackets, of one connection
store_rules.py    what memfsd's journal proves: frames freed only when no VM can reach them
vm_rules.py       what kvmsim's journal proves: zap before acknowledgement, no stale install
check.py      all rules over all journals, the first broken one named
show.py       the exchange as a diagram
command.py    kvmsim journal check | show
"""
