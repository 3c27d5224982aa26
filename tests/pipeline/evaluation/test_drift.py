"""Shares of images, their intervals, and what stops a night."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.evaluation.drift import (
    ShareLimits,
    Shares,
    alarms,
    difference_interval,
    drift,
    wilson,
)
from pipeline.schema import SHARD_SCHEMA
from pipeline.train.synthetic import SCENE_CATEGORIES
from tests.factories import Predicted, made_scenes, shard_row

LIMITS = ShareLimits(error_rate=0.05, empty_rise=0.05, class_drift=0.1)
IDS = SCENE_CATEGORIES.ids


def table(rows: dict[str, Predicted | str]) -> pa.Table:
    made = [shard_row(name, own) for name, own in rows.items()]
    return pa.Table.from_pylist(made, schema=SHARD_SCHEMA)


def shares(
    images: int, *, errors: int = 0, empty: int = 0, first_class: int | None = None
) -> Shares:
    own = Shares.zero(len(IDS))
    own.images, own.empty = images, empty
    own.errors.update({"truncated": errors} if errors else {})
    own.with_class[0] = own.ok // 2 if first_class is None else first_class
    return own


@pytest.mark.parametrize(
    ("before", "after", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17, table II, method 10
        ((48, 80), (56, 70), 0.0524, 0.3339),
        ((3, 10), (9, 10), 0.1705, 0.8090),
        ((2, 7), (6, 7), 0.0582, 0.8062),
        ((0, 20), (0, 10), -0.1611, 0.2775),
    ],
)
def test_the_interval_is_newcombe_s(
    before: tuple[int, int], after: tuple[int, int], low: float, high: float
) -> None:
    assert difference_interval(before, after, 0.05) == pytest.approx((low, high), abs=1e-4)


def test_nothing_seen_shows_nothing() -> None:
    assert wilson(0, 0, 0.05) == (0.0, 0.5, 1.0)
    low, high = difference_interval((0, 0), (5, 10), 0.05)
    assert low < 0 < high


def test_shares_count_images_and_pixels() -> None:
    scenes = made_scenes(6)
    rows: dict[str, Predicted | str] = {**scenes, "broken.jpg": "truncated"}
    rows["void.jpg"] = (np.zeros((10, 10), np.uint8), [])
    found = Shares.of(table(rows), IDS)
    assert (found.images, found.ok, found.empty, found.errors) == (8, 7, 1, {"truncated": 1})
    for position, category in enumerate(IDS):
        holders = [
            (segment_map, [s["id"] for s in segments if s["category_id"] == category])
            for segment_map, segments in scenes.values()
        ]
        assert found.with_class[position] == sum(bool(ids) for _, ids in holders)
        assert found.pixels[position] == sum(np.isin(m, ids).sum() for m, ids in holders)
    sizes = sum(segment_map.size for segment_map, _ in scenes.values())
    assert found.all_pixels == sizes + 100


def test_parts_add_up_to_the_whole() -> None:
    rows: dict[str, Predicted | str] = {**made_scenes(5), "x.jpg": "empty"}
    whole = Shares.of(table(rows), IDS)
    parts = Shares.zero(len(IDS))
    for name, own in rows.items():
        parts.add(Shares.of(table({name: own}), IDS))
    assert drift(whole, parts, SCENE_CATEGORIES) == drift(whole, whole, SCENE_CATEGORIES)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (shares(3, errors=1), None),  # a third, but one broken upload proves nothing
        (shares(6, errors=4), "4 of 6 images failed (truncated 4), 5 % are allowed"),
        (shares(1000, errors=50), None),
        (shares(1000, errors=80), "80 of 1,000 images failed"),
        (shares(4, empty=1), None),
        (shares(100, empty=40), "40 of 100 images show no segment, before 1.0 %"),
        (shares(10, first_class=7), None),
        (shares(500, first_class=400), "in 80.0 % of the images, before 50.0 %"),
        (shares(500, first_class=100), "in 20.0 % of the images, before 50.0 %"),
        (shares(500, first_class=280), None),
    ],
)
def test_a_night_is_stopped_by_what_is_shown(after: Shares, words: str | None) -> None:
    before = shares(10_000, errors=100, empty=99, first_class=4950)
    reasons = alarms(before, after, SCENE_CATEGORIES, LIMITS)
    assert len(reasons) == (words is not None)
    assert words is None or words in reasons[0]


def test_chance_stops_few_nights() -> None:
    rng = np.random.default_rng(3)
    stopped = 0
    limits = ShareLimits(error_rate=0.02, empty_rise=0, class_drift=0)
    for _ in range(500):
        before, after = shares(5_000), shares(300)
        for own in (before, after):
            own.errors["empty"] = int(rng.binomial(own.images, 0.02))
            own.empty = int(rng.binomial(own.ok, 0.05))
            own.with_class[:] = rng.binomial(own.ok, 0.3, len(IDS))
        stopped += bool(alarms(before, after, SCENE_CATEGORIES, limits))
    assert stopped / 500 <= 0.05
