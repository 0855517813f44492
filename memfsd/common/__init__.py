"""What both processes run on, besides the contract of uapi.

intervals    half-open intervals with values, and sets of them
starting     Ctrl-C while a program is still starting
"""
