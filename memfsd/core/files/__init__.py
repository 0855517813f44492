"""Files and names, as on tmpfs.

inodes       what the names stand for, and the table of them
namespace    directories, names, links
handles      open files and directories
ordinary     data of files that are not sealed
allocation   fallocate of many holes, in steps
cutting      truncating and punching of many pages, in steps
seeking      SEEK_DATA and SEEK_HOLE, in steps
shares       how much of a bounded resource each user has
xattrs       user.memfsd.* and the rest
"""
