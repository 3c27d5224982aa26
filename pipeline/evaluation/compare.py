"""The difference in PQ of two snapshots on one ground truth, with paired bootstrap intervals.

Both snapshots were scored by `evaluate`. The per-image rows of their common images are summed again
with the same bootstrap samples (`bootstrap.py`), so differences are paired by replicate: their
interval is far narrower than the intervals of the two PQs suggest. Reads run folders only.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detr.categories import Categories
from pipeline.amounts import counted
from pipeline.errors import UserError
from pipeline.panoptic.bootstrap import COLUMNS, add_rows
from pipeline.panoptic.figures import LEVEL, group_members, quality, results
from pipeline.panoptic.pq import REPLICATES, Sums
from pipeline.run.snapshots import IncompleteError, RunSnapshot

SCORED: Final = ("scored", "failed")  # a failed image misses all of its truth
MOST_CHANGED: Final = 50
_OTHER_TRUTH: Final = (
    "the evaluations {name!r} of A and B used different ground truth: evaluate both against the "
    "same file"
)


class OtherTruthError(UserError):
    """A and B were scored against different truth."""


@dataclass(frozen=True)
class Change:
    """A figure (0 to 1) in A and in B; None where no class occurs. interval, error: the paired 95 %
    interval and the standard error of the difference."""

    a: float | None
    b: float | None
    difference: float | None
    interval: tuple[float, float] | None
    error: float | None


@dataclass(frozen=True)
class ClassChange:
    """PQ of one category in A and in B. segments: of the category in the ground truth."""

    category_id: int
    name: str
    isthing: bool
    segments: int
    pq: Change


@dataclass(frozen=True)
class ImageChange:
    """PQ of one image, all classes together, in A and in B."""

    file_name: str
    a: float
    b: float


@dataclass(frozen=True)
class Comparison:
    """B against A on the `images` that both scored against the same truth."""

    a: str
    b: str
    truth: str
    images: int
    only_a: int
    only_b: int
    groups: dict[str, dict[str, Change]]  # All, Things, Stuff -> pq, sq, rq
    classes: tuple[ClassChange, ...]  # those that occur, largest loss first
    changed: tuple[ImageChange, ...]  # largest change first


@dataclass(frozen=True)
class _Side:
    """One snapshot's scored images, sorted by hash."""

    hashes: NDArray[np.uint64]
    pq: NDArray[np.float64]  # NaN without segments
    segments: NDArray[np.int64]  # of the ground truth: TP + FN


def shared_evaluation(a: RunSnapshot, b: RunSnapshot) -> str | None:
    """The name of the evaluation that both snapshots have; None without a common one.

    Raises UserError if several are common.
    """
    names = sorted(set(a.evaluations()) & set(b.evaluations()))
    if len(names) > 1:
        raise UserError(f"both were evaluated as {' and as '.join(names)}: choose one with --name")
    return names[0] if names else None


def compare(a: RunSnapshot, b: RunSnapshot, name: str | None = None) -> Comparison:
    """Compare B with A by their evaluations `name` (default: the only one that both have).

    Raises UserError without a common evaluation or image, or for different label sets;
    OtherTruthError if A and B were scored against different truth; IncompleteError if an evaluation
    lacks rows, is older than its finished snapshot, or does not record its truth.
    """
    name = name or shared_evaluation(a, b)
    for run_snapshot in (a, b):
        if name is None or name not in run_snapshot.evaluations():
            have = ", ".join(run_snapshot.evaluations()) or "none"
            raise UserError(
                f"{run_snapshot.url} has no evaluation {name or 'that the other has too'} (it has: "
                f"{have}): run `panoptic evaluate` on both, or compare --without-truth"
            )
    assert name is not None
    results_of = [_complete(run_snapshot, name) for run_snapshot in (a, b)]
    maps = [result.get("category_map", {}).get("names") for result in results_of]
    if maps[0] != maps[1]:
        raise OtherTruthError(
            f"the evaluations {name!r} of A and B were made with different --map-categories: "
            "evaluate both with the same file"
        )
    if maps[0] is None and b.run.info.category_list != a.run.info.category_list:
        raise UserError(
            "A and B have different categories: their classes can't be compared (evaluate both "
            "with a --map-categories FILE that makes one label set of them)"
        )
    if results_of[0]["truth_sha256"] != results_of[1]["truth_sha256"]:
        raise OtherTruthError(_OTHER_TRUTH.format(name=name))
    categories = a.categories(name)
    if set(b.categories(name)) != set(categories):
        raise OtherTruthError(_OTHER_TRUTH.format(name=name))
    left, right = (
        _side(run_snapshot, name, result["rows"])
        for run_snapshot, result in zip((a, b), results_of, strict=True)
    )
    common, in_a, in_b = np.intersect1d(left.hashes, right.hashes, return_indices=True)
    if not common.size:
        raise UserError("A and B have no scored image in common")
    if (left.segments[in_a] != right.segments[in_b]).any():
        raise OtherTruthError(_OTHER_TRUTH.format(name=name))
    sums = [_sums(run_snapshot, name, common, categories) for run_snapshot in (a, b)]
    return Comparison(
        a=a.url,
        b=b.url,
        truth=name,
        images=int(common.size),
        only_a=int(left.hashes.size - common.size),
        only_b=int(right.hashes.size - common.size),
        **changes(sums, categories),
        changed=_most_changed(a, name, common, left.pq[in_a], right.pq[in_b]),
    )


