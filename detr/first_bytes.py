"""The first bytes of a file as people read them, for a sentence that says what it is not."""

from __future__ import annotations


def first_bytes(data: bytes, count: int = 12) -> str:
    """Such as `"<!doctype ht"`, or `bytes ff d8 ff e0` where they are no text."""
    start = bytes(data[:count])
    text = start.decode("ascii", "replace")
    if text.isprintable() and start.isascii():
        return f'"{text}"'
    return f"bytes {start.hex(' ')}"
