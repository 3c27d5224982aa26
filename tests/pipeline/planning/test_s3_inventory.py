"""S3 Inventory: both formats list what the bucket lists, older versions and markers left out."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cluster.device import Device
from pipeline.config import RunConfig, make_config
from pipeline.errors import UserError
from pipeline.planning.source import Source
from pipeline.run.run import create_run
from pipeline.segmentation.model_spec import Identity, ModelDescription
from pipeline.segmentation.run_info import check_same, describe_run
from pipeline.storage.storage import Storage
from tests.factories import Night
from tests.servers import S3Server
from tests.toy_model import CATEGORIES

KEYS = ["images/a.jpg", "images/sp ace+plus%.png", "images/日本.webp", "other/b.jpg", "c.txt"]
FOLDER = "inventory/photos"
DAY = "2026-11-20T00-00Z"
MANIFEST = f"{FOLDER}/{DAY}/manifest.json"


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


def put_inventory(
    server: S3Server,
    kind: str,
    *,
    damage: bool = False,
    keys: Sequence[str] = KEYS,
    day: str = DAY,
) -> None:
    """The bucket `photos`, its inventory of two files in `lists`, with old versions besides."""
    client = server.client()
    client.create_bucket(Bucket="photos")
    client.create_bucket(Bucket="lists")
    rows = []
    for number, key in enumerate(keys):
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
        key = f"{FOLDER}/data/{day}-{number}"
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
    body = json.dumps(manifest).encode()
    client.put_object(Bucket="lists", Key=f"{FOLDER}/{day}/manifest.json", Body=body)
    client.put_object(Bucket="lists", Key=f"{FOLDER}/{day}/manifest.checksum", Body=b"md5")


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


def test_a_configuration_s_folder_is_its_newest_complete_inventory(moto: S3Server) -> None:
    put_inventory(moto, "CSV", keys=KEYS[:2], day="2025-12-31T01-00Z")
    put_inventory(moto, "Parquet")
    begun = f"{FOLDER}/2026-11-21T00-00Z/manifest.checksum"
    moto.client().put_object(Bucket="lists", Key=begun, Body=b"md5")
    assert rows_of(Source(f"s3://lists/{FOLDER}")) == rows_of(Source("s3://photos"))
    for name in (MANIFEST, f"{FOLDER}/2025-12-31T01-00Z/manifest.json"):
        moto.client().delete_object(Bucket="lists", Key=name)
    with pytest.raises(UserError, match="no complete inventory yet"):
        rows_of(Source(f"s3://lists/{FOLDER}"))


def test_a_refresh_goes_from_one_inventory_to_the_next(moto: S3Server, tmp_path: Path) -> None:
    put_inventory(moto, "CSV")
    night = Night(tmp_path)
    night.source = Source(f"s3://lists/{FOLDER}")
    night.first({})
    assert night.refresh() is None
    put_inventory(moto, "CSV", keys=[*KEYS, "images/new.jpg"], day="2026-11-21T00-00Z")
    generation = night.refresh()
    assert generation is not None
    assert {kind: count for kind, count in generation.counts.items() if count} == {"new": 1}


def test_every_inventory_of_a_configuration_is_one_source_to_a_run(tmp_path: Path) -> None:
    def config(source: str) -> RunConfig:
        return make_config({"source": source, "out": str(tmp_path)})

    made = config(f"s3://lists/{MANIFEST}")
    description = ModelDescription(CATEGORIES, "", {}, Identity("", "", ""))
    run = create_run(Storage(tmp_path), describe_run(made, description, Device("cpu", "x", "fp32")))
    for day in (f"s3://lists/{FOLDER}/2026-11-21T01-30Z/manifest.json", f"s3://lists/{FOLDER}/"):
        check_same(run, config(day), description)
    with pytest.raises(UserError, match="a run keeps its source"):
        check_same(run, config(f"s3://lists/inventory/other/{DAY}/manifest.json"), description)
