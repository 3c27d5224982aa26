"""An image is found by its name in whatever generation computed it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from detr.panoptic import Panoptic
from pipeline.errors import UserError
from pipeline.run import lookup
from pipeline.run.folder import ShardEntry
from pipeline.run.lookup import find_row
from pipeline.run.reader import panoptic_of
from pipeline.sharding import name_hash, shard_of
from pipeline.storage.storage import Storage
from tests.factories import add_generation, named_images, publish_run


def test_every_image_is_found_and_read_back(tmp_path: Path) -> None:
    made = named_images([f"folder {n}/写真 #{n}?.jpg" for n in range(40)])
    run = publish_run(tmp_path, made, shards=5)
    for image in made:
        row = find_row(run, image.file_name)
        assert row["uri"] == image.uri
        back = panoptic_of(row)
        assert isinstance(image.result, Panoptic)
        np.testing.assert_array_equal(back.segment_map, image.result.segment_map)
        assert back.segments == image.result.segments


def test_later_generations_are_found_with_their_own_shard_count(tmp_path: Path) -> None:
    run = publish_run(tmp_path, named_images([f"old{n}.jpg" for n in range(20)]), shards=4)
    add_generation(run, named_images([f"new{n}.jpg" for n in range(20)]), number=2, shards=3)
    for n in range(20):
        assert find_row(run, f"old{n}.jpg")["generation"] == 1
        assert find_row(run, f"new{n}.jpg")["generation"] == 2
    with pytest.raises(UserError, match=r"no image 'new1\.jpg'"):
        find_row(run, "new1.jpg", snapshot=run.snapshot(1))


@pytest.fixture
def objects_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The path of every object that is read or opened from now on."""
    paths: list[str] = []
    for name in ("read", "open"):

        def counting(self: Storage, path: str, own: Any = getattr(Storage, name)) -> Any:
            paths.append(path)
            return own(self, path)

        monkeypatch.setattr(Storage, name, counting)
    return paths


def test_three_objects_are_read_for_one_image_of_a_million(
    tmp_path: Path, objects_read: list[str]
) -> None:
    """1,954 shards are live, and only the one that must be read is there."""
    shards, name = 1_954, "holiday/0042.jpg"
    place = shard_of(name_hash(name), shards)
    run = publish_run(tmp_path, named_images([name]), shards=shards)
    [own] = run.snapshot().shards
    others = [run.generation(1).shard_path(n) for n in range(shards) if n != place]
    run.write_snapshot(1, [own, *(ShardEntry(path, 512, 512, 0, 1_800_000) for path in others)])
    objects_read.clear()
    assert run[name].segments[0].category.name == "person"
    assert objects_read == ["latest.json", "snapshots/0001.parquet", own.path]


def test_of_a_large_shard_one_row_group_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = publish_run(tmp_path, named_images([f"{n}.jpg" for n in range(60)]), shards=1)
    [entry] = run.snapshot().shards
    table = run.read_shard(entry.path)
    pq.write_table(table, tmp_path / entry.path, row_group_size=10)
    monkeypatch.setattr(lookup, "WHOLE_BYTES", 0)
    assert find_row(run, "7.jpg") == next(
        row for row in table.to_pylist() if row["file_name"] == "7.jpg"
    )
    assert run.read_shard(entry.path, names={"7.jpg"}).num_rows == 10


def test_where_only_copies_are_live_their_plan_says_how_many_shards_there_were(
    tmp_path: Path,
) -> None:
    run = publish_run(tmp_path, named_images([f"{n}.jpg" for n in range(40)]), shards=4)
    entries = []
    for shard, entry in enumerate(run.snapshot().shards):
        copy = f"segments/0002/kept-0001-{shard:06d}.parquet"
        run.storage.write(copy, run.storage.read(entry.path))
        entries.append(dataclasses.replace(entry, path=copy))
    run.write_snapshot(2, entries)
    run.publish(2)
    assert [run[f"{n}.jpg"].file_name for n in range(40)] == [f"{n}.jpg" for n in range(40)]


def test_a_name_is_in_the_run_or_not_and_a_run_is_not_looped_over(tmp_path: Path) -> None:
    run = publish_run(tmp_path, named_images(["a.jpg"]), shards=1)
    assert "a.jpg" in run
    assert "b.jpg" not in run
    with pytest.raises(TypeError, match="not iterable"):
        iter(run)  # type: ignore[call-overload]
    (tmp_path / run.snapshot().shards[0].path).unlink()
    with pytest.raises(UserError, match="is missing"):  # nobody knows whether it is in it
        _ = "a.jpg" in run


def test_an_unknown_name_is_said(tmp_path: Path) -> None:
    run = publish_run(tmp_path, named_images(["a.jpg"]))
    with pytest.raises(UserError, match=r"has no image 'b\.jpg'"):
        find_row(run, "b.jpg")
