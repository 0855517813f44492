"""Helpers of the tests: real parts of the product put together in one process."""
