"""What slots are backed by.

memory       windows of the store, anonymous memory, files
mapped       addresses of this process, and files that are mapped there
encrypted    windows whose bytes are ciphertext
"""
