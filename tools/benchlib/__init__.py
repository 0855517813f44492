"""tools/bench: one module per figure, one per peer, and the machine that both ran on.

fault          P1  measured against raw_socket
first_touch    P2  measured against real_kvm
encrypted_touch  E1  measured against the same without encryption
page_move      M1  measured against a copy and raw_socket
swapping       W1  measured against a file and the bare cipher
trace_cost     S1  measured against its target alone
sinks          S2 to S4  measured against the same without the sink
exploring      P8  measured against the same by one process
page_tables    P3  measured against its targets alone
requests       P5  measured against minimal_fuse
code_speed     C1 to C3  measured against plain_unicorn
code_exits     C4, C5  measured against the same from Python
our_mount      a memfsd to measure, and VMs attached to it
figure         what a measurement yields, and how it is shown

raw_socket     P1  a blocking SEQPACKET pair, two processes on one core
real_kvm       P2, P4  a guest_memfd under /dev/kvm
plain_unicorn  C1 to C3  the same loops in unicorn alone
minimal_fuse   P5  the smallest pyfuse3 filesystem (minimal_server), and request rates of any mount
machine        what is printed beside the figures, and pinning
"""
