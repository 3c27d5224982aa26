"""The first bytes of a file in readable form, for error messages about files of a wrong kind."""

from __future__ import annotations


def first_bytes(data: bytes, count: int = 12) -> str:
    """`"<!doctype ht"` if the bytes are printable ASCII, else hex: `bytes ff d8 ff e0`."""
    start = bytes(data[:count])
    text = start.decode("ascii", "replace")
    if text.isprintable() and start.isascii():
        return f'"{text}"'
    return f"bytes {start.hex(' ')}"
