"""PQ, SQ and RQ with bootstrap intervals, from the sums of an evaluation.

The result has the structure of panopticapi's (fractions, not percent), so that a reader of
panopticapi's output can read it: `All`, `Things`, `Stuff` are unweighted means over the classes
that occur (TP + FP + FN > 0), `per_class` is by category id. Intervals, sizes and confusion are
added. A group without any class is None where panopticapi divides by zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detr.categories import Categories
from pipeline.panoptic.kernels import REPLICATE_UNIT
from pipeline.panoptic.pq import SIZES, Sums

LEVEL = 0.95
GROUPS = ("All", "Things", "Stuff")


def results(sums: Sums, categories: Categories) -> dict[str, Any]:
    """`All`, `Things`, `Stuff`, `per_class`, `sizes`, `confusion` of the sums, as JSON values.

    The classes of `sums` are in the order of `categories`. Intervals (`pq_interval`, ...) are the
    2.5 and 97.5 percentiles over the bootstrap replicates, None without replicates.
    """
    counts = sums.counts[:, :, 2:]  # (C, 3 sizes, TP FP FN)
    iou = sums.class_iou()
    per_class = quality(iou, *np.moveaxis(counts.sum(axis=1), -1, 0))
    drawn_iou, tp, fp_and_fn = sums.replicates
    bootstrapped = quality(drawn_iou / REPLICATE_UNIT, tp, fp_and_fn, np.float64(0))
    # (3, C, replicates)
    of_size = quality(sums.iou(), *np.moveaxis(counts, -1, 0))  # (3, C, sizes)
    members = group_members(categories)
    return {
        **{
            group: _mean(per_class[:, rows], bootstrapped[:, rows])
            for group, rows in members.items()
        },
        "per_class": {
            str(category.id): {
                "name": category.name,
                **_named(np.nan_to_num(per_class[:, i])),
                "iou": float(iou[i]),
                **dict(zip(("tp", "fp", "fn"), counts[i].sum(axis=0).tolist(), strict=True)),
                "pq_interval": _interval(bootstrapped[0, i]),
            }
            for i, category in enumerate(categories)
        },
        "sizes": {
            size: {group: _mean(of_size[:, rows, k], None) for group, rows in members.items()}
            for k, size in enumerate(SIZES)
        },
        "confusion": [
            {"truth": categories[true].id, "prediction": categories[predicted].id, "count": count}
            for (true, predicted), count in sorted(
                sums.confusion.items(), key=lambda item: (-item[1], item[0])
            )
        ],
    }


def group_members(categories: Categories) -> dict[str, NDArray[np.int64]]:
    """Positions in `categories` of the members of `All`, `Things`, `Stuff`: (n,) int64 each."""
    things = np.array([category.isthing for category in categories], dtype=bool)
    groups = (np.arange(things.size), np.flatnonzero(things), np.flatnonzero(~things))
    return dict(zip(GROUPS, groups, strict=True))


def quality(
    iou: NDArray[Any], tp: NDArray[Any], fp: NDArray[Any], fn: NDArray[Any] | np.float64
) -> NDArray[np.float64]:
    """(3: PQ, SQ, RQ; ...) from sums of one shape; all three are NaN where TP + FP + FN is 0."""
    tp = tp.astype(np.float64)
    weight = tp + (fp + fn) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        pq = iou / weight
        sq = np.where(weight > 0, np.where(tp > 0, iou / tp, 0.0), np.nan)
        rq = tp / weight
    return np.stack([pq, sq, rq])


def _named(values: Sequence[float] | NDArray[np.float64]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(("pq", "sq", "rq"), values, strict=True)}


def _mean(values: NDArray[np.float64], bootstrapped: NDArray[np.float64] | None) -> dict[str, Any]:
    """Means over the classes that occur. values: (3, C); bootstrapped: (3, C, replicates)."""
    live = ~np.isnan(values[0])
    n = int(live.sum())
    if not n:
        return {"pq": None, "sq": None, "rq": None, "n": 0}
    result: dict[str, Any] = {**_named(values[:, live].sum(axis=1) / n), "n": n}
    if bootstrapped is not None and bootstrapped.shape[2]:
        drawn = ~np.isnan(bootstrapped[0])  # a replicate may hold no image of a rare class
        with np.errstate(invalid="ignore"):
            means = np.where(drawn, bootstrapped, 0.0).sum(axis=1) / drawn.sum(axis=0)
        for name, row in zip(("pq", "sq", "rq"), means, strict=True):
            result[f"{name}_interval"] = _interval(row)
    return result


def _interval(replicates: NDArray[np.float64]) -> list[float] | None:
    """2.5 and 97.5 percentile of the replicates that are not NaN; None if all are."""
    known = replicates[~np.isnan(replicates)]
    if not known.size:
        return None
    tail = (1 - LEVEL) / 2
    return [float(v) for v in np.quantile(known, [tail, 1 - tail])]


def per_class_table(result: Mapping[str, Any], categories: Categories) -> pa.Table:
    """`per_class` of a result as a table: category_id, name, isthing, pq, sq, rq, iou, tp, fp, fn,
    pq_low, pq_high."""
    rows = []
    for category in categories:
        figures = dict(result["per_class"][str(category.id)])
        del figures["name"]
        low, high = figures.pop("pq_interval") or (None, None)
        named = {"category_id": category.id, "name": category.name, "isthing": category.isthing}
        rows.append({**named, **figures, "pq_low": low, "pq_high": high})
    kinds = {"category_id": pa.int32(), "name": pa.string(), "isthing": pa.bool_()}
    kinds |= dict.fromkeys(("tp", "fp", "fn"), pa.int64())
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in rows[0]])
    return pa.Table.from_pylist(rows, schema=schema)
