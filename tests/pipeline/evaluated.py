"""A made run with an evaluation beside it, without Ray: what comparisons read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from pipeline.evaluator import part_name
from pipeline.partial import score_rows
from pipeline.run import Run, parquet_bytes
from pipeline.truth_table import TRUTH_SCHEMA
from tests.pipeline.made import truth_row
from tests.pipeline.made_run import Predicted, make_run, shard_row


def truth_table(truth: Mapping[str, Predicted]) -> pa.Table:
    rows = [
        {**truth_row(name, segment_map, segments), "area_mismatches": 0}
        for name, (segment_map, segments) in truth.items()
    ]
    return pa.Table.from_pylist(rows, schema=TRUTH_SCHEMA)


def evaluate(
    run: Run, truth: Mapping[str, Predicted], *, number: int = 1, name: str = "gt"
) -> None:
    """Write the per-image rows and a short pq.json, as `evaluate` would."""
    folder = f"evaluation/{number:04d}/{name}"
    for shard in run.snapshot(number).shards:
        rows = run.read_shard(shard.path)
        _, table = score_rows(rows, truth_table(truth), run.info.categories.ids, shard.path)
        run.storage.write(f"{folder}/per_image/{part_name(shard.path)}", parquet_bytes(table))
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
