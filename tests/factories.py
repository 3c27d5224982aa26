"""What several tests make: scenes, run folders, truth, evaluations, units, a folder that changes.

    rows = {name: shard_row(name, damaged(truth, 1)) for name, truth in made_scenes(12).items()}
    run = make_run(folder, rows)  # planned, written and published as a job does, without a model
    run = publish_run(folder, [MadeImage("a.png", uri, panoptic)], shards=3)  # shards and pointer
    run = evaluated_run(folder, predictions, truth)  # and what `evaluate` writes beside it
    rows = segmenter(weights)(unit_of({"a.jpg": jpeg(60, 80, seed=1)}))  # the model actor's

None of it starts Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

import detr
from detr.categories import COCO_PANOPTIC, Categories
from detr.panoptic import Panoptic, Segment
from pipeline.evaluation.truth_png import TRUTH_SCHEMA, write_png
from pipeline.layout import part_name
from pipeline.panoptic import rle
from pipeline.panoptic.figures import per_class_table, results
from pipeline.panoptic.pq import Scored, Side, Sums, score
from pipeline.panoptic.score import Partial, score_rows
from pipeline.planning.generations import Brakes, plan_first, plan_refresh, stage_listing
from pipeline.planning.scratch_db import Staging
from pipeline.planning.source import Source
from pipeline.run.folder import RunInfo, ShardEntry, parquet_bytes
from pipeline.run.publish import finish_generation
from pipeline.run.run import Run, create_run
from pipeline.run.shard_format import Provenance, encode_shard
from pipeline.schema import MANIFEST_SCHEMA, SCHEMA_VERSION, SEGMENT_COLUMNS, SHARD_SCHEMA
from pipeline.segmentation.batches import Decoding
from pipeline.segmentation.fetch import Body, _with_bodies
from pipeline.segmentation.model_spec import ModelSpec
from pipeline.segmentation.segmenter import Segmenter
from pipeline.sharding import Generation, WorkUnit, name_hash, shard_of
from pipeline.storage.storage import Storage
from pipeline.train.synthetic import SCENE_CATEGORIES, scene

Segments = list[dict[str, Any]]
Predicted = tuple[NDArray[Any], Segments]  # map and its segments: id, category_id
Scene = tuple[NDArray[Any], Segments, NDArray[Any], Segments]  # predicted, then true

# Maps of segments, and a run folder of them.


def made_scenes(count: int, *, first: int = 0) -> dict[str, Predicted]:
    """Truth of the made scenes by file name."""
    made = {f"{i:06d}.jpg": scene(7, i) for i in range(first, first + count)}
    return {name: (s.segment_map, s.segments) for name, s in made.items()}


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


def shard_row(
    name: str, result: Predicted | Panoptic | str, *, uri: str | None = None, generation: int = 1
) -> dict[str, Any]:
    """A row with these segments, or with this error code."""
    row: dict[str, Any] = {
        "file_name": name,
        "uri": uri or f"/photos/{name}",
        "attempts": 1,
        "code_version": "test",
        "generation": generation,
        "status": "ok",
    }
    if isinstance(result, str):
        failed = {"status": "error", "error_code": result, "error_message": "made"}
        return {**row, **failed, **{key: [] for key in SEGMENT_COLUMNS}}
    if isinstance(result, Panoptic):
        segment_map, segments = result.segment_map, result.segments
    else:
        segment_map = result[0]
        segments = [Segment(s["id"], s["category_id"], True, 0.9) for s in result[1]]
    encoded = rle.encode(segment_map, [segment.id for segment in segments])
    return {
        **row,
        "height": segment_map.shape[0],
        "width": segment_map.shape[1],
        "segment_id": [segment.id for segment in segments],
        "category_id": [segment.category_id for segment in segments],
        "isthing": [segment.isthing for segment in segments],
        "score": [segment.score for segment in segments],
        "area": encoded.area.tolist(),
        "bbox": encoded.bbox.tolist(),
        "counts": encoded.counts,
    }


def run_info(
    categories: Categories, *, source: str, config: dict[str, Any] | None = None
) -> RunInfo:
    return RunInfo(
        schema_version=SCHEMA_VERSION,
        source={"source": source},
        limit=None,
        weights="made",
        weights_sha256="0" * 64,
        fingerprint="f" * 64,
        fingerprint_fields={},
        category_list=categories.to_json(),
        device="cpu",
        code_version="test",
        created="2026-11-20T00:00:00Z",
        config=config or {},
    )


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
    run = create_run(Storage(folder), run_info(categories, source="/photos"))
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
        table = pa.Table.from_pylist(
            [rows[name] for name in names], schema=pa.schema([*SHARD_SCHEMA, *kept])
        )
        run.storage.write(unit.path, encode_shard(table, provenance))
    if shards is None:
        finish_generation(run, generation, run.present(1), max_error_rate=1.0)
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


# A run folder of shards and a pointer alone, for what only reads.


@dataclass(frozen=True)
class MadeImage:
    """One row: its segments, or the code of the error that stopped it."""

    file_name: str
    uri: str
    result: Panoptic | str


def publish_run(
    folder: Path,
    images: Sequence[MadeImage],
    *,
    categories: Categories = COCO_PANOPTIC,
    shards: int = 2,
    config: dict[str, Any] | None = None,
) -> Run:
    """A run of one generation of so many shards, published; the manifest's parts are left out."""
    info = run_info(categories, source=str(folder), config=config)
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
        rows = [shard_row(i.file_name, i.result, uri=i.uri, generation=number) for i in members]
        data = parquet_bytes(pa.Table.from_pylist(rows, schema=SHARD_SCHEMA))
        run.storage.write(unit.path, data)
        ok = sum(row["status"] == "ok" for row in rows)
        entries.append(ShardEntry(unit.path, len(rows), ok, len(rows) - ok, len(data)))
    run.write_snapshot(number, entries)
    run.publish(number)
    run.mark_success(True)


