"""A made run folder of 200,000 images evaluated on this machine: seconds, and memory by process.

    python benchmarks/evaluate.py [--images 20000 200000] [--folder /tmp/panoptic-bench] [--keep]

The claims: 200,000 images on 2 cores within 60 s, Ray's start included; no process above 1.5 GB;
peak memory at 200,000 images within 10 % of that at 20,000. The shards hold maps like COCO's (each
shard draws 512 of 600 made pairs, so that nothing compresses across rows); truth is converted
already, as it is after the first evaluation. Memory is the resident set of each process of the
tree, shared memory included, sampled four times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.made_rows import made_info
from benchmarks.measure import print_result, run_watched
from benchmarks.pq import made_tables
from detr.categories import COCO_PANOPTIC
from pipeline.evaluation.truth import TruthPart, save_truth, write_part
from pipeline.planning.generations import plan_first
from pipeline.planning.scratch_db import Staging
from pipeline.run.publish import finish_generation
from pipeline.run.run import Run, create_run
from pipeline.run.shard_format import Provenance, encode_shard
from pipeline.schema import MANIFEST_SCHEMA
from pipeline.sharding import WorkUnit, name_hash
from pipeline.storage.storage import Storage

PER_SHARD = 512
DISTINCT = 600
TRUTH = "evaluation/0001/made/truth"
SECONDS, GIGABYTES, GROWTH = 60.0, 1.5, 1.10


def make(
    folder: Path,
    images: int,
    predictions: pa.Table,
    truth: pa.Table,
    each: Callable[[Run, WorkUnit, pa.Array, pa.Table], None] = lambda *about: None,
) -> Run:
    """A finished run of this many images, with its truth converted.

    each: called for every shard with the pairs that its rows were drawn from, and its manifest.
    """
    run = create_run(Storage(folder), made_info(COCO_PANOPTIC.to_json()))
    names = [f"{i:012d}.jpg" for i in range(images)]
    columns = {
        "hash": pa.array([name_hash(name) for name in names], pa.uint64()),
        "file_name": names,
        "uri": names,
        "attempts": np.zeros(images, np.int32),
    }
    listing = pa.table(
        [
            pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(images, f.type)
            for f in MANIFEST_SCHEMA
        ],
        schema=MANIFEST_SCHEMA,
    )
    with Staging() as staging:
        staging.stage("listing", iter([listing]))
        generation = plan_first(run, staging, images, 0, PER_SHARD)

    def write(place: int, unit: WorkUnit) -> TruthPart:
        manifest = run.read_unit(unit)
        rows = manifest.num_rows
        rng = np.random.default_rng([0, place])
        chosen = pa.array(rng.permutation(max(DISTINCT, rows))[:rows] % DISTINCT)
        shard = renamed(predictions.take(chosen), manifest)
        # A weaker level than a job's: a million images are made in minutes, and read as quickly.
        data = encode_shard(shard, Provenance("made", "0" * 64, "cpu"), level=3)
        run.storage.write(unit.path, data)
        each(run, unit, chosen, manifest)
        truth_rows = renamed(truth.take(chosen), manifest)
        return write_part(truth_rows, run.storage, TRUTH, f"part-{place:05d}.parquet")

    units = list(generation.units())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(write, range(len(units)), units))
    save_truth(
        run.storage, TRUTH, key="", sha256="", categories=COCO_PANOPTIC, parts=parts, images=images
    )
    finish_generation(run, generation, run.present(1), max_error_rate=0.0)
    return run


def renamed(rows: pa.Table, manifest: pa.Table) -> pa.Table:
    """The rows under the manifest's names."""
    for name in ("file_name", "uri", "hash"):
        if name in rows.column_names:
            at = rows.column_names.index(name)
            rows = rows.set_column(at, rows.schema.field(name), manifest[name])
    return rows


def evaluate(folder: Path) -> dict[str, Any]:
    """`panoptic evaluate` in a process of its own: seconds and peak memory."""
    words = ["evaluate", str(folder), "--truth", str(folder / TRUTH), "--json"]
    printed, seconds, samples = run_watched(words)
    result = json.loads(printed)
    peaks: Counter[str] = Counter()
    for sizes in samples:
        peaks |= Counter(sizes)  # the larger of two
    largest = peaks.most_common(4)
    return {
        "images": result["images"]["scored"],
        "shards": result["shards"],
        "seconds": round(seconds, 1),
        "images_per_second": round(result["images"]["scored"] / seconds),
        "peak_gb": round(largest[0][1], 3),
        "largest_processes_gb": {name: round(size, 3) for name, size in largest},
        "pq": result["All"]["pq"],
        "pq_interval": result["All"]["pq_interval"],
    }


def make_missing(folder: Path, counts: list[int]) -> None:
    """Made runs of these many images under the folder, where an earlier call left none."""
    missing = [count for count in counts if not (folder / str(count) / "_SUCCESS").exists()]
    if not missing:
        return
    print(f"making {DISTINCT} pairs of maps", file=sys.stderr)
    predictions, truth, _ = made_tables("640x480", DISTINCT, distinct=DISTINCT)
    for count in missing:
        shutil.rmtree(folder / str(count), ignore_errors=True)
        print(f"making a run of {count:,} images in {folder}", file=sys.stderr)
        make(folder / str(count), count, predictions, truth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/panoptic-bench"))
    parser.add_argument("--keep", action="store_true", help="keep the made runs for the next call")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    make_missing(options.folder, options.images)
    found = [evaluate(options.folder / str(images)) for images in options.images]
    if not options.keep:
        shutil.rmtree(options.folder)
    print("   images  shards  seconds  images/s  largest process")
    for row in found:
        print(
            f"{row['images']:9,} {row['shards']:7,} {row['seconds']:8.1f} "
            f"{row['images_per_second']:9,}  {row['peak_gb']:.2f} GB"
        )
    growth = found[-1]["peak_gb"] / found[0]["peak_gb"]
    print(f"peak memory of the largest against the smallest: {growth:.2f} (limit {GROWTH})")
    print(f"limits: {SECONDS:.0f} s for 200,000 images, {GIGABYTES} GB a process")
    print_result("evaluate", runs=found, growth=round(growth, 3))


if __name__ == "__main__":
    main()
