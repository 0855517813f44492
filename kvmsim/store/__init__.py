"""The client of memfsd.

link      one pairing: the down channel, and a thread for the up channel
page_map  frames that are found without a message
"""