def _complete(run_snapshot: RunSnapshot, name: str) -> dict[str, Any]:
    """`pq.json` of an evaluation that can be compared. Raises IncompleteError."""
    result = run_snapshot.result(name)
    if "truth_sha256" not in result:
        why = "was made by an older version, which did not record its truth"
    elif not result["complete"]:
        why = (
            f"was made before the snapshot was finished (with {counted(result['shards'], 'shard')})"
        )
    else:
        return result
    raise IncompleteError(
        f"the evaluation {name!r} of {run_snapshot.url} {why}: run `panoptic evaluate` again"
    )


def _side(run_snapshot: RunSnapshot, name: str, rows: int) -> _Side:
    columns = ("hash", "status", "pq", "tp", "fn")
    parts = list(run_snapshot.per_image(name, columns))
    table = pa.concat_tables(parts) if parts else pa.table({"hash": pa.array([], pa.uint64())})
    if table.num_rows != rows or len(table["hash"].unique()) != rows:
        raise IncompleteError(
            f"the evaluation {name!r} of {run_snapshot.url} has {table.num_rows:,} per-image rows "
            f"where {rows:,} were scored: run `panoptic evaluate` again"
        )
    if not rows:
        raise UserError(f"the evaluation {name!r} of {run_snapshot.url} scored no image")
    table = table.filter(pc.field("status").isin(SCORED)).sort_by("hash")
    true = table["tp"].to_numpy() + table["fn"].to_numpy()
    return _Side(table["hash"].to_numpy(), table["pq"].to_numpy(), true.astype(np.int64))


def _sums(
    run_snapshot: RunSnapshot, name: str, common: NDArray[np.uint64], categories: Categories
) -> Sums:
    sums = Sums.zero(len(categories), REPLICATES)
    for rows in run_snapshot.per_image(name, ("hash", *COLUMNS)):
        add_rows(sums, rows.filter(np.isin(rows["hash"].to_numpy(), common)), categories.ids)
    return sums


def changes(sums: Sequence[Sums], categories: Categories) -> dict[str, Any]:
    """`groups` and `classes` of a Comparison, from the sums of A and of B over the same images."""
    figures = [results(side, categories) for side in sums]
    replicates = [
        quality(side.replicates[0] / 2.0**20, side.replicates[1], side.replicates[2], np.float64(0))
        for side in sums
    ]  # A and B: (3, C, replicates)
    groups = {}
    for group, rows in group_members(categories).items():
        with warnings.catch_warnings():  # a replicate may hold no class of a small group
            warnings.simplefilter("ignore", RuntimeWarning)
            means = [np.nanmean(side[:, rows], axis=1) for side in replicates]  # (3, replicates)
        pairs = [side[group] for side in figures]
        groups[group] = {
            key: _change(pairs[0][key], pairs[1][key], means[1][k] - means[0][k])
            for k, key in enumerate(("pq", "sq", "rq"))
        }
    classes = []
    for position, category in enumerate(categories):
        in_a, in_b = (side["per_class"][str(category.id)] for side in figures)
        if not any(side[count] for side in (in_a, in_b) for count in ("tp", "fp", "fn")):
            continue
        difference = replicates[1][0, position] - replicates[0][0, position]
        change = _change(in_a["pq"], in_b["pq"], difference)
        segments = in_a["tp"] + in_a["fn"]
        classes.append(ClassChange(category.id, category.name, category.isthing, segments, change))
    classes.sort(key=lambda entry: (entry.pq.difference, entry.category_id))
    return {"groups": groups, "classes": tuple(classes)}


def _change(a: float | None, b: float | None, replicates: NDArray[np.float64]) -> Change:
    if a is None or b is None:
        return Change(a, b, None, None, None)
    drawn = replicates[~np.isnan(replicates)]
    if drawn.size < 2:
        return Change(a, b, b - a, None, None)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail]).tolist()
    return Change(a, b, b - a, (low, high), float(drawn.std(ddof=1)))


def _most_changed(
    a: RunSnapshot,
    name: str,
    common: NDArray[np.uint64],
    pq_a: NDArray[np.float64],
    pq_b: NDArray[np.float64],
) -> tuple[ImageChange, ...]:
    """The images whose PQ changed most; an image without any segment has PQ 1."""
    pq_a, pq_b = np.nan_to_num(pq_a, nan=1.0), np.nan_to_num(pq_b, nan=1.0)
    order = np.argsort(-np.abs(pq_b - pq_a), kind="stable")[:MOST_CHANGED]
    order = order[pq_a[order] != pq_b[order]]
    names: dict[int, str] = {}
    for rows in a.per_image(name, ("hash", "file_name")):
        rows = rows.filter(np.isin(rows["hash"].to_numpy(), common[order]))
        names.update(zip(rows["hash"].to_pylist(), rows["file_name"].to_pylist(), strict=True))
    return tuple(ImageChange(names[int(common[i])], float(pq_a[i]), float(pq_b[i])) for i in order)
