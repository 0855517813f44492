"""What both processes run on, besides the contract of uapi.

starting    Ctrl-C while a program is still starting
"""
