"""Manifests at rest: sorted, a row group a shard, and the state of a run after many generations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.planning.manifest import write_parts
from pipeline.planning.scratch_db import Staging
from pipeline.schema import MANIFEST_SCHEMA
from pipeline.sharding import Generation, name_hash, shard_of
from pipeline.storage.storage import Storage


def manifest(names: list[str]) -> pa.Table:
    rows = [
        {"hash": name_hash(n), "file_name": n, "uri": f"/{n}", "size": 1, "attempts": 0}
        for n in names
    ]
    return pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)


def in_slices(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 400), shards=st.integers(1, 200), rows=st.integers(1, 90))
def test_each_row_group_holds_exactly_the_images_of_its_shard(
    tmp_path_factory: pytest.TempPathFactory, count: int, shards: int, rows: int
) -> None:
    storage = Storage(tmp_path_factory.mktemp("parts"))
    names = [f"{number}.jpg" for number in range(count)]
    table = manifest(names).sort_by([("hash", "ascending")])
    counts = write_parts(storage, 1, shards, in_slices(table, rows))
    found: dict[str, int] = {}
    for unit in Generation(1, "first", counts, 0).units():
        with storage.open(unit.part) as file:
            group = pq.ParquetFile(file).read_row_group(unit.row_group)
        assert group.num_rows == unit.images
        found.update(dict.fromkeys(group["file_name"].to_pylist(), unit.shard))
    assert found == {name: shard_of(name_hash(name), shards) for name in names}


def test_a_name_that_stands_twice_is_refused() -> None:
    with Staging() as staging:
        staging.stage("listing", iter([manifest(["a", "b"]), manifest(["a"])]))
        with pytest.raises(UserError, match="'a' is listed 2 times"):
            staging.refuse_duplicates("listing")


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 200), rows=st.integers(1, 250))
def test_rows_come_in_order_and_none_is_lost_however_few_fit_a_pass(count: int, rows: int) -> None:
    names = [f"{number}.jpg" for number in range(count)]
    with pytest.MonkeyPatch.context() as patch, Staging() as staging:
        patch.setattr("pipeline.planning.scratch_db.PASS_ROWS", rows)
        staging.stage("listing", in_slices(manifest(names), 30))
        staging.refuse_duplicates("listing")
        found = pa.concat_tables(staging.in_order("listing"))["file_name"].to_pylist()
    assert found == sorted(names, key=lambda name: (name_hash(name), name))


def test_a_listing_of_nothing_makes_no_view() -> None:
    with Staging() as staging:
        assert staging.stage("listing", iter([])) == 0


def test_sorting_leaves_no_scratch_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Staging() as staging:
        staging.stage("listing", iter([manifest(["a", "b"])]))
        [table] = staging.tables("from listing order by hash")
        assert np.all(np.diff(table["hash"].to_numpy()) > 0)
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
