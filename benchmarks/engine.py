"""What the engine costs without a model: rows a second, and the driver's memory.

    python benchmarks/engine.py                        # all four; tiny shards take > 20 minutes
    python benchmarks/engine.py --case 1M_of_2000      # one of them

The claims, on 2 cores: a million rows at 2,000 a shard pass at 15,000 rows/s or more once the first
shard is written, at 512 a shard at 5,000; the driver's peak memory at a million rows is within
100 MB of that at 100,000. Planning, work units, progress actor, row building, sink, footers,
snapshot and publishing are the job's own; only the GETs and the model are left out. Each case runs
in a process of its own, on a Ray of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.actor import ActorHandle

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.made_rows import made_info, made_rows
from benchmarks.measure import peak_mb, print_result
from pipeline.cluster.capacity import capacity
from pipeline.cluster.placement import place
from pipeline.cluster.progress_actor import begin, check_budget, start_progress_actor
from pipeline.cluster.ray_session import join_ray
from pipeline.planning.generations import plan_first
from pipeline.planning.scratch_db import Staging
from pipeline.run.publish import finish_generation
from pipeline.run.run import Run, create_run
from pipeline.run.shard_format import Provenance
from pipeline.segmentation.batches import Decoding
from pipeline.segmentation.fetch import FETCHED_FIELDS, UNIT_FIELDS
from pipeline.segmentation.graph import (
    Computation,
    Stages,
    compute_shards,
    configure_ray_data,
)
from pipeline.segmentation.model_spec import ModelSpec
from pipeline.segmentation.segmenter import error_row, shard_table
from pipeline.sharding import WorkUnit, unit_key
from pipeline.storage.storage import Storage

CASES = {
    "100k_of_2000": (100_000, 2_000),
    "1M_of_2000": (1_000_000, 2_000),
    "1M_of_512": (1_000_000, 512),
    "20000_shards": (100_000, 5),
}
LIMITS = {"1M_of_2000": 15_000, "1M_of_512": 5_000}  # rows a second, at least
MEMORY_LIMIT_MB = 100


def null_fetch(
    units: pa.Table, *, run: Run, source_options: Mapping[str, str], progress_actor: ActorHandle
) -> pa.Table:
    """`pipeline.segmentation.fetch.fetch_units` without a GET."""
    tables = []
    for row in units.to_pylist():
        unit = WorkUnit(**row)
        begin(progress_actor, "fetching", unit.key)
        table = run.read_unit(unit)
        for name in UNIT_FIELDS:
            column = pa.repeat(pa.scalar(getattr(unit, name), pa.int32()), table.num_rows)
            table = table.append_column(name, column)
        for field in FETCHED_FIELDS:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
        check_budget(progress_actor.fetched.remote(unit.key, unit.images, {}))
        tables.append(table)
    return pa.concat_tables(tables)


class NullSegmenter:
    """`pipeline.segmentation.segmenter.Segmenter` without decoding and without a model."""

    def __init__(self, spec: ModelSpec, *, progress_actor: ActorHandle, **settings: Any) -> None:
        self.progress_actor = progress_actor

    def __call__(self, unit: pa.Table) -> pa.Table:
        key = unit_key(unit["generation"][0].as_py(), unit["shard"][0].as_py())
        begin(self.progress_actor, "segmenting", key)
        empty = {**error_row(None, None), "status": "ok", "height": 480, "width": 640}
        table = shard_table(unit, [dict(empty) for _ in range(unit.num_rows)], "null")
        self.progress_actor.segmented.remote(key, {"total": 0.0})
        return table


def run_case(rows: int, per_shard: int) -> dict[str, float]:
    """Plan, run and publish; returns seconds, rows a second and the driver's peak memory."""
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        out = f"{folder}/run"
        run = create_run(Storage(out), made_info())
        started = time.monotonic()
        with Staging() as staging:
            images = staging.stage("listing", made_rows(rows))
            generation = plan_first(run, staging, images, 1_000 * images, per_shard)
        planned = time.monotonic()
        join_ray("local")
        configure_ray_data(verbose=False)
        units = list(generation.units())
        progress_actor = start_progress_actor(rows, 1.0, out)
        first: list[tuple[float, int]] = []
        stop = threading.Event()

        def watch() -> None:
            while not first and not stop.wait(0.05):
                done = ray.get(progress_actor.progress.remote()).done  # type: ignore[attr-defined]
                if done:
                    first.append((time.monotonic(), done))

        watcher = threading.Thread(target=watch)
        watcher.start()
        compute_shards(
            run,
            generation,
            units,
            computation=Computation(
                ModelSpec("null", "none", "fp32", 0.5, 1, "cpu"),
                Decoding(exif=True, max_pixels=0, method="pil"),
                place(capacity(None), device="cpu", actors=(1, 1), units=len(units), images=rows),
            ),
            provenance=Provenance("null", "", "cpu"),
            progress_actor=progress_actor,
            stages=Stages(null_fetch, NullSegmenter),
        )
        ended = time.monotonic()
        stop.set()
        watcher.join()
        snapshot = finish_generation(run, generation, run.present(1), 1.0)
        published = time.monotonic()
        assert snapshot.rows == rows
        ray.shutdown()
    [(begun, done)] = first
    return {
        "rows": rows,
        "shards": len(units),
        "plan_seconds": round(planned - started, 2),
        "seconds_to_first_row": round(begun - planned, 2),
        "rows_per_second": round((rows - done) / (ended - begun), 1),
        "shards_per_second": round((len(units) - 1) / (ended - begun), 1),
        "publish_seconds": round(published - ended, 2),
        "driver_peak_mb": round(peak_mb(), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="repeatable; default all")
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_case(*arguments.one)))
        return
    results: dict[str, dict[str, float]] = {}
    print(f"{'case':16}{'shards':>8}{'rows/s':>10}{'limit':>8}{'shards/s':>10}{'driver MB':>11}")
    for name in arguments.case or CASES:
        command = [sys.executable, __file__, "--one", *map(str, CASES[name])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = results[name] = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{name:16}{found['shards']:>8}{found['rows_per_second']:>10.0f}"
            f"{LIMITS.get(name, 0):>8}{found['shards_per_second']:>10.1f}"
            f"{found['driver_peak_mb']:>11.0f}",
            flush=True,
        )
    small, large = (results.get(name) for name in ("100k_of_2000", "1M_of_2000"))
    growth = large["driver_peak_mb"] - small["driver_peak_mb"] if small and large else None
    judged = LIMITS.keys() & results.keys()
    holds = all(results[name]["rows_per_second"] >= LIMITS[name] for name in judged)
    print_result(
        "engine",
        cases=results,
        limits_rows_per_second=LIMITS,
        driver_growth_mb=growth and round(growth, 1),
        limit_growth_mb=MEMORY_LIMIT_MB,
        holds=holds and (growth is None or growth <= MEMORY_LIMIT_MB),
    )


if __name__ == "__main__":
    main()
