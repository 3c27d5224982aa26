"""The GETs of a unit: what they report, and which bodies are images."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from pipeline.planning.source import Source
from pipeline.schema import MEMBER_COLUMNS
from pipeline.segmentation.fetch import Body, UnitFetch
from pipeline.storage.entry import Fetched
from pipeline.storage.objects import Gets
from pipeline.storage.storage import Storage
from tests.archive_files import tarred, zipped
from tests.odd_files import encode, picture
from tests.servers import S3Server


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


MEMBERS = {f"val/{number}.jpg": b"%d" % number * 5000 for number in range(20)}


def fetched(source: Source) -> dict[str, Body]:
    """What a unit of all members gives, by file name."""
    table = pa.concat_tables(source.tables())
    return dict(zip(table["file_name"].to_pylist(), UnitFetch(table, {}).run(), strict=True))


@pytest.mark.parametrize("name", ["stored.zip", "deflated.zip", "plain.tar"])
def test_members_of_an_archive_are_fetched_by_one_range_each(
    storage: Storage, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = zipfile.ZIP_DEFLATED if name.startswith("deflated") else zipfile.ZIP_STORED
    storage.write(name, tarred(MEMBERS) if name.endswith("tar") else zipped(MEMBERS, method))
    ranges: list[int] = []
    plain = Gets.get_range

    async def counting(self: Gets, uri: str, start: int, length: int, etag: str | None) -> Fetched:
        ranges.append(length)
        return await plain(self, uri, start, length, etag)

    monkeypatch.setattr(Gets, "get_range", counting)
    bodies = fetched(Source(storage.join(name)))
    assert {key: body.data for key, body in bodies.items()} == {
        f"{name}/{member}": data for member, data in MEMBERS.items()
    }
    assert len(ranges) == len(MEMBERS)


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_members_of_an_archive_that_was_replaced_after_its_listing_have_changed(
    storage: Storage, name: str
) -> None:
    pack = tarred if name.endswith("tar") else zipped
    storage.write(name, pack(MEMBERS))
    table = pa.concat_tables(Source(storage.join(name)).tables())
    storage.write(name, pack({key: b"new" + data for key, data in MEMBERS.items()}))
    bodies = UnitFetch(table, {}).run()
    assert {body.code for body in bodies} == {"changed"}


def test_a_member_that_is_damaged_where_it_is_kept_is_corrupt_after_two_tries(
    moto: S3Server,
) -> None:
    moto.client().create_bucket(Bucket="bucket")
    storage = Storage("s3://bucket/folder")
    data = bytearray(zipped(MEMBERS))
    data[2000] ^= 1
    storage.write("a.zip", bytes(data))
    bodies = fetched(Source(storage.join("a.zip")))
    bad = [body for body in bodies.values() if body.code]
    assert len(bad) == 1
    assert bad[0].code == "corrupt"
    assert "the same each time" in str(bad[0].message)


def test_an_encrypted_and_a_gigantic_member_are_rows(tmp_path: Path) -> None:
    data = bytearray(zipped(MEMBERS))
    data[6] |= 1  # the flag of the first member
    (tmp_path / "a.zip").write_bytes(data)
    table = pa.concat_tables(Source(str(tmp_path / "a.zip")).tables())
    sizes = table["size"].to_pylist()
    sizes[1] = 5 << 30
    table = table.set_column(table.column_names.index("size"), "size", pa.array(sizes, pa.int64()))
    bodies = UnitFetch(table, {}).run()
    assert [body.code for body in bodies[:3]] == ["unsupported", "too_large", None]


def test_a_damaged_archive_is_one_error_row_without_a_get(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tarred(MEMBERS)[:30_000])
    bodies = fetched(Source(str(tmp_path)))
    assert bodies["a.tar"].code == "truncated"
    assert "members before are whole" in str(bodies["a.tar"].message)
    assert sum(body.data is not None for body in bodies.values()) == len(bodies) - 1 > 1


def test_a_manifest_that_is_older_than_archives_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    table = pa.concat_tables(Source(str(tmp_path)).tables()).drop_columns(list(MEMBER_COLUMNS))
    [body] = UnitFetch(table, {}).run()
    assert body.data == b"a"
