"""`kvmsim abi`: one catalogue of situations, run on every ABI, and what each answered.

store       the store of vmms, with files of any size and flags, and the kernel's page cache of those that are mapped
bench       one store and its VMs, and what situations ask of them; answers in words
files       situations: files, and slots of them
pages       situations: pages, attributes, conversions, exits
catalogue   all situations, run on every ABI
table       the results, for people, for programs and for docs/abi.md
arguments   what --help loads
command     the command line
"""
