"""The report of a made run of 1,000,000 evaluated images: seconds, memory, bytes; and lookups.

    python benchmarks/report.py [--images 1000000] [--folder /tmp/panoptic-report] [--keep]

The claims: a report on 1,000,000 rows within 60 s and 2 GB, at most 15 MB, and `run[name]` by at
most 3 objects. The run is made as in benchmarks/evaluate.py; its per-image rows are those of the
600 made pairs that the shards draw from, scored once. There are no photos, so pictures are drawn
over grey. Memory is the resident set, shared memory included, sampled four times a second.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.evaluate import DISTINCT, make, renamed
from benchmarks.measure import print_result, run_watched
from benchmarks.pq import made_tables
from detr.categories import COCO_PANOPTIC
from pipeline.layout import part_name
from pipeline.panoptic.figures import per_class_table, results
from pipeline.panoptic.score import score_rows
from pipeline.run.folder import parquet_bytes
from pipeline.run.run import Run, open_run
from pipeline.sharding import WorkUnit
from pipeline.storage.storage import Storage

FOLDER = "evaluation/0001/made"
SECONDS, GIGABYTES, MEGABYTES, OBJECTS = 60.0, 2.0, 15.0, 3
LOOKUPS = 50


def make_evaluated(folder: Path, images: int) -> None:
    """A finished run of this many images, with its evaluation."""
    predictions, truth, _ = made_tables("640x480", DISTINCT, distinct=DISTINCT)
    partial, scored = score_rows(predictions, truth, COCO_PANOPTIC.ids)

    def evaluated(run: Run, unit: WorkUnit, chosen: pa.Array, manifest: pa.Table) -> None:
        rows = renamed(scored.take(chosen), manifest)
        run.storage.write(f"{FOLDER}/per_image/{part_name(unit.path)}", parquet_bytes(rows))

    run = make(folder, images, predictions, truth, evaluated)
    first = run.read_unit(next(run.generation(1).units()))
    lowest = renamed(scored.slice(0, first.num_rows), first.slice(0, scored.num_rows)).sort_by("pq")
    facts = {**partial.facts(), "worst": lowest.select(["file_name", "pq"])[:50].to_pylist()}
    facts["images"]["scored"] = images
    result = {
        "run": run.storage.url,
        "snapshot": 1,
        "complete": True,
        "shards": len(run.snapshot().shards),
        "name": "made",
        "truth": "made",
        **results(partial.sums, COCO_PANOPTIC),
        **facts,
    }
    classes = per_class_table(result, COCO_PANOPTIC)
    run.storage.write(f"{FOLDER}/per_class.parquet", parquet_bytes(classes))
    run.storage.write(f"{FOLDER}/pq.json", json.dumps(result).encode())


def report(folder: Path, output: Path) -> dict[str, Any]:
    """`panoptic report` in a process of its own: seconds, peak memory, bytes."""
    _, seconds, samples = run_watched(["report", str(folder), "--output", str(output)])
    return {
        "seconds": round(seconds, 1),
        "peak_gb": round(max(sum(sizes.values()) for sizes in samples), 3),
        "megabytes": round(output.stat().st_size / 1e6, 2),
    }


def lookups(folder: Path, images: int) -> dict[str, Any]:
    """Milliseconds and objects of `run[name]`, with the page cache warm."""
    read: list[str] = []
    for name in ("read", "open"):

        def counted(self: Storage, path: str, own: Any = getattr(Storage, name)) -> Any:
            read.append(path)
            return own(self, path)

        setattr(Storage, name, counted)
    run = open_run(str(folder))
    times, objects = [], []
    for k in range(LOOKUPS):
        read.clear()
        started = time.perf_counter()
        assert run[f"{k * images // LOOKUPS:012d}.jpg"].ok
        times.append(1000 * (time.perf_counter() - started))
        objects.append(len(read))
    return {"lookup_ms": round(statistics.median(times), 1), "lookup_objects": max(objects)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/panoptic-report"))
    parser.add_argument("--keep", action="store_true", help="keep the made run for the next call")
    options = parser.parse_args()
    folder = options.folder / str(options.images)
    if not (folder / FOLDER / "pq.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"making a run of {options.images:,} images in {folder}", file=sys.stderr)
        make_evaluated(folder, options.images)
    found = {
        "images": options.images,
        **report(folder, options.folder / "report.html"),
        **lookups(folder, options.images),
    }
    if not options.keep:
        shutil.rmtree(options.folder)
    print("    images  seconds  peak GB  MB   lookup ms  objects")
    print(
        f"{found['images']:10,} {found['seconds']:8.1f} {found['peak_gb']:8.2f} "
        f"{found['megabytes']:4.1f} {found['lookup_ms']:10.1f} {found['lookup_objects']:8}"
    )
    print(f"limits     {SECONDS:8.0f} {GIGABYTES:8.0f} {MEGABYTES:4.0f} {'':>10} {OBJECTS:8}")
    print_result("report", **found)


if __name__ == "__main__":
    main()
