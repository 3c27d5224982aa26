"""The GETs of a unit: what they report, and which bodies are images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from pipeline.planning.source import Source
from pipeline.segmentation.fetch import UnitFetch
from tests.odd_files import encode, picture


class Recording(UnitFetch):
    """A fetch that keeps what it would report: images ended, begun and failed."""

    def _report(self, started: float, *, done: bool) -> None:
        self.reports: list[tuple[int, int, int]] = getattr(self, "reports", [])
        self.reports.append((self.ended, self.begun, len(self.failed)))


def recorded(folder: Path, gone: int, **columns: Any) -> Recording:
    """A fetch of 250 images of which the first `gone` are deleted after they were listed."""
    for number in range(250):
        (folder / f"{number:03d}.jpg").write_bytes(b"x")
    table = pa.concat_tables(Source(str(folder)).tables()).sort_by("file_name")
    for name, value in columns.items():
        position = table.column_names.index(name)
        table = table.set_column(position, name, pa.repeat(value, 250).cast(table[name].type))
    for number in range(gone):
        (folder / f"{number:03d}.jpg").unlink()
    fetch = Recording(table, {})
    fetch.run()
    return fetch


@pytest.mark.parametrize("gone", [0, 30])
def test_a_unit_reports_as_often_whether_or_not_images_fail(tmp_path: Path, gone: int) -> None:
    fetch = recorded(tmp_path, gone)
    assert len(fetch.reports) == 3  # after 100, 200 and all
    assert all(ended <= begun for ended, begun, _ in fetch.reports)
    assert fetch.reports[-1] == (250, 250, gone)


def test_images_that_failed_before_are_not_reported_to_the_budget(tmp_path: Path) -> None:
    fetch = recorded(tmp_path, 30, attempts=1)
    assert fetch.reports[-1] == (250, 0, 0)


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
            "attempts": pa.array([0] * len(contents), pa.int32()),
        }
    )
    bodies = UnitFetch(manifest, {}, any_suffix=True).run()
    assert [body.code for body in bodies] == [None, "not_an_image", None, None]
    assert bodies[0].data == contents["photo"]
    assert bodies[1].data is None  # nothing of it travels on
    assert all(body.code is None for body in UnitFetch(manifest, {}).run())
