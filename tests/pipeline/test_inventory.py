"""S3 Inventory: both formats list what the bucket lists, older versions and markers left out."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.source import Source
from tests.servers import S3Server

KEYS = ["images/a.jpg", "images/sp ace+plus%.png", "images/日本.webp", "other/b.jpg", "c.txt"]
MANIFEST = "inventory/photos/2026-11-20T00-00Z/manifest.json"


def csv_file(rows: list[dict[str, Any]]) -> bytes:
    columns = ["Bucket", "Key", "VersionId", "IsLatest", "IsDeleteMarker", "Size"]
    columns += ["LastModifiedDate", "ETag"]
    lines = []
    for row in rows:
        values = {**row, "Key": quote_plus(row["Key"], safe="/")}
        lines.append(",".join(f'"{values[name]}"' for name in columns))
    return gzip.compress(("\n".join(lines) + "\n").encode())


def parquet_file(rows: list[dict[str, Any]]) -> bytes:
    times = [datetime.fromisoformat(row["LastModifiedDate"]) for row in rows]
    table = pa.table(
        {
            "bucket": [row["Bucket"] for row in rows],
            "key": [row["Key"] for row in rows],
            "is_latest": [row["IsLatest"] == "true" for row in rows],
            "is_delete_marker": [row["IsDeleteMarker"] == "true" for row in rows],
            "size": pa.array([int(row["Size"] or 0) for row in rows], pa.int64()),
            "last_modified_date": pa.array(times, pa.timestamp("ms", tz="UTC")),
            "e_tag": [row["ETag"] for row in rows],
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def put_inventory(server: S3Server, kind: str, *, damage: bool = False) -> None:
    """The bucket `photos`, its inventory of two files in `lists`, with old versions besides."""
    client = server.client()
    client.create_bucket(Bucket="photos")
    client.create_bucket(Bucket="lists")
    rows = []
    for number, key in enumerate(KEYS):
        answer = client.put_object(Bucket="photos", Key=key, Body=b"x" * number)
        modified = client.head_object(Bucket="photos", Key=key)["LastModified"].astimezone(UTC)
        rows.append(
            {
                "Bucket": "photos",
                "Key": key,
                "VersionId": "1",
                "IsLatest": "true",
                "IsDeleteMarker": "false",
                "Size": str(number),
                "LastModifiedDate": modified.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
                "ETag": answer["ETag"].strip('"'),
            }
        )
    old = {**rows[0], "IsLatest": "false", "Size": "99"}
    marker = {**rows[1], "Key": "images/deleted.jpg", "IsDeleteMarker": "true"}
    encode = csv_file if kind == "CSV" else parquet_file
    files = []
    for number, part in enumerate(([*rows[:2], old], [*rows[2:], marker])):
        data = encode(part)
        key = f"inventory/photos/data/{number}"
        client.put_object(Bucket="lists", Key=key, Body=data)
        md5 = hashlib.md5(data + b"!" * damage).hexdigest()
        files.append({"key": key, "size": len(data), "MD5checksum": md5})
    manifest = {
        "sourceBucket": "photos",
        "destinationBucket": "arn:aws:s3:::lists",
        "version": "2016-11-30",
        "fileFormat": kind,
        "fileSchema": "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, "
        "ETag",
        "files": files,
    }
    client.put_object(Bucket="lists", Key=MANIFEST, Body=json.dumps(manifest).encode())


def rows_of(source: Source) -> list[dict[str, Any]]:
    table = pa.concat_tables(source.tables())
    return sorted(table.to_pylist(), key=lambda row: row["file_name"])


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_an_inventory_lists_what_the_bucket_lists(
    moto: S3Server, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("PANOPTIC_CACHE", str(tmp_path))
    put_inventory(moto, kind)
    listed = rows_of(Source("s3://photos"))
    assert [row["file_name"] for row in listed] == sorted(KEYS[:4])
    assert rows_of(Source(f"s3://lists/{MANIFEST}")) == listed
    under = Source(f"s3://lists/{MANIFEST}", image_root="s3://photos/images")
    assert rows_of(under) == rows_of(Source("s3://photos/images"))


def test_an_inventory_that_can_t_be_used_is_one_sentence(
    moto: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("PANOPTIC_CACHE", str(tmp_path))
    put_inventory(moto, "CSV", damage=True)
    source = Source(f"s3://lists/{MANIFEST}")
    with pytest.raises(UserError, match="its MD5 differs"):
        rows_of(source)
    with pytest.raises(UserError, match="is not in s3://photos"):
        rows_of(Source(f"s3://lists/{MANIFEST}", image_root="s3://elsewhere"))
    manifest = {"sourceBucket": "photos", "destinationBucket": "lists", "files": []}
    for change, words in (
        ({"fileFormat": "ORC"}, "configure one in CSV or Parquet"),
        ({"fileFormat": "CSV", "fileSchema": "Bucket, Key"}, "also needs the optional fields"),
    ):
        body = json.dumps({**manifest, **change}).encode()
        moto.client().put_object(Bucket="lists", Key="other/manifest.json", Body=body)
        with pytest.raises(UserError, match=words):
            rows_of(Source("s3://lists/other/manifest.json"))
