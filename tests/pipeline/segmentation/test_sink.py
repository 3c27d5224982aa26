"""The bytes of a shard: small, and read by other programs than ours."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.panoptic import rle
from pipeline.run.shard_format import Provenance, encode_shard, put_shard
from pipeline.schema import SHARD_SCHEMA
from pipeline.segmentation.sink import _empty
from pipeline.storage.storage import Storage
from tests.factories import shard_row

PROVENANCE = Provenance("made", "0" * 64, "cpu")


def coco_rows(folder: Path) -> tuple[pa.Table, int]:
    """COCO's own truth as shard rows, and the bytes of its PNGs."""
    dataset = json.loads((folder / "panoptic_val2017.json").read_text())
    rows, size = [], 0
    for number, annotation in enumerate(dataset["annotations"]):
        png = folder / "panoptic_val2017" / annotation["file_name"]
        rgb = np.asarray(Image.open(png).convert("RGB"), dtype=np.int32)
        segment_map = rgb @ np.array([1, 256, 65536], dtype=np.int32)
        encoded = rle.encode(segment_map, [s["id"] for s in annotation["segments_info"]])
        count = len(encoded.counts)
        size += png.stat().st_size
        rows.append(
            {
                "file_name": annotation["file_name"],
                "uri": f"s3://bucket/images/{annotation['file_name']}",
                "etag": np.random.default_rng(number).bytes(16).hex(),
                "status": "ok",
                "attempts": 1,
                "height": segment_map.shape[0],
                "width": segment_map.shape[1],
                "segment_id": list(range(1, count + 1)),
                "category_id": [s["category_id"] for s in annotation["segments_info"]],
                "isthing": [s["category_id"] <= 90 for s in annotation["segments_info"]],
                "score": np.random.default_rng(number).uniform(0.85, 1, count).tolist(),
                "area": encoded.area.tolist(),
                "bbox": encoded.bbox.tolist(),
                "counts": encoded.counts,
                "code_version": "made",
                "generation": 1,
            }
        )
    return pa.Table.from_pylist(rows, schema=SHARD_SCHEMA), size


def test_shards_take_at_most_055_of_the_png_bytes(coco_val100: Path) -> None:
    rows, png_bytes = coco_rows(coco_val100)
    assert len(encode_shard(rows, PROVENANCE)) <= 0.55 * png_bytes


@pytest.mark.parametrize("segments", [0, 1, 500])
def test_duckdb_and_pyarrow_read_the_strings_back(tmp_path: Path, segments: int) -> None:
    counts = [f"{i}{'0' * (i % 7)}" for i in range(segments)]
    row = {
        "file_name": "a.jpg",
        "uri": "a.jpg",
        "status": "ok",
        "attempts": 1,
        "segment_id": list(range(1, segments + 1)),
        "category_id": [1] * segments,
        "isthing": [True] * segments,
        "score": [0.9] * segments,
        "area": [1] * segments,
        "bbox": [[0, 0, 1, 1]] * segments,
        "counts": counts,
        "code_version": "made",
        "generation": 1,
    }
    error = {**row, **{name: [] for name, value in row.items() if isinstance(value, list)}}
    error |= {"file_name": "b.jpg", "status": "error", "error_code": "corrupt"}
    rows = pa.Table.from_pylist([row, error], schema=SHARD_SCHEMA)
    path = tmp_path / "shard.parquet"
    path.write_bytes(encode_shard(rows, PROVENANCE))
    assert pq.read_table(path).equals(rows)
    with duckdb.connect() as connection:
        query = f"select counts from '{path}' order by file_name"
        read = connection.execute(query).fetchall()
    assert read == [(counts,), ([],)]


def named_rows(*names: str, error: str = "timeout") -> pa.Table:
    return pa.Table.from_pylist([shard_row(name, error) for name in names], schema=SHARD_SCHEMA)


def test_a_shard_that_is_there_is_accepted_and_not_written_over(storage: Storage) -> None:
    size = put_shard(storage, "shard", named_rows("a", "b"), PROVENANCE)
    before = storage.read("shard")
    assert size == len(before)
    assert put_shard(storage, "shard", named_rows("a", "b", error="corrupt"), PROVENANCE) == size
    assert storage.read("shard") == before


@pytest.mark.parametrize(
    ("rows", "provenance"),
    [
        (named_rows("a"), PROVENANCE),
        (named_rows("a", "c"), PROVENANCE),
        (named_rows("a", "b"), Provenance("other", "0" * 64, "cpu")),
        (named_rows("a", "b"), Provenance("made", "1" * 64, "cpu")),
        (None, PROVENANCE),
    ],
)
def test_a_shard_of_something_else_is_named_and_left(
    storage: Storage, rows: pa.Table | None, provenance: Provenance
) -> None:
    there = b"" if rows is None else encode_shard(rows, provenance)
    storage.write("shard", there)
    with pytest.raises(UserError, match="shard is there already and holds something else"):
        put_shard(storage, "shard", named_rows("a", "b"), PROVENANCE)
    assert storage.read("shard") == there


def test_the_same_rows_give_the_same_bytes(coco_val100: Path) -> None:
    rows, _ = coco_rows(coco_val100)
    again = rows.take(list(range(len(rows))))
    assert encode_shard(rows, PROVENANCE) == encode_shard(again, PROVENANCE)


def test_images_without_a_segment_are_counted_apart_from_those_that_failed() -> None:
    whole = (np.array([[1, 1]]), [{"id": 1, "category_id": 1}])
    nothing = (np.array([[0, 0]]), [])
    rows = [shard_row("a", whole), shard_row("b", nothing), shard_row("c", "truncated")]
    assert _empty(pa.Table.from_pylist(rows, schema=SHARD_SCHEMA)) == 1
