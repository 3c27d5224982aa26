"""Every query of docs/evaluation.md, run on the rows of a real evaluation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detr.categories import Categories
from pipeline.evaluation.truth_png import row_of, table_of, write_png
from pipeline.panoptic.figures import results
from pipeline.panoptic.pq import SIZES, Sums
from pipeline.panoptic.score import Partial, score_rows
from pipeline.schema import SHARD_SCHEMA
from pipeline.train.synthetic import SCENE_CATEGORIES
from tests.factories import damaged, made_scenes, shard_row

DOCS = Path(__file__).parents[3] / "docs" / "evaluation.md"
QUERIES = re.findall(r"```sql\n(.*?)```", DOCS.read_text(), re.DOTALL)
TRUTH = made_scenes(10)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """(folder of per_image/, the figures): two shards of five images, one of them invalid."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "per_image").mkdir()
    total = Partial(Sums.zero(len(SCENE_CATEGORIES)))
    schema = SHARD_SCHEMA.append(pa.field("camera", pa.string()))
    names = list(TRUTH)
    for shard, chosen in enumerate((names[:5], names[5:])):
        rows = [
            {
                **shard_row(name, damaged(TRUTH[name], seed)),
                "camera": "left" if seed % 2 else "right",
            }
            for seed, name in enumerate(chosen)
        ]
        if shard == 1:
            rows[0]["width"] -= 1
        truth = table_of(truth_row(name) for name in chosen)
        table = pa.Table.from_pylist(rows, schema=schema)
        partial, per_image = score_rows(table, truth, SCENE_CATEGORIES.ids, f"shard-{shard}")
        total.add(partial)
        pq.write_table(per_image, folder / "per_image" / f"{shard}.parquet")
    return folder, results(total.sums, SCENE_CATEGORIES)


def truth_row(name: str) -> dict[str, Any]:
    segment_map, segments = TRUTH[name]
    annotation = {
        "hash": 0,
        "file_name": name,
        "image_id": name,
        "png": name,
        "segment_id": [s["id"] for s in segments],
        "category_id": [s["category_id"] for s in segments],
        "iscrowd": [False] * len(segments),
        "area": [None] * len(segments),
    }
    return row_of(annotation, write_png(segment_map), truth=True)


def rows_of(query: str, folder: Path) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:  # with the view that `panoptic sql` makes of an evaluation
        connection.execute(f"create view per_image as from '{folder}/per_image/*.parquet'")
        return connection.execute(query).fetchall()


@pytest.mark.parametrize("number", range(len(QUERIES)))
def test_every_query_runs(number: int, evaluation: tuple[Path, dict[str, Any]]) -> None:
    assert rows_of(QUERIES[number], evaluation[0])


def test_the_rows_give_pq_of_each_class(evaluation: tuple[Path, dict[str, Any]]) -> None:
    folder, result = evaluation
    live = {
        int(key): entry["pq"]
        for key, entry in result["per_class"].items()
        if entry["tp"] + entry["fp"] + entry["fn"]
    }
    assert dict(rows_of(QUERIES[0], folder)) == pytest.approx(live)


def test_the_rows_give_pq_of_each_size(evaluation: tuple[Path, dict[str, Any]]) -> None:
    folder, result = evaluation
    found = {size: (pq, classes) for size, pq, classes in rows_of(QUERIES[1], folder)}
    for size in SIZES:
        entry = result["sizes"][size]["All"]
        if entry["n"]:
            assert found[size] == (pytest.approx(entry["pq"]), entry["n"])


def test_the_rows_give_the_confusion_and_the_invalid(
    evaluation: tuple[Path, dict[str, Any]],
) -> None:
    folder, result = evaluation
    expected = {(c["truth"], c["prediction"], c["count"]) for c in result["confusion"]}
    found = set(rows_of(QUERIES[4], folder))
    assert found
    assert found <= expected
    assert len(found) == min(20, len(expected))
    [(name, reason)] = rows_of(QUERIES[5], folder)
    assert name == list(TRUTH)[5]
    assert reason.startswith("the prediction is ")


def test_a_run_without_any_class_is_said_so() -> None:
    empty = Categories.from_json([{"id": 1, "name": "x", "isthing": 1}])
    assert results(Sums.zero(1), empty)["All"] == {"pq": None, "sq": None, "rq": None, "n": 0}