def made_panoptic(seed: int) -> Panoptic:
    """24 x 35 pixels of a person (1), of sky (2) and of nothing."""
    rng = np.random.default_rng(seed)
    segment_map = np.kron(rng.integers(0, 3, (4, 5)), np.ones((6, 7), int)).astype(np.uint8)
    segment_map[0, :3] = (0, 1, 2)
    return Panoptic(segment_map, (Segment(1, 1, True, 0.5), Segment(2, 187, False, 0.75)))


def named_images(names: Sequence[str], seed: int = 0) -> list[MadeImage]:
    return [
        MadeImage(name, f"/photos/{name}", made_panoptic(seed + i)) for i, name in enumerate(names)
    ]


# Sides of a score, and an evaluation beside its run.


def strings(segment_map: NDArray[Any], segments: Segments) -> tuple[list[str], list[int]]:
    """(counts, areas) of the segments, in order; absent ones get an empty mask."""
    height, width = segment_map.shape
    present = set(np.unique(segment_map).tolist())
    ids = [s["id"] for s in segments if s["id"] in present]
    encoded = rle.encode(segment_map, ids)
    found = dict(zip(ids, zip(encoded.counts, encoded.area.tolist(), strict=True), strict=True))
    pairs = [found.get(s["id"], (rle.empty_counts(height, width), 0)) for s in segments]
    return [p[0] for p in pairs], [p[1] for p in pairs]


def prediction_row(name: str, segment_map: NDArray[Any], segments: Segments) -> dict[str, Any]:
    counts, area = strings(segment_map, segments)
    return {
        "file_name": name,
        "height": segment_map.shape[0],
        "width": segment_map.shape[1],
        "segment_id": [s["id"] for s in segments],
        "category_id": [s["category_id"] for s in segments],
        "area": area,
        "counts": counts,
    }


def truth_row(name: str, segment_map: NDArray[Any], segments: Segments) -> dict[str, Any]:
    height, width = segment_map.shape
    counts, area = strings(segment_map, segments)
    listed = np.isin(segment_map, [0, *[s["id"] for s in segments]])
    unlisted = None if listed.all() else rle.encode((~listed).astype(np.uint8), [1]).counts[0]
    return {
        "hash": 0,
        "file_name": name,
        "image_id": name,
        "height": height,
        "width": width,
        "segment_id": [s["id"] for s in segments],
        "category_id": [s["category_id"] for s in segments],
        "iscrowd": [bool(s.get("iscrowd")) for s in segments],
        "area": area,
        "bbox": [[0, 0, 0, 0] for _ in segments],
        "counts": counts,
        "unlisted_counts": unlisted,
        "problem": None,
    }


