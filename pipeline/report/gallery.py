"""The cards of a report: for each image the photo, the prediction, the truth and the difference.

Cards are drawn from the rows of the run and of its evaluation, and from the photo at its URI. If
the photo can't be read, the card has a grey picture in its place. Pictures are embedded, so the
bytes of a page are limited: cards beyond the limit are left out, and the page says so.
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
    """One image of a gallery. pq: 0 to 1; None for an image that was not scored."""

    file_name: str
    pq: float | None
    lines: tuple[str, ...]
    pictures: tuple[Picture, ...]


@dataclass
class Budget:
    """The bytes left for pictures. spent: some pictures did not fit."""

    left: int
    spent: bool = False

    def take(self, pictures: Sequence[Picture]) -> bool:
        """Subtract the bytes of the pictures if all of them fit; else False."""
        size = sum(len(picture.data) for picture in pictures)
        if size > self.left:
            self.spent = True
            return False
        self.left -= size
        return True


@dataclass(frozen=True)
class Illustrator:
    """Draws the cards of one snapshot, with the truth of an evaluation, if there is one."""

    run_snapshot: RunSnapshot
    evaluation: str | None
    truth: Truth | None
    categories: Categories  # of predictions and truth
    mapping: CategoryMap | None = None  # of the evaluation, to `categories`
    options: Mapping[str, str] = field(default_factory=dict)  # storage options of the photos

    @classmethod
    def of(
        cls,
        run_snapshot: RunSnapshot,
        result: Mapping[str, Any] | None,
        options: Mapping[str, str] | None,
    ) -> Illustrator:
        """The illustrator of a snapshot. result: the pq.json of an evaluation, whose truth is
        drawn if it still exists."""
        name = None if result is None else str(result["name"])
        truth = _truth(run_snapshot, result)
        mapping = CategoryMap.of_result(result)
        return cls(run_snapshot, name, truth, run_snapshot.categories(name), mapping, options or {})

    def cards(
        self, names: Sequence[str], count: int, budget: Budget, others: Sequence[Illustrator] = ()
    ) -> list[Card]:
        """Cards of the first `count` images in `names` that are ok, in order, while bytes are left.

        others: of other snapshots, whose prediction of the same image is drawn, too.
        """
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
        located = locate_rows(self.run_snapshot.run, names, snapshot=self.run_snapshot.snapshot)
        for path, row in located:
            if self.mapping is not None and row["status"] == "ok":
                row = self.mapping.row(row, "model")
            yield path, row

    def _card(self, path: str, row: dict[str, Any], others: Sequence[Illustrator]) -> Card:
        run, name = self.run_snapshot.run, row["file_name"]
        categories = self.categories
        height, width = row["height"], row["width"]
        pixels = sampling(height, width)
        lines = []
        try:
            photo = photo_of(run, row, self.options)[np.ix_(*pixels)]
        except UserError as error:
            photo = np.full((len(pixels[0]), len(pixels[1]), 3), 128, np.uint8)
            lines.append(f"no photo: {error}")
        prediction = drawn(row, pixels, categories)
        pictures = [picture("Photo", f"The photo {name}", Image.fromarray(photo))]
        before: Panoptic | None = None
        for other in others:
            for _, former in other._rows([name]):
                size = (former["height"], former["width"])
                if former["status"] == "ok" and size == (height, width):
                    before = drawn(former, pixels, categories)
                    pictures.append(overlay("Prediction before", photo, before, categories))
        title = "Prediction now" if others else "Prediction"
        pictures.append(overlay(title, photo, prediction, categories))
        scored = self._outcomes(path, name)
        truth_row = self._truth_row(name)
        true: Panoptic | None = None
        if truth_row is not None and (truth_row["height"], truth_row["width"]) == (height, width):
            true = drawn(truth_row, pixels, categories)
            pictures.append(overlay("Truth", photo, true, categories, scores=False))
            if scored is not None and not others:
                matches = _matches(scored, row["segment_id"], truth_row["segment_id"])
                pictures.append(difference(photo, prediction, true, matches))
        if before is not None:
            pictures.append(changed(photo, before, prediction, true))
        pq = None
        if scored is not None:
            pq = scored["pq"]
            lines += outcome_lines(scored, categories)
        return Card(name, pq, tuple(lines), tuple(pictures))

    def _outcomes(self, path: str, file_name: str) -> dict[str, Any] | None:
        """The per-image row of the evaluation; None if the image was not scored."""
        if self.evaluation is None:
            return None
        folder = self.run_snapshot.rows_folder(self.evaluation)
        try:
            rows = self.run_snapshot.run.read_shard(f"{folder}/{part_name(path)}")
        except UserError:  # the shard was written after an evaluation of the unfinished run
            return None
        matching = rows.filter(pc.field("file_name") == file_name).to_pylist()
        return matching[0] if matching and matching[0]["status"] == "scored" else None

    def _truth_row(self, file_name: str) -> dict[str, Any] | None:
        if self.truth is None:
            return None
        rows = self.truth.rows(hashes_of([file_name]))
        matching = [row for row in rows.to_pylist() if row["file_name"] == file_name]
        if not matching or matching[0]["problem"] is not None:
            return None
        return self.mapping.row(matching[0], "truth") if self.mapping else matching[0]


def outcome_lines(scored: Mapping[str, Any], categories: Categories) -> list[str]:
    """Lines on matched, missed (FN) and unmatched predicted (FP) segments, by category."""
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
    """The converted truth of an evaluation: in its folder, or at the URL in its pq.json."""
    if result is None:
        return None
    evaluation = evaluation_folder(run_snapshot.number, result["name"])
    loaded = load_truth(run_snapshot.run.storage, truth_folder(evaluation))
    if loaded is None and "truth" in result:
        loaded = load_truth(*open_file(str(result["truth"]), run_snapshot.run.storage.options))
    return None if loaded is None else loaded[0]


def _matches(
    scored: Mapping[str, Any], predicted_ids: Sequence[int], true_ids: Sequence[int]
) -> list[tuple[int, int]]:
    """The true positives as (predicted, true) ids of the maps that `drawn` makes."""
    return [
        (predicted_ids.index(predicted_id) + 1, true_ids.index(true_id) + 1)
        for outcome, predicted_id, true_id in zip(
            scored["outcome"], scored["segment_id"], scored["truth_id"], strict=True
        )
        if outcome == "TP"
    ]
