"""A made run with an evaluation beside it, without Ray: what comparisons read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from detr.categories import Categories
from pipeline.evaluation.truth_png import TRUTH_SCHEMA
from pipeline.panoptic.figures import per_class_table, results
from pipeline.panoptic.pq import Sums
from pipeline.panoptic.score import Partial, score_rows
from pipeline.run.folder import parquet_bytes
from pipeline.run.layout import part_name
from pipeline.run.run import Run
from tests.pipeline.made import truth_row
from tests.pipeline.made_run import Predicted, make_run, shard_row


def truth_table(truth: Mapping[str, Predicted]) -> pa.Table:
    rows = [
        {**truth_row(name, segment_map, segments), "area_mismatches": 0}
        for name, (segment_map, segments) in truth.items()
    ]
    return pa.Table.from_pylist(rows, schema=TRUTH_SCHEMA)


def evaluate(
    run: Run,
    truth: Mapping[str, Predicted],
    *,
    number: int = 1,
    name: str = "gt",
    categories: Categories | None = None,
) -> None:
    """Write the per-image rows, the classes and a short pq.json, as `evaluate` would.

    categories: of the truth, by default the run's.
    """
    categories = categories or run.info.categories
    folder = f"evaluation/{number:04d}/{name}"
    total = Partial(Sums.zero(len(categories)))
    for shard in run.snapshot(number).shards:
        rows = run.read_shard(shard.path)
        part, table = score_rows(rows, truth_table(truth), categories.ids, shard.path)
        total.add(part)
        run.storage.write(f"{folder}/per_image/{part_name(shard.path)}", parquet_bytes(table))
    classes = per_class_table(results(total.sums, categories), categories)
    run.storage.write(f"{folder}/per_class.parquet", parquet_bytes(classes))
    run.storage.write(f"{folder}/pq.json", json.dumps({"name": name}).encode())


def evaluated_run(
    folder: Path,
    predictions: Mapping[str, Predicted | str],
    truth: Mapping[str, Predicted],
    **settings: int,
) -> Run:
    rows = {name: shard_row(name, predicted) for name, predicted in predictions.items()}
    run = make_run(folder, rows, **settings)  # type: ignore[arg-type]
    evaluate(run, truth)
    return run
