"""Objects of a run folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.evaluation.agreement import agree
from pipeline.report.export import export_run
from pipeline.report.sql import query
from pipeline.run.folder import parquet_bytes, read_parquet
from pipeline.run.snapshots import open_snapshot
from tests.factories import MadeImage, named_images, publish_run


def test_a_table_is_read_as_it_was_written() -> None:
    table = pa.table({"path": ["a", "b"], "rows": [1, None]}).replace_schema_metadata({"k": "v"})
    assert read_parquet(parquet_bytes(table)).equals(table, check_metadata=True)


def test_no_thread_holds_the_bytes_once_they_are_read() -> None:
    """Else it lets go of them while the process ends, and aborts it."""
    data = parquet_bytes(pa.table({"path": ["a"] * 1_000}))
    held = sys.getrefcount(data)
    for _ in range(500):
        table = read_parquet(data)
        del table
        assert sys.getrefcount(data) == held


@pytest.mark.parametrize("older", [slice(0, 1), slice(None)], ids=["one shard", "all shards"])
def test_a_column_newer_than_a_shard_is_null_to_every_reader(tmp_path: Path, older: slice) -> None:
    """Those of segments in lists of as many nulls, for readers that walk the lists side by side."""
    names = [f"{number}.jpg" for number in range(12)]
    run = publish_run(
        tmp_path / "out", [*named_images(names), MadeImage("bad.jpg", "/bad.jpg", "empty")]
    )
    lacking = set[str]()
    for shard in run.snapshot().shards[older]:
        path = tmp_path / "out" / shard.path
        rows = pq.read_table(path)
        lacking.update(rows["file_name"].to_pylist())
        pq.write_table(rows.drop_columns(["score", "etag", "isthing"]), path)
    assert lacking

    rows = {row["file_name"]: row for row in run.table(["score", "file_name"]).to_pylist()}
    target = tmp_path / "export.json"
    export_run(run, target, file_names=names)
    exported = json.loads(target.read_text())["annotations"]
    scores = [segment["score"] for image in exported for segment in image["segments_info"]]
    found = query(run, "select file_name, score, category from segments").to_pylist()
    for name in names:
        expected = [None, None] if name in lacking else [0.5, 0.75]
        assert rows[name]["score"] == run[name].row["score"] == expected
        assert [row["score"] for row in found if row["file_name"] == name] == expected
    assert scores.count(None) == 2 * len(lacking - {"bad.jpg"})
    assert query(run, "select count(*) as n from images where etag is null").to_pylist() == [
        {"n": 13}
    ]
    snapshot = open_snapshot(run.storage.url)
    assert agree(snapshot, snapshot).groups["All"]["pq"] == 1.0
