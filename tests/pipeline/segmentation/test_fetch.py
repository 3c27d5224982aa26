"""A body is the object that was listed, or an error that says what differs."""

from __future__ import annotations

import pytest

from pipeline.segmentation.fetch import Body, check_body
from pipeline.storage.entry import Fetched


@pytest.mark.parametrize(
    ("fetched", "size", "etag", "code"),
    [
        (Fetched(b"abc", "e"), 3, "e", None),
        (Fetched(b"abc", None), 3, None, None),
        (Fetched(b"abc", None), None, None, None),
        (Fetched(b"abc", "new"), 3, "old", "changed"),
        (Fetched(b"ab", "e"), 3, "e", "unavailable"),
        (Fetched(b"abcd", None), 3, None, "changed"),
    ],
)
def test_a_body_is_compared_with_its_listing(
    fetched: Fetched, size: int | None, etag: str | None, code: str | None
) -> None:
    body = check_body(fetched, size, etag)
    assert body.code == code
    assert body == Body(fetched.data) if code is None else body.data is None and body.message
