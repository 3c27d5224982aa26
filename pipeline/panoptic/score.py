"""Shard rows and truth rows in, a `Partial` (sums, counts, names) and per-image rows out.

The evaluation of runs and that of COCO files both score through `score_rows`. `Partial`s can be
added in any order with the same result; the few names that a `Partial` holds of each kind are the
smallest ones, in the order of names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from heapq import nsmallest
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.panoptic.per_image import image_pq, per_image_table
from pipeline.panoptic.pq import Side, Sums, fault_sentence, score
from pipeline.sharding import name_hash

NAMED: Final = 5
WORST: Final = 50
INVALID: Final = 1_000  # most entries that are listed
KINDS: Final = ("scored", "failed", "without_truth", "without_prediction", "invalid")


@dataclass(frozen=True, order=True)
class Invalid:
    """A shard (`image` is empty) or an image that can't be scored; segment: the id at fault."""

    shard: str
    image: str
    reason: str
    segment: int | None = field(default=None, compare=False)

    def sentence(self) -> str:
        where = ", ".join(
            text for text in (self.shard, f"image {self.image!r}" if self.image else "") if text
        )
        return f"{where}: {self.reason}"


@dataclass
class Partial:
    """Sums over some images, counts by kind (`KINDS`), and a few names of each kind."""

    sums: Sums
    counts: Counter[str] = field(default_factory=Counter)
    named: dict[str, list[str]] = field(default_factory=dict)
    invalid: list[Invalid] = field(default_factory=list)
    worst: list[tuple[float, str]] = field(default_factory=list)  # PQ, file_name

    def add(self, other: Partial) -> None:
        self.sums.add(other.sums)
        self.counts.update(other.counts)
        for kind, names in other.named.items():
            self.named[kind] = nsmallest(NAMED, [*self.named.get(kind, ()), *names])
        self.invalid = nsmallest(INVALID, [*self.invalid, *other.invalid])
        self.worst = nsmallest(WORST, [*self.worst, *other.worst])

    def facts(self) -> dict[str, Any]:
        """The entries of `pq.json` besides `figures.results`."""
        return {
            "images": {kind: self.counts[kind] for kind in KINDS},
            "named": {kind: self.named[kind] for kind in KINDS if self.named.get(kind)},
            "invalid": [asdict(entry) for entry in self.invalid],
            "worst": [{"file_name": name, "pq": pq} for pq, name in self.worst],
        }


class InvalidError(UserError):
    """Some images or shards can't be scored; `result` holds the figures of the others."""

    def __init__(self, message: str, result: dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result


def refuse_invalid(result: dict[str, Any], total: Partial) -> None:
    """Raises InvalidError if anything could not be scored."""
    if total.invalid:
        count = total.counts["invalid"] + total.counts["broken_shards"]
        more = f' (and {count - 1:,} more, listed under "invalid")' if count > 1 else ""
        raise InvalidError(f"{total.invalid[0].sentence()}{more}", result)


def broken_shard(shard: str, reason: str, classes: int) -> Partial:
    return Partial(
        Sums.zero(classes), Counter(broken_shards=1), invalid=[Invalid(shard, "", reason)]
    )


def hashes_of(names: Sequence[str]) -> NDArray[np.uint64]:
    return np.array([name_hash(name) for name in names], dtype=np.uint64)


def score_rows(
    predictions: pa.Table, truth: pa.Table, category_ids: Sequence[int], shard: str = ""
) -> tuple[Partial, pa.Table]:
    """Score shard rows against truth rows of the same file names.

    predictions: `schema.SHARD_SCHEMA` (and the user's columns), of which file_name, status,
    error_code, height, width, segment_id, category_id and counts are read; truth:
    `truth_png.TRUTH_SCHEMA`; category_ids: of all classes; shard: its path, for messages. Returns
    the sums and one per-image row (`PER_IMAGE_SCHEMA`) for each row of predictions.
    """
    names = predictions["file_name"].to_pylist()
    hashes = hashes_of(names)
    ok = np.array([text == "ok" for text in predictions["status"].to_pylist()], dtype=bool)
    truth_row = {name: row for row, name in enumerate(truth["file_name"].to_pylist())}
    problems = truth["problem"].to_pylist()
    truth_of = np.array([truth_row.get(name, -1) for name in names], dtype=np.int64)

    partial = Partial(Sums.zero(len(category_ids)))
    status = ["without_truth"] * len(names)
    reason: list[str | None] = predictions["error_code"].to_pylist()
    paired = []
    for row, true_row in enumerate(truth_of.tolist()):
        if true_row < 0:
            continue
        if problems[true_row] is not None:
            status[row], reason[row] = "invalid", f"truth: {problems[true_row]}"
            partial.invalid.append(Invalid(shard, names[row], f"truth: {problems[true_row]}"))
            continue
        status[row] = "scored" if ok[row] else "failed"
        paired.append(row)

    rows = np.array(paired, dtype=np.int64)
    height = pa.array(predictions["height"].fill_null(-1).to_numpy(), mask=~ok)
    at = predictions.column_names.index("height")
    predicted_side = Side.from_rows(predictions.set_column(at, "height", height), category_ids)
    true_side = Side.from_rows(truth, category_ids)
    scored = score(
        predicted_side,
        true_side,
        partial.sums,
        prediction_rows=rows,
        truth_rows=truth_of[rows],
        seeds=hashes[rows],
    )
    for pair in np.flatnonzero(scored.faults[:, 0]).tolist():
        row = paired[pair]
        text, segment = fault_sentence(
            scored.faults[pair],
            predicted_side,
            true_side,
            prediction_row=row,
            truth_row=int(truth_of[row]),
        )
        status[row], reason[row] = "invalid", text
        partial.invalid.append(Invalid(shard, names[row], text, segment))

    partial.counts.update(status)
    for kind in ("failed", "without_truth", "invalid"):
        of_kind = [name for name, text in zip(names, status, strict=True) if text == kind]
        partial.named[kind] = nsmallest(NAMED, of_kind)
    pq = image_pq(scored.ious, scored.totals)
    partial.worst = nsmallest(
        WORST, [(float(v), names[r]) for v, r in zip(pq, paired, strict=True) if not np.isnan(v)]
    )
    size = np.full((len(names), 2), -1, dtype=np.int64)
    size[truth_of >= 0] = true_side.size[truth_of[truth_of >= 0]]
    table = per_image_table(
        predictions,
        hashes,
        status=status,
        reason=reason,
        size=size,
        paired=rows,
        scored=scored,
        category_ids=np.asarray(category_ids, dtype=np.int64),
        segment_ids=_event_ids(scored.events, 3, scored.event_first, predicted_side, rows),
        truth_ids=_event_ids(scored.events, 4, scored.event_first, true_side, truth_of[rows]),
    )
    return partial, table


def _event_ids(
    events: NDArray[np.int32],
    column: int,
    event_first: NDArray[np.int64],
    side: Side,
    rows: NDArray[np.int64],
) -> NDArray[np.int64]:
    """(events,) id of the segment of each event on one side, -1 for none.

    column: of `events`, with the segment's position; rows: of the scored images in `side`.
    """
    position = events[: event_first[-1], column].astype(np.int64)
    if not position.size or not side.ids.size:
        return np.full(position.size, -1, dtype=np.int64)
    first = np.repeat(side.first[rows], np.diff(event_first))
    return np.where(position >= 0, side.ids[(first + position).clip(0, side.ids.size - 1)], -1)
