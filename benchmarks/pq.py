"""PQ straight from Parquet shards, against hotcoco's RLE path and a plain PNG implementation.

    python benchmarks/pq.py [--images 256]

The claim: at most a quarter of the CPU time of hotcoco from RLE (Rust, PyPI; benchmark only:
`pip install hotcoco`), in one run on the same images, one thread each, ground truth prepared. Made
data like COCO's. Our time includes reading the shard's Parquet from memory; hotcoco's starts from
its loaded dataset. The floors: reading the Parquet alone, decoding the strings alone. Without
hotcoco the script says so and measures the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # hotcoco's threads: CPU time is compared, waits are not

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.made_maps import SIZES, made_pair, made_segments
from benchmarks.measure import cpu_ms, print_result
from detr.categories import COCO_PANOPTIC
from pipeline.evaluation.truth_png import row_of, table_of, write_png
from pipeline.panoptic import rle
from pipeline.panoptic.figures import results
from pipeline.panoptic.kernels import read_runs
from pipeline.panoptic.pq import Side, Sums, score
from pipeline.panoptic.score import score_rows
from pipeline.run.shard_format import Provenance, encode_shard
from pipeline.schema import SHARD_SCHEMA

DISTINCT = 256  # maps made; more images repeat them
TARGET = 4.0
SCORED = ["height", "width", "segment_id", "category_id", "counts"]  # what PQ needs of a shard


def made_tables(
    size: str, images: int, *, distinct: int = DISTINCT
) -> tuple[pa.Table, pa.Table, list[tuple[bytes, bytes]]]:
    """(shard rows, truth rows, (prediction, truth) PNGs of the distinct maps)."""
    pairs, pngs = [], []
    for seed in range(min(distinct, images)):
        maps = made_pair(seed, size)
        own = []
        for segment_map in maps[::-1]:
            segments = made_segments(seed, segment_map)
            data = write_png(segment_map)
            annotation = {
                "hash": 0,
                "file_name": "",
                "image_id": "",
                "png": "",
                "segment_id": [s["id"] for s in segments],
                "category_id": [s["category_id"] for s in segments],
                "iscrowd": [False] * len(segments),
                "area": [None] * len(segments),
            }
            own.append((row_of(annotation, data, truth=True), data))
        pairs.append((own[0][0], own[1][0]))
        pngs.append((own[0][1], own[1][1]))
    named = [
        tuple({**row, "file_name": f"{i:08d}.jpg"} for row in pairs[i % len(pairs)])
        for i in range(images)
    ]
    predictions = [shard_row(pair[0]) for pair in named]
    return (
        pa.Table.from_pylist(predictions, schema=SHARD_SCHEMA),
        table_of(pair[1] for pair in named),
        pngs,
    )


def shard_row(row: dict[str, Any]) -> dict[str, Any]:
    """A converted map as a segmenter's row."""
    segments = len(row["segment_id"])
    fields = {"uri": row["file_name"], "status": "ok", "attempts": 1}
    lists = {"isthing": [True] * segments, "score": [0.9] * segments}
    return {**row, **fields, **lists, "code_version": "made", "generation": 1}


def truth_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", compression_level=3)
    return sink.getvalue()


def read(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """With one thread, as a reader task has."""
    return pq.read_table(pa.BufferReader(data), columns=columns, use_threads=False)


def from_parquet(data: bytes, truth: Side) -> Sums:
    predictions = Side.from_rows(read(data, SCORED), COCO_PANOPTIC.ids)
    sums = Sums.zero(len(COCO_PANOPTIC), replicates=0)
    rows = np.arange(predictions.size.shape[0])
    seeds = rows.astype(np.uint64)
    score(predictions, truth, sums, prediction_rows=rows, truth_rows=rows, seeds=seeds)
    return sums


def decode_strings(side: Side, pixels: int) -> int:
    starts = np.empty(pixels, dtype=np.int32)
    stops = np.empty(pixels, dtype=np.int32)
    total = 0
    for a, b in zip(side.text_first[:-1].tolist(), side.text_first[1:].tolist(), strict=True):
        total += read_runs(side.text, a, b, pixels, starts, stops)[0]
    return total


def plain_png(prediction: bytes, truth: bytes) -> dict[tuple[int, int], int]:
    """What panopticapi does first for each image: two PNGs to a table of overlaps."""
    maps = []
    for data in (prediction, truth):
        rgb = np.asarray(Image.open(io.BytesIO(data)), dtype=np.uint32)
        maps.append(rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2])
    both = maps[1].astype(np.uint64) * (1 << 24) + maps[0].astype(np.uint64)
    pairs, counts = np.unique(both, return_counts=True)
    return {(int(p) >> 24, int(p) & 0xFFFFFF): int(c) for p, c in zip(pairs, counts, strict=True)}


