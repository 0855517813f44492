"""Mutation testing: how many small faults in memfsd and kvmsim do the tests find?

mutations    the faults: from a module's text to every mutation of it
catalogue    all mutations of the tree; the sample of a seed; those known to change nothing
workplace    a copy of the checkout with its own .venv, where the tests run on a mutated module
recorder     runs inside the tests: which functions does each test execute?
coverage     what the recorder wrote, as a map from functions to tests
trial        one mutation, the tests that execute it, and the verdict
__main__     the command
"""
