"""The pool's frames, and which pages of a file they are.

buddy         free frames, by order
frames        frame numbers, their states, NUMA nodes
page_life     the states of a frame, and what takes it from one to the next
page_table    the page table of one file: Pgoff -> Pfn
readahead     how many pages one GET_PFN grants
state_copy    the states of all frames at one moment
"""
