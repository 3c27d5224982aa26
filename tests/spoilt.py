"""Predictions as a mediocre model gives them: truth, shifted, with segments lost and renamed; and
their evaluation, without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detr.categories import COCO_PANOPTIC
from pipeline.evaluation.evaluator import score_shard
from pipeline.evaluation.truth import prepare
from pipeline.evaluation.truth_png import read_png
from pipeline.panoptic.figures import per_class_table, results
from pipeline.panoptic.pq import Sums
from pipeline.panoptic.score import Partial
from pipeline.run.folder import parquet_bytes
from pipeline.run.run import Run
from tests.factories import ROWS, Predicted, make_run, shard_row

EVIL = "<script>alert(1)</script>.jpg"


def spoil(made: Predicted, rng: np.random.Generator, category_ids: list[int]) -> Predicted:
    """One image's truth with a tenth of its segments lost and as many renamed."""
    segment_map, segments = made
    moved = np.roll(segment_map, tuple(rng.integers(-6, 7, 2)), (0, 1))
    kept: list[dict[str, Any]] = []
    numbers = np.zeros_like(moved)
    for segment in segments:
        inside = moved == segment["id"]
        if rng.random() < 0.1 or not inside.any():
            continue
        category = segment["category_id"] if rng.random() < 0.9 else int(rng.choice(category_ids))
        kept.append({"id": len(kept) + 1, "category_id": category})
        numbers[inside] = len(kept)
    return numbers, kept


def coco_run(folder: Path, coco: Path, seed: int = 0) -> Run:
    """A run over the 128 photos of `coco`: spoilt truth where there is some, else no segments; the
    last photo failed, and so did one whose name is a script."""
    truth = json.loads((coco / "panoptic_val2017.json").read_text())
    segments = {Path(a["file_name"]).stem: a["segments_info"] for a in truth["annotations"]}
    rng = np.random.default_rng(seed)
    rows = {}
    photos = sorted((coco / "images").glob("*.jpg"))
    for photo in photos:
        predicted: Predicted | str = "truncated"
        if photo.stem in segments:
            png = coco / "panoptic_val2017" / f"{photo.stem}.png"
            made = (read_png(png.read_bytes()), segments[photo.stem])
            predicted = spoil(made, rng, list(COCO_PANOPTIC.ids))
        elif photo is not photos[-1]:
            width, height = Image.open(photo).size
            predicted = (np.zeros((height, width), np.uint8), [])
        rows[photo.name] = {**shard_row(photo.name, predicted), "uri": str(photo)}
    rows[EVIL] = {**shard_row(EVIL, "not_found"), "error_message": "<b>no such</b> object"}
    return make_run(folder, rows, categories=COCO_PANOPTIC, per_shard=32)


def evaluate(run: Run, truth: Path) -> dict[str, Any]:
    """Score every shard of snapshot 1 against a COCO panoptic JSON here, and write `pq.json`."""
    name = truth.stem
    folder = f"evaluation/0001/{name}"
    ready = prepare(run, f"{folder}/truth", str(truth), convert=lambda parts: (p() for p in parts))
    total = Partial(Sums.zero(len(ready.categories)))
    shards = run.snapshot().shards
    for shard in shards:
        total.add(score_shard(run, shard.path, ready, f"{folder}/per_image/{ROWS}"))
    result = {
        "run": run.storage.url,
        "snapshot": 1,
        "complete": True,
        "shards": len(shards),
        "name": name,
        "truth": str(truth),
        "truth_sha256": ready.sha256,
        "per_image": f"per_image/{ROWS}",
        "rows": run.snapshot().rows,
        "more_categories": [
            each for each in ready.category_list if each["id"] not in run.info.categories.ids
        ],
        **results(total.sums, ready.categories),
        **total.facts(),
    }
    classes = per_class_table(result, ready.categories)
    run.storage.write(f"{folder}/per_class.parquet", parquet_bytes(classes))
    run.storage.write(f"{folder}/pq.json", json.dumps(result).encode())
    return result
