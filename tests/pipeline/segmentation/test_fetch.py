"""A body is the object that was listed, or an error that says what differs."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from pipeline.segmentation.fetch import Body, UnitFetch, check_body
from pipeline.storage.entry import Fetched
from tests.odd_files import encode, picture


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


def test_with_any_suffix_the_first_bytes_decide(tmp_path: Path) -> None:
    contents = {
        "photo": encode(Image.fromarray(picture()), "JPEG"),
        "notes.bak": b"meet at noon, bring the photos",
        "scan.heic_": b"\0\0\0\x18ftypheic" + bytes(40),
        "nothing": b"",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    manifest = pa.table(
        {
            "uri": [str(tmp_path / name) for name in contents],
            "size": pa.array([len(data) for data in contents.values()], pa.int64()),
            "etag": pa.nulls(len(contents), pa.string()),
        }
    )
    bodies = UnitFetch(manifest, {}, any_suffix=True).run()
    assert [body.code for body in bodies] == [None, "not_an_image", None, None]
    assert bodies[0].data == contents["photo"]
    assert bodies[1].data is None  # nothing of it travels on
    assert all(body.code is None for body in UnitFetch(manifest, {}).run())
