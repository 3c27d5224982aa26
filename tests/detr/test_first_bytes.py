"""The first bytes of a file in a sentence."""

from __future__ import annotations

import pytest

from detr.first_bytes import first_bytes


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<!doctype html>", '"<!doctype ht"'),
        (b"\xff\xd8\xff\xe0", "bytes ff d8 ff e0"),
        (b"ab\ncd", "bytes 61 62 0a 63 64"),
        (b"", '""'),
    ],
)
def test_text_is_shown_as_text_and_bytes_as_digits(data: bytes, words: str) -> None:
    assert first_bytes(data) == words
