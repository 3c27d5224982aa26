"""The intervals: what 95 % means, measured on made data whose PQ is known."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.panoptic.figures import per_class_table, results
from pipeline.panoptic.pq import REPLICATES, Side, Sums, score
from tests.factories import POPULATION_CATEGORIES, POPULATION_CLASSES, made_population, sides


def scored(predictions: Side, truth: Side, rows: np.ndarray, seeds: np.ndarray) -> Sums:
    sums = Sums.zero(POPULATION_CLASSES, REPLICATES)
    score(predictions, truth, sums, prediction_rows=rows, truth_rows=rows, seeds=seeds)
    return sums


@pytest.mark.parametrize("images", [200, 400])
def test_95_percent_intervals_hold_the_truth(images: int) -> None:
    """300 samples with replacement from a population, whose own PQ is the truth to be held."""
    population = made_population(1500)
    predictions, truth = sides(population, list(POPULATION_CATEGORIES.ids))
    everything = np.arange(len(population))
    known = results(
        scored(predictions, truth, everything, everything.astype(np.uint64)), POPULATION_CATEGORIES
    )
    held = dict.fromkeys(("All", "Things", "Stuff"), 0)
    for repetition in range(300):
        rng = np.random.default_rng(repetition)
        rows = rng.integers(0, len(population), images)
        seeds = rng.integers(0, 2**64, images, dtype=np.uint64)
        found = results(scored(predictions, truth, rows, seeds), POPULATION_CATEGORIES)
        for group in held:
            low, high = found[group]["pq_interval"]
            held[group] += low <= known[group]["pq"] <= high
    for group, count in held.items():
        assert 0.90 <= count / 300 <= 0.985, (group, count / 300)


def test_a_narrower_interval_needs_more_images() -> None:
    population = made_population(800)
    predictions, truth = sides(population, list(POPULATION_CATEGORIES.ids))
    widths = []
    for images in (50, 800):
        rows = np.arange(images)
        found = results(
            scored(predictions, truth, rows, rows.astype(np.uint64)), POPULATION_CATEGORIES
        )
        low, high = found["All"]["pq_interval"]
        widths.append(high - low)
    assert 2.5 < widths[0] / widths[1] < 6  # the square root of 16 is 4


def test_per_class_rows_say_what_the_result_says() -> None:
    population = made_population(20)
    predictions, truth = sides(population, list(POPULATION_CATEGORIES.ids))
    rows = np.arange(20)
    result = results(
        scored(predictions, truth, rows, rows.astype(np.uint64)), POPULATION_CATEGORIES
    )
    for row in per_class_table(result, POPULATION_CATEGORIES).to_pylist():
        entry = result["per_class"][str(row["category_id"])]
        assert [row["pq_low"], row["pq_high"]] == entry["pq_interval"]
        for name in ("name", "pq", "sq", "rq", "iou", "tp", "fp", "fn"):
            assert row[name] == entry[name]