def hotcoco_call(predictions: pa.Table, truth: pa.Table) -> Callable[[], Any] | None:
    """Scoring by hotcoco of the same rows as RLE annotations; None if it isn't installed."""
    try:
        from hotcoco import COCO, panoptic  # type: ignore[import-not-found]
    except ImportError:
        print("hotcoco is not installed: `pip install hotcoco` to compare with it")
        return None

    def dataset(table: pa.Table) -> Any:
        images, annotations = [], []
        for number, row in enumerate(table.to_pylist(), start=1):
            size = [row["height"], row["width"]]
            images.append({"id": number, "height": size[0], "width": size[1], "file_name": "x"})
            for category, counts, area, box in zip(
                row["category_id"], row["counts"], row["area"], row["bbox"], strict=True
            ):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": category,
                        "segmentation": {"size": size, "counts": counts},
                        "area": area,
                        "bbox": box,
                        "iscrowd": 0,
                        "score": 1.0,
                    }
                )
        categories = COCO_PANOPTIC.to_json()
        return COCO({"images": images, "annotations": annotations, "categories": categories})

    sides = dataset(truth), dataset(predictions)

    def call() -> Any:
        evaluation = panoptic.PanopticEval(*sides)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
        return evaluation.results()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=256)
    images: int = parser.parse_args().images
    result: dict[str, Any] = {"images": images}
    for size, (height, width) in SIZES.items():
        count = images if size == "640x480" else max(images // 8, 8)
        predictions, truth, pngs = made_tables(size, count)
        data = encode_shard(predictions, Provenance("made", "0" * 64, "cpu"))
        truth_data = truth_parquet(truth)
        truth_side = Side.from_rows(truth, COCO_PANOPTIC.ids)
        side = Side.from_rows(predictions, COCO_PANOPTIC.ids)
        zero = Sums.zero(len(COCO_PANOPTIC), replicates=0)
        rows = np.arange(count)
        seeds = rows.astype(np.uint64)
        calls: dict[str, Callable[[], Any]] = {
            "pq_from_parquet": partial(from_parquet, data, truth_side),
            "pq_kernel_only": lambda p=side, t=truth_side, z=zero, r=rows, s=seeds: score(
                p, t, z, prediction_rows=r, truth_rows=r, seeds=s
            ),
            "whole_reader_task": lambda d=data, t=truth_data: score_rows(
                read(d), read(t), COCO_PANOPTIC.ids
            ),
            "floor_parquet_read": partial(read, data, SCORED),
            "floor_string_decode": partial(decode_strings, side, height * width),
        }
        found = {name: cpu_ms(call) / count for name, call in calls.items()}
        found["plain_png"] = cpu_ms(lambda p=pngs: [plain_png(*pair) for pair in p[:4]]) / 4
        rival = hotcoco_call(predictions, truth)
        if rival is not None:
            theirs = rival()["All"]["pq"]
            ours = results(from_parquet(data, truth_side), COCO_PANOPTIC)["All"]["pq"]
            print(f"{size}: PQ {ours:.12f} ours, {theirs:.12f} hotcoco")
            found["hotcoco_from_rle"] = cpu_ms(rival, rounds=3) / count
        runs = len(rle.runs(made_pair(0, size)[0])[0])
        print(f"{size}: {count} images, {runs} runs in one; CPU ms an image, one thread")
        for name, value in found.items():
            print(f"  {name:22s} {value:9.4f}")
        if rival is not None:
            ratio = found["hotcoco_from_rle"] / found["pq_from_parquet"]
            print(f"  {ratio:.1f} x less than hotcoco; target {TARGET:.0f} x")
            found["times_less_than_hotcoco"] = ratio
        stored = len(data) / count
        png = float(np.mean([len(pair[0]) for pair in pngs]))
        print(f"  stored: {stored:.0f} B an image, PNG {png:.0f} B: {stored / png:.2f} x\n")
        found["parquet_bytes"], found["png_bytes"] = stored, png
        result[size] = {name: round(value, 5) for name, value in found.items()}
    print_result("pq", **result)


if __name__ == "__main__":
    main()
