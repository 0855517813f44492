"""What slots are backed by.

memory       windows of the store, anonymous memory, files
encrypted    windows whose bytes are ciphertext
"""
