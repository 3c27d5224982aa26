"""The pictures of a report: for each image the photo, the prediction, the truth, the difference.

Everything is drawn at the size at which it is shown, from the rows of the run and of its evaluation
and from the photo where the run read it. A photo that is gone costs its own picture only. Pictures
are embedded, so there is a budget of bytes; when it is spent, the rest is left out, and the budget
knows, so that the page can say so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from detr.categories import Categories
from detr.panoptic import Panoptic
from pipeline.amounts import counted
from pipeline.errors import UserError
from pipeline.evaluation.category_map import CategoryMap
from pipeline.evaluation.truth import Truth, load_truth
from pipeline.layout import evaluation_folder, part_name, truth_folder
from pipeline.panoptic.score import hashes_of
from pipeline.report.pictures import Picture, changed, difference, drawn, overlay, picture, sampling
from pipeline.report.view import photo_of
from pipeline.run.lookup import locate_rows
from pipeline.run.snapshots import RunSnapshot
from pipeline.storage.storage import open_file


@dataclass(frozen=True)
class Card:
    """One image of a gallery; `pq` in 0..1, None where it wasn't scored."""

    file_name: str
    pq: float | None
    lines: tuple[str, ...]
    pictures: tuple[Picture, ...]


@dataclass
class Budget:
    """Bytes that pictures may still take; `spent` once some didn't fit."""

    left: int
    spent: bool = False

    def take(self, pictures: Sequence[Picture]) -> bool:
        """True, and the bytes are spent, if they all fit."""
        size = sum(len(picture.data) for picture in pictures)
        if size > self.left:
            self.spent = True
            return False
        self.left -= size
        return True


