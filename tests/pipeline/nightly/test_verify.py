"""`verify` finds whatever breaks the promise of one row an image."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.nightly.verify import verify
from pipeline.run.run import open_run
from pipeline.sharding import name_hash
from tests.factories import made_scenes, make_run, shard_row


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "run"
    rows = {name: shard_row(name, predicted) for name, predicted in made_scenes(12).items()}
    rows["bad.jpg"] = shard_row("bad.jpg", "corrupt")
    make_run(folder, rows)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "segments").rglob("*.parquet"))


def edit(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Rewrite a shard's rows under its old metadata."""
    table = pq.read_table(path)
    metadata = table.schema.metadata
    pq.write_table(change(table).replace_schema_metadata(metadata), path)


def test_a_finished_run_holds_and_its_counts_are_those_of_its_files(finished: Path) -> None:
    result = verify(open_run(str(finished)))
    rows = sum(pq.read_table(path).num_rows for path in shards(finished))
    assert (result.images, result.rows, result.ok, result.error) == (13, rows, 12, 1)
    assert rows == 13
    assert result.holds, result.examples


def test_a_row_too_few_is_named(folder: Path) -> None:
    gone = pq.read_table(shards(folder)[0])["file_name"][0].as_py()
    edit(shards(folder)[0], lambda table: table.slice(1))
    result = verify(open_run(str(folder)))
    assert result.findings["missing"] == 1
    assert any(gone in example for example in result.examples)


def test_a_row_that_stands_twice_is_named_with_both_shards(folder: Path) -> None:
    first, second = shards(folder)[:2]
    extra = pq.read_table(first).slice(0, 1)
    edit(second, lambda table: pa.concat_tables([table, extra]))
    result = verify(open_run(str(folder)))
    assert result.findings["twice"] == 1
    [example] = [text for text in result.examples if text.startswith("twice")]
    assert first.name in example
    assert second.name in example


def test_a_row_in_place_of_another_is_found_though_every_count_is_right(folder: Path) -> None:
    def swap(table: pa.Table) -> pa.Table:
        names = table["file_name"].to_pylist()
        names[0] = "stranger.jpg"
        return table.set_column(0, table.schema.field(0), pa.array(names))

    edit(shards(folder)[0], swap)
    result = verify(open_run(str(folder)))
    assert result.findings["missing"] == result.findings["not in the manifest"] == 1


def test_a_row_of_another_object_is_found(folder: Path) -> None:
    def replace(table: pa.Table) -> pa.Table:
        column = pa.array(["elsewhere/x.jpg"] * table.num_rows)
        return table.set_column(1, table.schema.field(1), column)

    edit(shards(folder)[0], replace)
    assert verify(open_run(str(folder))).findings["another image"] > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.sort_by([("file_name", "descending")]), "not sorted by hash"),
        (
            lambda table: table.set_column(
                3, table.schema.field(3), pa.array(["error"] * table.num_rows)
            ),
            "status and error_code disagree",
        ),
        (lambda table: table.replace_schema_metadata(None), "fingerprint"),
    ],
)
def test_a_shard_that_contradicts_itself_is_named(
    folder: Path, change: Callable[[pa.Table], pa.Table], words: str
) -> None:
    path = shards(folder)[0]
    table = pq.read_table(path)
    assert table["file_name"].to_pylist() == sorted(
        table["file_name"].to_pylist(), key=name_hash
    )  # a shard of several rows whose names are in another order than their hashes
    pq.write_table(change(table), path)
    result = verify(open_run(str(folder)))
    assert any(words in example and path.name in example for example in result.examples)


def test_a_missing_and_a_half_shard_are_named(folder: Path) -> None:
    first, second = shards(folder)[:2]
    lost = pq.read_table(first).num_rows + pq.read_table(second).num_rows
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    result = verify(open_run(str(folder)))
    assert result.findings["broken shard"] == 2
    assert result.findings["missing"] == lost
