"""The intervals: what 95 % means, measured on made data whose PQ is known."""

from __future__ import annotations

import numpy as np
import pytest

from detr.categories import Categories
from pipeline.panoptic.figures import per_class_table, results
from pipeline.panoptic.pq import REPLICATES, Side, Sums, score
from tests.pipeline.made import Image, sides

CLASSES = 9
CATEGORIES = Categories.from_json(
    [{"id": i, "name": f"c{i}", "isthing": int(i < 6)} for i in range(1, CLASSES + 1)]
)


def made_population(count: int) -> list[Image]:
    """Images of differing difficulty: segments missed, invented, renamed and gnawed at."""
    rng = np.random.default_rng(4)
    images: list[Image] = []
    for _ in range(count):
        true = np.arange(8).reshape(2, 4).repeat(6, axis=0).repeat(6, axis=1)
        classes = rng.choice(np.arange(1, CLASSES + 1), 8, p=rng.dirichlet(np.ones(CLASSES) * 5))
        hard = rng.beta(2, 3)
        predicted = np.where(rng.random(true.shape) < hard * 0.7, 0, true + 1)
        renamed = np.where(rng.random(8) < hard * 0.4, rng.integers(1, CLASSES + 1, 8), classes)
        here = [i for i in range(8) if (predicted == i + 1).any()]
        segments = [{"id": i + 1, "category_id": int(renamed[i])} for i in here]
        true_segments = [{"id": i + 1, "category_id": int(classes[i])} for i in range(8)]
        images.append((predicted, segments, true + 1, true_segments))
    return images


def scored(predictions: Side, truth: Side, rows: np.ndarray, seeds: np.ndarray) -> Sums:
    sums = Sums.zero(CLASSES, REPLICATES)
    score(predictions, truth, sums, prediction_rows=rows, truth_rows=rows, seeds=seeds)
    return sums


@pytest.mark.parametrize("images", [200, 400])
def test_95_percent_intervals_hold_the_truth(images: int) -> None:
    """300 samples with replacement from a population, whose own PQ is the truth to be held."""
    population = made_population(1500)
    predictions, truth = sides(population, list(CATEGORIES.ids))
    everything = np.arange(len(population))
    known = results(
        scored(predictions, truth, everything, everything.astype(np.uint64)), CATEGORIES
    )
    held = dict.fromkeys(("All", "Things", "Stuff"), 0)
    for repetition in range(300):
        rng = np.random.default_rng(repetition)
        rows = rng.integers(0, len(population), images)
        seeds = rng.integers(0, 2**64, images, dtype=np.uint64)
        found = results(scored(predictions, truth, rows, seeds), CATEGORIES)
        for group in held:
            low, high = found[group]["pq_interval"]
            held[group] += low <= known[group]["pq"] <= high
    for group, count in held.items():
        assert 0.90 <= count / 300 <= 0.985, (group, count / 300)


def test_a_narrower_interval_needs_more_images() -> None:
    population = made_population(800)
    predictions, truth = sides(population, list(CATEGORIES.ids))
    widths = []
    for images in (50, 800):
        rows = np.arange(images)
        found = results(scored(predictions, truth, rows, rows.astype(np.uint64)), CATEGORIES)
        low, high = found["All"]["pq_interval"]
        widths.append(high - low)
    assert 2.5 < widths[0] / widths[1] < 6  # the square root of 16 is 4


def test_per_class_rows_say_what_the_result_says() -> None:
    population = made_population(20)
    predictions, truth = sides(population, list(CATEGORIES.ids))
    rows = np.arange(20)
    result = results(scored(predictions, truth, rows, rows.astype(np.uint64)), CATEGORIES)
    for row in per_class_table(result, CATEGORIES).to_pylist():
        entry = result["per_class"][str(row["category_id"])]
        assert [row["pq_low"], row["pq_high"]] == entry["pq_interval"]
        for name in ("name", "pq", "sq", "rq", "iou", "tp", "fp", "fn"):
            assert row[name] == entry[name]
