"""What tools/bench compares us with: one module per peer, and the machine that both ran on.

raw_socket     P1  a blocking SEQPACKET pair, two processes on one core
real_kvm       P2, P4  a guest_memfd under /dev/kvm
minimal_fuse   P5  the smallest pyfuse3 filesystem (minimal_server), and request rates of any mount
machine        what is printed beside the figures, and pinning
"""
