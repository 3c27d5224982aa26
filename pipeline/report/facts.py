"""What a report says, gathered from a run folder: counts, errors, contents, speed, quality.

Small on any run: whatever would mean reading all rows is read from a sample of whole shards, spread
evenly, and the fact carries the words that say so (each shard is a uniform random sample of the
images, so a few of them are an honest one). What the run folder states as a sum (snapshot,
`pq.json`) is taken from there and is exact.
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
from pipeline.report.sql import choose_evaluation
from pipeline.run.run import Run
from pipeline.run.snapshots import Edition
from pipeline.run.stats import read_stats
from pipeline.schema import SHARD_SCHEMA, TRANSIENT_CODES

SHARDS_READ: Final = 64  # some 30,000 images
PARTS_READ: Final = 256  # of per-image rows, which are small
SAMPLES_A_CODE: Final = 5
BINS: Final = 20  # of the PQ distribution
THREADS: Final = 8

T = TypeVar("T")


@dataclass(frozen=True)
class ErrorCode:
    """Failed images of one code: how many, and a few by name with their message."""

    code: str
    count: int
    transient: bool
    samples: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ClassFacts:
    """One category: what was predicted (`segments`, `images`, `share` of all pixels in 0..1, mean
    `score`, in the sample) and its line of `pq.json`, None without an evaluation."""

    category: Category
    segments: int
    images: int
    share: float
    score: float | None
    quality: Mapping[str, Any] | None

    @property
    def occurs(self) -> bool:
        own = self.quality
        return self.segments > 0 or (own is not None and any(own[k] for k in ("tp", "fp", "fn")))


@dataclass(frozen=True)
class Quality:
    """An evaluation: `pq.json`, and what its per-image rows add."""

    name: str
    result: Mapping[str, Any]
    histogram: tuple[int, ...]  # images by PQ, BINS equal bins over 0..1
    images: int  # counted in the histogram
    sampled: str
    best: tuple[str, ...]  # file names, best first
    worst: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """Everything a report says in words and numbers."""

    edition: Edition
    images: int
    ok: int
    errors: tuple[ErrorCode, ...]
    errors_sampled: str
    segments: int  # in the sample
    sample: int  # ok images in the sample of contents
    sampled: str
    classes: tuple[ClassFacts, ...]
    calls: tuple[Mapping[str, Any], ...]  # stats of each `segment` call, oldest first
    names: tuple[str, ...]  # of some ok images, in no order that means anything
    quality: Quality | None = field(default=None)

    @property
    def run(self) -> Run:
        return self.edition.run

    @property
    def versions(self) -> tuple[str, ...]:
        """What the calls of `segment` ran on, each set of versions once, oldest first."""
        told = (call.get("versions", {}) for call in self.calls)
        texts = (", ".join(f"{name} {own}" for name, own in versions.items()) for versions in told)
        return tuple(dict.fromkeys(text for text in texts if text))

    @property
    def failed(self) -> int:
        return self.images - self.ok


def gather(edition: Edition, evaluation: str | None = None) -> Facts:
    """The facts of one snapshot, with the named (or newest) evaluation if there is one.

    Raises UserError for an evaluation that doesn't exist or a shard that can't be read.
    """
    run, snapshot = edition.run, edition.snapshot
    result = None
    name = choose_evaluation(run, edition.number, evaluation)
    if name is not None:
        result = edition.result(name)
    errors, errors_sampled = _errors(run, [s for s in snapshot.shards if s.error], snapshot.error)
    paths = [shard.path for shard in snapshot.shards if shard.ok]
    table, sampled = _sample(run, paths, SHARDS_READ, _CONTENTS)
    mapping = CategoryMap.of_result(result)
    if mapping is not None:  # by the classes that were scored
        table = mapping.apply(table, "model")
    classes = _classes(edition.categories(name), table, result)
    stats = [entry for number in run.generations() for entry in read_stats(run, number)]
    ok = table.filter(pc.field("status") == "ok")
    return Facts(
        edition=edition,
        images=snapshot.rows,
        ok=snapshot.ok,
        errors=errors,
        errors_sampled=errors_sampled,
        segments=sum(own.segments for own in classes),
        sample=ok.num_rows,
        sampled=sampled,
        classes=classes,
        calls=tuple(stats),
        names=tuple(ok["file_name"].to_pylist()),
        quality=None if name is None or result is None else _quality(edition, name, result),
    )


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spaced, in order."""
    if len(items) <= count:
        return list(items)
    return [items[place * len(items) // count] for place in range(count)]


_CONTENTS: Final = ("file_name", "status", "height", "width", "category_id", "area", "score")


def _sample(
    run: Run, paths: Sequence[str], count: int, columns: Sequence[str]
) -> tuple[pa.Table, str]:
    """Rows of some of these shards, and the words for how many; empty words for all of them."""
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
    found = [
        ErrorCode(code, round(count * scale), code in TRANSIENT_CODES, tuple(samples[code]))
        for code, count in counts.most_common()
    ]
    return tuple(found), sampled


def _classes(
    categories: Categories, table: pa.Table, result: Mapping[str, Any] | None
) -> tuple[ClassFacts, ...]:
    """Per category: segments, images, share of pixels and mean score of the rows."""
    ids = np.array(categories.ids)
    order = np.argsort(ids)
    lengths = table["category_id"].combine_chunks().value_lengths().fill_null(0).to_numpy()
    image = np.repeat(np.arange(table.num_rows), lengths)
    flat = {name: _flat(table, name) for name in ("category_id", "area", "score")}
    place = order[np.searchsorted(ids, flat["category_id"], sorter=order).clip(0, len(ids) - 1)]
    pixels = table["height"].fill_null(0).to_numpy().astype(np.float64)
    pixels = pixels * table["width"].fill_null(0).to_numpy()
    share = flat["area"] / np.maximum(pixels[image], 1)
    count = np.bincount(place, minlength=len(ids))
    pairs = np.unique(np.stack([place, image]), axis=1)[0] if len(place) else place
    images = np.bincount(pairs, minlength=len(ids))
    shares = np.bincount(place, share, minlength=len(ids)) / max(1, int((pixels > 0).sum()))
    scores = np.bincount(place, flat["score"], minlength=len(ids))
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
    return table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _quality(edition: Edition, name: str, result: Mapping[str, Any]) -> Quality:
    parts = edition.rows(name)
    columns = ("file_name", "status", "pq", "tp", "fp", "fn")
    table, sampled = _sample(edition.run, parts, PARTS_READ, columns)
    table = table.filter(pc.field("status") == "scored")
    table = table.filter(table["pq"].is_valid())
    pq = table["pq"].to_numpy()
    histogram, _ = np.histogram(pq, bins=BINS, range=(0.0, 1.0))
    # Many images of one segment are perfect: of equals, those with more matches come first.
    best = table.sort_by([("pq", "descending"), ("tp", "descending"), ("file_name", "ascending")])
    lowest = table.sort_by([("pq", "ascending"), ("fn", "descending"), ("file_name", "ascending")])
    scored = set(lowest["file_name"].to_pylist()) if not sampled else None
    worst = [row["file_name"] for row in result.get("worst", [])]
    if scored is not None:  # failed images are among the worst of pq.json; they have no picture
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