@dataclass(frozen=True)
class Illustrator:
    """Draws cards of one snapshot, with truth where an evaluation has it."""

    run_snapshot: RunSnapshot
    evaluation: str | None
    truth: Truth | None
    categories: Categories  # of predictions and truth
    mapping: CategoryMap | None = None  # of the evaluation, to these categories
    options: Mapping[str, str] = field(default_factory=dict)  # storage options of the photos

    @classmethod
    def of(
        cls,
        run_snapshot: RunSnapshot,
        result: Mapping[str, Any] | None,
        options: Mapping[str, str] | None,
    ) -> Illustrator:
        """With the truth that the evaluation `result` (its pq.json) was scored against, if it is
        still there."""
        name = None if result is None else str(result["name"])
        truth = _truth(run_snapshot, result)
        mapping = CategoryMap.of_result(result)
        return cls(run_snapshot, name, truth, run_snapshot.categories(name), mapping, options or {})

    def cards(
        self, names: Sequence[str], count: int, budget: Budget, others: Sequence[Illustrator] = ()
    ) -> list[Card]:
        """Cards of the first `count` of these images that are ok, in their order, while the budget
        lasts; with the prediction of `others` beside (same images of other snapshots)."""
        cards: list[Card] = []
        if count == 0:
            return cards
        for start in range(0, len(names), count):
            few = list(names[start : start + count])
            located = {row["file_name"]: (path, row) for path, row in self._rows(few)}
            for name in few:
                if len(cards) == count:
                    return cards
                if name in located and located[name][1]["status"] == "ok":
                    card = self._card(*located[name], others)
                    if not budget.take(card.pictures):
                        return cards
                    cards.append(card)
        return cards

    def _rows(self, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        found = locate_rows(self.run_snapshot.run, names, snapshot=self.run_snapshot.snapshot)
        for path, row in found:
            if self.mapping is not None and row["status"] == "ok":
                row = self.mapping.row(row, "model")
            yield path, row

    def _card(self, path: str, row: dict[str, Any], others: Sequence[Illustrator]) -> Card:
        run, name = self.run_snapshot.run, row["file_name"]
        categories = self.categories
        height, width = row["height"], row["width"]
        at = sampling(height, width)
        lines = []
        try:
            photo = photo_of(run, row, self.options)[np.ix_(*at)]
        except UserError as error:
            photo = np.full((len(at[0]), len(at[1]), 3), 128, np.uint8)
            lines.append(f"no photo: {error}")
        own = drawn(row, at, categories)
        pictures = [picture("Photo", f"The photo {name}", Image.fromarray(photo))]
        before: Panoptic | None = None
        for other in others:
            for _, then in other._rows([name]):
                if then["status"] == "ok" and (then["height"], then["width"]) == (height, width):
                    before = drawn(then, at, categories)
                    pictures.append(overlay("Prediction before", photo, before, categories))
        title = "Prediction now" if others else "Prediction"
        pictures.append(overlay(title, photo, own, categories))
        scored = self._outcomes(path, name)
        truth_row = self._truth_row(name)
        true: Panoptic | None = None
        if truth_row is not None and (truth_row["height"], truth_row["width"]) == (height, width):
            true = drawn(truth_row, at, categories)
            pictures.append(overlay("Truth", photo, true, categories, scores=False))
            if scored is not None and not others:
                matches = _matches(scored, row["segment_id"], truth_row["segment_id"])
                pictures.append(difference(photo, own, true, matches))
        if before is not None:
            pictures.append(changed(photo, before, own, true))
        pq = None
        if scored is not None:
            pq = scored["pq"]
            lines += outcome_lines(scored, categories)
        return Card(name, pq, tuple(lines), tuple(pictures))

    def _outcomes(self, path: str, file_name: str) -> dict[str, Any] | None:
        """The image's row of the evaluation."""
        if self.evaluation is None:
            return None
        folder = self.run_snapshot.rows_folder(self.evaluation)
        try:
            rows = self.run_snapshot.run.read_shard(f"{folder}/{part_name(path)}")
        except UserError:  # evaluated while it was being made: this shard came later
            return None
        found = rows.filter(pc.field("file_name") == file_name).to_pylist()
        return found[0] if found and found[0]["status"] == "scored" else None

    def _truth_row(self, file_name: str) -> dict[str, Any] | None:
        if self.truth is None:
            return None
        rows = self.truth.rows(hashes_of([file_name]))
        found = [row for row in rows.to_pylist() if row["file_name"] == file_name]
        if not found or found[0]["problem"] is not None:
            return None
        return self.mapping.row(found[0], "truth") if self.mapping else found[0]


def outcome_lines(scored: Mapping[str, Any], categories: Categories) -> list[str]:
    """What was matched, missed and made up, by category, most frequent first."""
    counts: dict[str, Counter[str]] = {"FN": Counter(), "FP": Counter()}
    for category_id, outcome in zip(scored["category_id"], scored["outcome"], strict=True):
        if outcome in counts:
            counts[outcome][categories.by_id(category_id).name] += 1
    lines = [f"{scored['tp']} of {counted(scored['tp'] + scored['fn'], 'segment')} matched"]
    for outcome, word in (("FN", "missed"), ("FP", "not in the truth")):
        if counts[outcome]:
            listed = ", ".join(
                f"{count} {name}" if count > 1 else name
                for name, count in counts[outcome].most_common()
            )
            lines.append(f"{word}: {listed}")
    return lines


def _truth(run_snapshot: RunSnapshot, result: Mapping[str, Any] | None) -> Truth | None:
    """The converted truth: in the evaluation's own folder, or the one that it was pointed to."""
    if result is None:
        return None
    evaluation = evaluation_folder(run_snapshot.number, result["name"])
    ready = load_truth(run_snapshot.run.storage, truth_folder(evaluation))
    if ready is None and "truth" in result:
        ready = load_truth(*open_file(str(result["truth"]), run_snapshot.run.storage.options))
    return None if ready is None else ready[0]


def _matches(
    scored: Mapping[str, Any], predicted_ids: Sequence[int], true_ids: Sequence[int]
) -> list[tuple[int, int]]:
    """The true positives as numbers of `drawn`."""
    return [
        (predicted_ids.index(own) + 1, true_ids.index(other) + 1)
        for outcome, own, other in zip(
            scored["outcome"], scored["segment_id"], scored["truth_id"], strict=True
        )
        if outcome == "TP"
    ]
