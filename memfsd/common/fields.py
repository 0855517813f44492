"""Attributes of memfsd that are words of the form "private=0 pending=0"."""


def fields(line: str) -> dict[str, int | str]:
    """By name; what is a number is an int."""
    pairs = (word.partition("=") for word in line.split())
    return {key: int(value) if value.isdigit() else value for key, _, value in pairs}


def counted(line: str) -> dict[str, int]:
    """What of such a line is a number."""
    return {key: value for key, value in fields(line).items() if isinstance(value, int)}