PREDICTION_SCHEMA = pa.schema(
    [
        ("file_name", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("segment_id", pa.list_(pa.int32())),
        ("category_id", pa.list_(pa.int32())),
        ("area", pa.list_(pa.int64())),
        ("counts", pa.list_(pa.large_string())),
    ]
)


def sides(images: list[Scene], category_ids: list[int]) -> tuple[Side, Side]:
    predictions = [prediction_row(str(i), p, s) for i, (p, s, _, _) in enumerate(images)]
    truth = [truth_row(str(i), t, s) for i, (_, _, t, s) in enumerate(images)]
    return (
        Side.from_rows(pa.Table.from_pylist(predictions, PREDICTION_SCHEMA), category_ids),
        Side.from_rows(pa.Table.from_pylist(truth, TRUTH_SCHEMA), category_ids),
    )


def score_images(
    images: list[Scene], category_ids: list[int], rows: list[int] | None = None
) -> tuple[Sums, Scored]:
    """Score the images (or some rows of them), seeds being their positions."""
    predictions, truth = sides(images, category_ids)
    sums = Sums.zero(len(category_ids), replicates=8)
    chosen = np.asarray(range(len(images)) if rows is None else rows, dtype=np.int64)
    scored = score(
        predictions,
        truth,
        sums,
        prediction_rows=chosen,
        truth_rows=chosen,
        seeds=chosen.astype(np.uint64),
    )
    return sums, scored


def truth_table(truth: Mapping[str, Predicted]) -> pa.Table:
    rows = [
        {**truth_row(name, segment_map, segments), "area_mismatches": 0}
        for name, (segment_map, segments) in truth.items()
    ]
    return pa.Table.from_pylist(rows, schema=TRUTH_SCHEMA)


ROWS = "2026-11-27T010203.000000Z-00000000"  # a fresh folder of an evaluation


def truth_sha256(truth: Mapping[str, Predicted], categories: Categories) -> str:
    """Other truth, another hash."""
    digest = hashlib.sha256(json.dumps(categories.to_json()).encode())
    for name, (segment_map, segments) in sorted(truth.items()):
        digest.update(f"{name} {segments}".encode() + segment_map.tobytes())
    return digest.hexdigest()


def evaluate_rows(
    run: Run,
    truth: Mapping[str, Predicted],
    *,
    number: int = 1,
    name: str = "gt",
    categories: Categories | None = None,
) -> None:
    """Write the per-image rows, the classes and the figures of pq.json, as `evaluate` would.

    categories: of the truth, by default the run's.
    """
    categories = categories or run.info.categories
    folder = f"evaluation/{number:04d}/{name}"
    total = Partial(Sums.zero(len(categories)))
    for shard in run.snapshot(number).shards:
        rows = run.read_shard(shard.path)
        part, table = score_rows(rows, truth_table(truth), categories.ids, shard.path)
        total.add(part)
        place = f"{folder}/per_image/{ROWS}/{part_name(shard.path)}"
        run.storage.write(place, parquet_bytes(table))
    figures = results(total.sums, categories)
    classes = per_class_table(figures, categories)
    run.storage.write(f"{folder}/per_class.parquet", parquet_bytes(classes))
    shards = len(run.snapshot(number).shards)
    own = run.info.categories.ids
    facts = {
        "name": name,
        "truth": f"{name}.json",
        "truth_sha256": truth_sha256(truth, categories),
        "per_image": f"per_image/{ROWS}",
        "rows": run.snapshot(number).rows,
        "more_categories": [each for each in categories.to_json() if each["id"] not in own],
        "complete": True,
        "shards": shards,
    }
    written = {**facts, **figures, **total.facts(), "area_mismatches": 0}
    run.storage.write(f"{folder}/pq.json", json.dumps(written).encode())


def evaluated_run(
    folder: Path,
    predictions: Mapping[str, Predicted | str],
    truth: Mapping[str, Predicted],
    **settings: int,
) -> Run:
    rows = {name: shard_row(name, predicted) for name, predicted in predictions.items()}
    run = make_run(folder, rows, **settings)  # type: ignore[arg-type]
    evaluate_rows(run, truth)
    return run


POPULATION_CLASSES = 9
POPULATION_CATEGORIES = Categories.from_json(
    [{"id": i, "name": f"c{i}", "isthing": int(i < 6)} for i in range(1, POPULATION_CLASSES + 1)]
)


def made_population(count: int) -> list[Scene]:
    """Images of differing difficulty: segments missed, invented, renamed and gnawed at."""
    rng = np.random.default_rng(4)
    images: list[Scene] = []
    for _ in range(count):
        true = np.arange(8).reshape(2, 4).repeat(6, axis=0).repeat(6, axis=1)
        classes = rng.choice(
            np.arange(1, POPULATION_CLASSES + 1),
            8,
            p=rng.dirichlet(np.ones(POPULATION_CLASSES) * 5),
        )
        hard = rng.beta(2, 3)
        predicted = np.where(rng.random(true.shape) < hard * 0.7, 0, true + 1)
        renamed = np.where(
            rng.random(8) < hard * 0.4, rng.integers(1, POPULATION_CLASSES + 1, 8), classes
        )
        here = [i for i in range(8) if (predicted == i + 1).any()]
        segments = [{"id": i + 1, "category_id": int(renamed[i])} for i in here]
        true_segments = [{"id": i + 1, "category_id": int(classes[i])} for i in range(8)]
        images.append((predicted, segments, true + 1, true_segments))
    return images


# Units of the model actor.


def jpeg(height: int, width: int, seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3))
    image = Image.fromarray(noise.astype(np.uint8)).resize((width, height))
    out = BytesIO()
    image.save(out, "JPEG")
    return out.getvalue()


