"""The facts of a report, from a run folder: counts, errors, contents, speed, quality.

Facts that need rows are taken from a sample of at most SHARDS_READ shards, and carry a text that
says so; each shard is a uniform random sample of the images. Sums in the run folder (snapshot,
`pq.json`) are exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detr.categories import Categories, Category
from pipeline.amounts import counted
from pipeline.evaluation.category_map import CategoryMap
from pipeline.panoptic.pq import class_positions
from pipeline.report.sql import choose_evaluation
from pipeline.run.run import Run
from pipeline.run.snapshots import RunSnapshot
from pipeline.run.stats import read_stats
from pipeline.schema import SHARD_SCHEMA, TRANSIENT_CODES, list_values

SHARDS_READ: Final = 64  # some 30,000 images
PARTS_READ: Final = 256  # Parquet files of per-image rows, which are small
SAMPLES_A_CODE: Final = 5
BINS: Final = 20  # of the PQ distribution
THREADS: Final = 8

T = TypeVar("T")


@dataclass(frozen=True)
class ErrorCode:
    """Failed images of one error code. samples: (file name, message)."""

    code: str
    count: int
    transient: bool
    samples: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ClassFacts:
    """The predictions of one category in the sample, and its quality."""

    category: Category
    segments: int
    images: int  # with a segment of the category
    share: float  # of the pixels of an image, 0 to 1, as a mean over images
    score: float | None  # mean
    quality: Mapping[str, Any] | None  # `per_class` of pq.json; None without an evaluation

    @property
    def occurs(self) -> bool:
        line = self.quality
        return self.segments > 0 or (line is not None and any(line[k] for k in ("tp", "fp", "fn")))


@dataclass(frozen=True)
class Quality:
    """An evaluation: `pq.json`, and facts from its per-image rows."""

    name: str
    result: Mapping[str, Any]  # pq.json
    histogram: tuple[int, ...]  # images by PQ, BINS equal bins over 0..1
    images: int  # counted in the histogram
    sampled: str
    best: tuple[str, ...]  # file names, best first
    worst: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """All numbers and texts of a report. sampled: a text on the sample; empty if all was read."""

    run_snapshot: RunSnapshot
    images: int
    ok: int
    errors: tuple[ErrorCode, ...]
    errors_sampled: str
    segments: int  # in the sample
    sample: int  # ok images in the sample of contents
    sampled: str
    classes: tuple[ClassFacts, ...]
    calls: tuple[Mapping[str, Any], ...]  # stats of each `segment` call, oldest first
    names: tuple[str, ...]  # of the ok images in the sample
    quality: Quality | None = field(default=None)

    @property
    def run(self) -> Run:
        return self.run_snapshot.run

    @property
    def versions(self) -> tuple[str, ...]:
        """The library versions of the `segment` calls as texts, without repeats, oldest first."""
        sets = (call.get("versions", {}) for call in self.calls)
        texts = (", ".join(f"{name} {value}" for name, value in pairs.items()) for pairs in sets)
        return tuple(dict.fromkeys(text for text in texts if text))

    @property
    def failed(self) -> int:
        return self.images - self.ok


def gather(run_snapshot: RunSnapshot, evaluation: str | None = None) -> Facts:
    """The facts of one snapshot. evaluation: a name; None: the newest, if there is one.

    Raises UserError for an evaluation that doesn't exist or a shard that can't be read.
    """
    run, snapshot = run_snapshot.run, run_snapshot.snapshot
    result = None
    name = choose_evaluation(run, run_snapshot.number, evaluation)
    if name is not None:
        result = run_snapshot.result(name)
    errors, errors_sampled = _errors(run, [s for s in snapshot.shards if s.error], snapshot.error)
    paths = [shard.path for shard in snapshot.shards if shard.ok]
    table, sampled = _sample(run, paths, SHARDS_READ, _CONTENTS)
    mapping = CategoryMap.of_result(result)
    if mapping is not None:  # to the classes that were scored
        table = mapping.apply(table, "model")
    classes = _classes(run_snapshot.categories(name), table, result)
    stats = [entry for number in run.generations() for entry in read_stats(run, number)]
    ok = table.filter(pc.field("status") == "ok")
    return Facts(
        run_snapshot=run_snapshot,
        images=snapshot.rows,
        ok=snapshot.ok,
        errors=errors,
        errors_sampled=errors_sampled,
        segments=sum(entry.segments for entry in classes),
        sample=ok.num_rows,
        sampled=sampled,
        classes=classes,
        calls=tuple(stats),
        names=tuple(ok["file_name"].to_pylist()),
        quality=None if name is None or result is None else _quality(run_snapshot, name, result),
    )


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spaced, in order."""
    if len(items) <= count:
        return list(items)
    return [items[position * len(items) // count] for position in range(count)]


_CONTENTS: Final = ("file_name", "status", "height", "width", "category_id", "area", "score")


def _sample(
    run: Run, paths: Sequence[str], count: int, columns: Sequence[str]
) -> tuple[pa.Table, str]:
    """Rows of at most `count` shards, and a text on the sample; empty if all shards were read."""
    chosen = spread(paths, count)
    if not chosen:
        return SHARD_SCHEMA.empty_table().select(list(columns)), ""
    with ThreadPoolExecutor(THREADS) as pool:
        tables = list(pool.map(lambda path: run.read_shard(path, columns), chosen))
    rows = pa.concat_tables([t.replace_schema_metadata(None) for t in tables])
    if len(chosen) == len(paths):
        return rows, ""
    return (
        rows,
        f"a sample of {counted(rows.num_rows, 'image')} ({len(chosen):,} of {len(paths):,} shards)",
    )


def _errors(run: Run, shards: Sequence[Any], failed: int) -> tuple[tuple[ErrorCode, ...], str]:
    columns = ("file_name", "error_code", "error_message")
    table, sampled = _sample(run, [shard.path for shard in shards], SHARDS_READ, columns)
    table = table.filter(table["error_code"].is_valid())
    counts = Counter(table["error_code"].to_pylist())
    samples: dict[str, list[tuple[str, str]]] = {}
    for row in table.to_pylist():
        few = samples.setdefault(row["error_code"], [])
        if len(few) < SAMPLES_A_CODE:
            few.append((row["file_name"], row["error_message"] or ""))
    scale = failed / counts.total() if sampled and counts else 1.0
    codes = [
        ErrorCode(code, round(count * scale), code in TRANSIENT_CODES, tuple(samples[code]))
        for code, count in counts.most_common()
    ]
    return tuple(codes), sampled


def _classes(
    categories: Categories, table: pa.Table, result: Mapping[str, Any] | None
) -> tuple[ClassFacts, ...]:
    """The facts of each category, from shard rows and pq.json (`result`).

    Segments of other categories count for none.
    """
    ids = categories.ids
    lengths = table["category_id"].combine_chunks().value_lengths().fill_null(0).to_numpy()
    image = np.repeat(np.arange(table.num_rows), lengths)
    flat = {name: _flat(table, name) for name in ("category_id", "area", "score")}
    position = class_positions(flat["category_id"], ids)
    known = position >= 0
    position, image = position[known], image[known]
    flat = {name: values[known] for name, values in flat.items()}
    pixels = table["height"].fill_null(0).to_numpy().astype(np.float64)
    pixels = pixels * table["width"].fill_null(0).to_numpy()
    share = flat["area"] / np.maximum(pixels[image], 1)
    count = np.bincount(position, minlength=len(ids))
    pairs = np.unique(np.stack([position, image]), axis=1)[0] if len(position) else position
    images = np.bincount(pairs, minlength=len(ids))
    shares = np.bincount(position, share, minlength=len(ids)) / max(1, int((pixels > 0).sum()))
    scores = np.bincount(position, flat["score"], minlength=len(ids))
    quality = result["per_class"] if result is not None else {}
    return tuple(
        ClassFacts(
            category=category,
            segments=int(count[k]),
            images=int(images[k]),
            share=float(shares[k]),
            score=float(scores[k] / count[k]) if count[k] else None,
            quality=quality.get(str(category.id)),
        )
        for k, category in enumerate(categories)
    )


def _flat(table: pa.Table, name: str) -> Any:
    return list_values(table[name]).to_numpy(zero_copy_only=False)


def _quality(run_snapshot: RunSnapshot, name: str, result: Mapping[str, Any]) -> Quality:
    parts = run_snapshot.rows(name)
    columns = ("file_name", "status", "pq", "tp", "fp", "fn")
    table, sampled = _sample(run_snapshot.run, parts, PARTS_READ, columns)
    table = table.filter(pc.field("status") == "scored")
    table = table.filter(table["pq"].is_valid())
    pq = table["pq"].to_numpy()
    histogram, _ = np.histogram(pq, bins=BINS, range=(0.0, 1.0))
    # Many images with one segment have PQ 1: among equal PQs, more matches come first.
    best = table.sort_by([("pq", "descending"), ("tp", "descending"), ("file_name", "ascending")])
    lowest = table.sort_by([("pq", "ascending"), ("fn", "descending"), ("file_name", "ascending")])
    scored = set(lowest["file_name"].to_pylist()) if not sampled else None
    worst = [row["file_name"] for row in result.get("worst", [])]
    if scored is not None:  # `worst` of pq.json holds failed images, too, which have no picture
        worst = lowest["file_name"].slice(0, len(worst) or 50).to_pylist()
    return Quality(
        name=name,
        result=result,
        histogram=tuple(histogram.tolist()),
        images=table.num_rows,
        sampled=sampled,
        best=tuple(best["file_name"].slice(0, 50).to_pylist()),
        worst=tuple(worst),
    )
