"""The pool's frames, and which pages of a file they are.

buddy         free frames, by order
page_life     the states of a frame, and what takes it from one to the next
frames        frame numbers, their states, and the nodes they are on
nodes         NUMA nodes: distances, and the order in which they are tried
placement     memory policies of ranges of a file
numastat      what numastat(8) counts
large         large pages of a file, whole or split
isolation     frames that are set aside: of a node that is offline
page_table    the page table of one file: Pgoff -> Pfn
published_map what follows it in the page map that a VM reads
swap_slots    slots of the swap file
readahead     how many pages one GET_PFN grants
state_copy    the states of all frames at one moment
"""
