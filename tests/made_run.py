"""A finished run folder made by hand, without Ray or a model: what every reader is tested on.

run = make_run(folder, [MadeImage("a.png", uri, panoptic), MadeImage("b.jpg", uri, "empty")])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from detr.categories import COCO_PANOPTIC, Categories
from detr.panoptic import Panoptic
from pipeline.panoptic import rle
from pipeline.run.folder import RunInfo, ShardEntry, parquet_bytes
from pipeline.run.run import Run, create_run
from pipeline.schema import SCHEMA_VERSION, SHARD_SCHEMA
from pipeline.sharding import Generation, name_hash, shard_of
from pipeline.storage.storage import Storage


@dataclass(frozen=True)
class MadeImage:
    """One row: its segments, or the code of the error that stopped it."""

    file_name: str
    uri: str
    result: Panoptic | str


def make_run(
    folder: Path,
    images: Sequence[MadeImage],
    *,
    categories: Categories = COCO_PANOPTIC,
    shards: int = 2,
    config: dict[str, Any] | None = None,
) -> Run:
    """A run of one generation, published; the manifest's parts are left out."""
    info = RunInfo(
        schema_version=SCHEMA_VERSION,
        source={"source": str(folder)},
        limit=None,
        weights="made",
        weights_sha256="0" * 64,
        fingerprint="made",
        fingerprint_fields={},
        category_list=categories.to_json(),
        device="cpu",
        code_version="test",
        created="2026-01-01T00:00:00+00:00",
        config=config or {},
    )
    run = create_run(Storage(folder), info)
    add_generation(run, images, number=1, shards=shards)
    return run


def add_generation(run: Run, images: Sequence[MadeImage], *, number: int, shards: int) -> None:
    """Write the images' shards, and publish them beside those of the snapshot before."""
    owner = [shard_of(name_hash(image.file_name), shards) for image in images]
    generation = Generation(
        number=number,
        reason="first" if number == 1 else "refresh",
        rows=tuple(owner.count(shard) for shard in range(shards)),
        bytes=0,
    )
    run.write_generation(generation)
    entries = list(run.snapshot(number - 1).shards) if number > 1 else []
    for unit in generation.units():
        members = [i for i, shard in zip(images, owner, strict=True) if shard == unit.shard]
        members.sort(key=lambda image: name_hash(image.file_name))
        rows = [row_of(image, number) for image in members]
        data = parquet_bytes(pa.Table.from_pylist(rows, schema=SHARD_SCHEMA))
        run.storage.write(unit.path, data)
        ok = sum(row["status"] == "ok" for row in rows)
        entries.append(ShardEntry(unit.path, len(rows), ok, len(rows) - ok, len(data)))
    run.write_snapshot(number, entries)
    run.publish(number)
    run.mark_success(True)


def row_of(image: MadeImage, generation: int = 1) -> dict[str, Any]:
    """One row of a shard as a dict."""
    row: dict[str, Any] = {
        "file_name": image.file_name,
        "uri": image.uri,
        "etag": None,
        "status": "ok",
        "attempts": 1,
        "code_version": "test",
        "generation": generation,
        **{name: [] for name in _LISTS},
    }
    if isinstance(image.result, str):
        return {**row, "status": "error", "error_code": image.result, "error_message": "made"}
    height, width = image.result.segment_map.shape
    segments = image.result.segments
    encoded = rle.encode(image.result.segment_map, [segment.id for segment in segments])
    return {
        **row,
        "height": height,
        "width": width,
        "segment_id": [segment.id for segment in segments],
        "category_id": [segment.category_id for segment in segments],
        "isthing": [segment.isthing for segment in segments],
        "score": [segment.score for segment in segments],
        "area": encoded.area.tolist(),
        "bbox": encoded.bbox.tolist(),
        "counts": encoded.counts,
    }


_LISTS = ("segment_id", "category_id", "isthing", "score", "area", "bbox", "counts")
