"""Sizes that no listing told, and images that were replaced since."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.planning.generations import plan_retry, stage_listing
from pipeline.planning.scratch_db import Staging
from pipeline.planning.source import Source
from tests.factories import made_scenes, make_run, shard_row


def test_the_bytes_of_a_plain_list_are_estimated_from_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.planning.object_info.SAMPLE", 10)
    for number in range(40):
        (tmp_path / f"{number}.jpg").write_bytes(b"x" * 1_000)
    listing = tmp_path / "list.txt"
    gone = tmp_path / "gone.jpg"
    listing.write_text("".join(f"{tmp_path}/{n}.jpg\n" for n in range(40)) + f"{gone}\n")
    with Staging() as staging:
        images, size = stage_listing(staging, Source(str(listing)), None, lambda count: None)
    assert (images, size) == (41, 41_000)


def test_a_retry_takes_a_replaced_image_by_the_marks_that_it_has_now(tmp_path: Path) -> None:
    rows = {name: shard_row(name, predicted) for name, predicted in made_scenes(3).items()}
    for name, code in (("new.jpg", "changed"), ("slow.jpg", "timeout"), ("gone.jpg", "changed")):
        rows[name] = {**shard_row(name, code), "uri": str(tmp_path / name)}
    (tmp_path / "new.jpg").write_bytes(b"x" * 77)
    (tmp_path / "slow.jpg").write_bytes(b"x" * 88)
    run = make_run(tmp_path / "run", rows)
    generation = plan_retry(run, ["changed", "timeout"], 512)
    assert generation is not None
    parts = [pq.read_table(tmp_path / "run" / part) for part in generation.parts()]
    planned = {row["file_name"]: row for row in pa.concat_tables(parts).to_pylist()}
    assert {name: row["size"] for name, row in planned.items()} == {
        "new.jpg": 77,
        "slow.jpg": 1,  # as listed
        "gone.jpg": 1,  # nobody knows better
    }
    assert planned["new.jpg"]["last_modified"] is not None
    assert [row["attempts"] for row in planned.values()] == [1, 1, 1]