def unit_of(files: Mapping[str, bytes | None]) -> pa.Table:
    rows = [
        {"hash": name_hash(name), "file_name": name, "uri": name, "attempts": 0} for name in files
    ]
    bodies = [
        Body(data) if data is not None else Body(None, "not_found", "gone")
        for data in files.values()
    ]
    unit = WorkUnit(1, 4, len(rows), "part", 0, "path")
    return _with_bodies(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), unit, bodies)


def segmenter(
    weights: Path | str,
    *,
    model: str = "detr:load",
    batch_size: int | None = 4,
    method: Literal["pil", "draft", "nvjpeg"] = "pil",
) -> Segmenter:
    spec = ModelSpec(
        model=model,
        weights=str(weights),
        dtype="fp32",
        threshold=0.85,
        size_quantum=1,
        device="cpu",
    )
    decoding = Decoding(exif=True, max_pixels=10_000_000, method=method)
    return Segmenter(spec, decoding=decoding, batch_size=batch_size, threads=1, code_version="t")


def on_a_device_that_works_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detr.Predictor, "works_alone", True)


# A folder of files and the run over it.

LAX = Brakes(max_removed_rate=1.0)


class Night:
    """A folder of files and a run over it whose rows are made up."""

    def __init__(self, folder: Path) -> None:
        self.photos = folder / "photos"
        self.photos.mkdir()
        self.source = Source(url=str(self.photos))
        info = RunInfo(
            SCHEMA_VERSION, {}, None, "made", "0" * 64, "f", {}, [], "cpu", "test", "2026", {}
        )
        self.run: Run = create_run(Storage(folder / "run"), info)

    def put(self, name: str, content: str = "x") -> None:
        (self.photos / name).write_text(content)

    def first(self, outcomes: Mapping[str, str], limit: int | None = None) -> None:
        """List `limit` images (None: all), finish generation 1; outcomes: name -> error code."""
        with Staging() as staging:
            images, size = stage_listing(staging, self.source, limit, lambda count: None)
            self.finish(plan_first(self.run, staging, images, size, 4), outcomes)

    def refresh(self, brakes: Brakes = LAX) -> Generation | None:
        return plan_refresh(
            self.run,
            self.source,
            None,
            images_per_shard=4,
            brakes=brakes,
            progress=lambda count: None,
        )

    def finish(self, generation: Generation, outcomes: Mapping[str, str]) -> None:
        """Write the planned shards and rewrites, then the snapshot."""
        storage, provenance = self.run.storage, Provenance("f", "0" * 64, "cpu")
        for unit in generation.units():
            listed = self.run.read_unit(unit).to_pylist()
            rows = [self._row(own, outcomes) for own in listed]
            table = pa.Table.from_pylist(rows, schema=SHARD_SCHEMA)
            storage.write(unit.path, encode_shard(table, provenance))
        for rewrite in generation.rewrites:
            rows = self.run.read_shard(rewrite.source)
            gone = self.run.read_plan(generation.dropped_path)["file_name"].to_pylist()
            kept = rows.filter([name not in gone for name in rows["file_name"].to_pylist()])
            storage.write(rewrite.path, encode_shard(kept, provenance))
        sizes = {entry.path: entry.size for entry in storage.list("segments")}
        finish_generation(self.run, generation, sizes, 1.0)

    def _row(self, listed: dict[str, Any], outcomes: Mapping[str, str]) -> dict[str, Any]:
        name = listed["file_name"]
        failed = shard_row(name, outcomes.get(name, "empty"))
        if name not in outcomes:
            failed |= {"status": "ok", "error_code": None, "height": 1, "width": 1}
        return {**failed, "attempts": listed["attempts"] + 1}
