"""A run folder and ground truth made from maps, as if a model had predicted them. For tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detr.categories import Categories
from pipeline.evaluation.truth_png import write_png
from pipeline.panoptic import rle
from pipeline.planning.generations import plan_first
from pipeline.planning.scratch_db import Staging
from pipeline.run.folder import RunInfo
from pipeline.run.publish import finish
from pipeline.run.run import Run, create_run
from pipeline.run.shard_format import Provenance, encode_shard, shard_schema
from pipeline.schema import MANIFEST_SCHEMA, SCHEMA_VERSION
from pipeline.sharding import name_hash
from pipeline.storage.storage import Storage
from pipeline.train.synthetic import SCENE_CATEGORIES, scene

Segments = list[dict[str, Any]]
Predicted = tuple[NDArray[Any], Segments]  # map and its segments: id, category_id


def made_scenes(count: int, *, first: int = 0) -> dict[str, Predicted]:
    """Truth of the made scenes by file name."""
    made = {f"{i:06d}.jpg": scene(7, i) for i in range(first, first + count)}
    return {name: (s.segment_map, s.segments) for name, s in made.items()}


def shard_row(name: str, predicted: Predicted | str) -> dict[str, Any]:
    """A row with these segments, or with this error code."""
    row: dict[str, Any] = {
        "file_name": name,
        "uri": f"/photos/{name}",
        "attempts": 1,
        "code_version": "test",
        "generation": 1,
        "status": "ok",
    }
    lists = ("segment_id", "category_id", "isthing", "score", "area", "bbox", "counts")
    if isinstance(predicted, str):
        message = "made to fail"
        failed = {"status": "error", "error_code": predicted, "error_message": message}
        return {**row, **failed, **{key: [] for key in lists}}
    segment_map, segments = predicted
    encoded = rle.encode(segment_map, [s["id"] for s in segments])
    return {
        **row,
        "height": segment_map.shape[0],
        "width": segment_map.shape[1],
        "segment_id": [s["id"] for s in segments],
        "category_id": [s["category_id"] for s in segments],
        "isthing": [True] * len(segments),
        "score": [0.9] * len(segments),
        "area": encoded.area.tolist(),
        "bbox": encoded.bbox.tolist(),
        "counts": encoded.counts,
    }


def make_run(
    folder: Path,
    rows: Mapping[str, dict[str, Any]],
    *,
    categories: Categories = SCENE_CATEGORIES,
    per_shard: int = 4,
    kept: tuple[pa.Field, ...] = (),
    shards: int | None = None,
) -> Run:
    """A finished run of these shard rows by file name; with `shards`, one that got so far only."""
    info = RunInfo(
        schema_version=SCHEMA_VERSION,
        source={"source": "/photos"},
        limit=None,
        weights="made",
        weights_sha256="0" * 64,
        fingerprint="f" * 64,
        fingerprint_fields={},
        category_list=categories.to_json(),
        device="cpu",
        code_version="test",
        created="2026-11-20T00:00:00Z",
        config={},
    )
    run = create_run(Storage(folder), info)
    listing = [
        {"hash": name_hash(n), "file_name": n, "uri": r["uri"], "size": 1, "attempts": 0}
        for n, r in rows.items()
    ]
    with Staging() as staging:
        tables = iter([pa.Table.from_pylist(listing, schema=MANIFEST_SCHEMA)])
        staging.stage("listing", tables)
        generation = plan_first(run, staging, len(rows), 0, per_shard)
    provenance = Provenance("f" * 64, "0" * 64, "cpu")
    for unit in list(generation.units())[:shards]:
        names = run.read_unit(unit)["file_name"].to_pylist()
        table = pa.Table.from_pylist([rows[name] for name in names], schema=shard_schema(kept))
        run.storage.write(unit.path, encode_shard(table, provenance))
    if shards is None:
        finish(run, generation, run.present(1), max_error_rate=1.0)
    return run


def write_coco(
    folder: Path,
    name: str,
    images: Mapping[str, Predicted],
    *,
    categories: Categories = SCENE_CATEGORIES,
    areas: bool = True,
) -> Path:
    """`folder`/name.json and its PNGs in `folder`/name. Image ids count from 1."""
    masks = folder / name
    masks.mkdir(parents=True)
    listed, annotations = [], []
    for number, (file_name, (segment_map, segments)) in enumerate(images.items(), start=1):
        png = f"{number}.png"
        (masks / png).write_bytes(write_png(segment_map))
        height, width = segment_map.shape
        listed.append({"id": number, "file_name": file_name, "height": height, "width": width})
        infos = [
            {"iscrowd": 0, **s, **({"area": int((segment_map == s["id"]).sum())} if areas else {})}
            for s in segments
        ]
        annotations.append({"image_id": number, "file_name": png, "segments_info": infos})
    path = folder / f"{name}.json"
    data = {"images": listed, "annotations": annotations, "categories": categories.to_json()}
    path.write_text(json.dumps(data))
    return path


def damaged(predicted: Predicted, seed: int) -> Predicted:
    """A prediction from a truth: blocks of void, one class wrong here and there."""
    rng = np.random.default_rng(seed)
    segment_map = predicted[0].copy()
    for _ in range(6):
        y, x = rng.integers(0, 120, 2)
        segment_map[y : y + 40, x : x + 40] = 0
    here = set(np.unique(segment_map).tolist())
    ids = SCENE_CATEGORIES.ids
    segments = [
        {
            "id": s["id"],
            "category_id": int(rng.choice(ids)) if rng.random() < 0.2 else s["category_id"],
        }
        for s in predicted[1]
        if s["id"] in here
    ]
    return segment_map, segments
