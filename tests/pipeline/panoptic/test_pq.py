"""PQ against its definition on pixels, and the bits of its sums."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detr.categories import Categories
from pipeline.panoptic.figures import results
from pipeline.panoptic.pq import REPLICATES, Side, Sums, fault_sentence, score
from tests.factories import PREDICTION_SCHEMA, Scene, prediction_row, score_images, sides
from tests.pipeline.panoptic.plain_pq import plain_pq

CATEGORY_IDS = [7, 1, 200, 92]
CATEGORIES = Categories.from_json(
    [{"id": i, "name": f"c{i}", "isthing": int(i in (1, 7))} for i in CATEGORY_IDS]
)


@st.composite
def maps(draw: st.DrawFn) -> Scene:
    """A prediction and a truth of one size: independent, or one a disturbance of the other."""
    height = draw(st.integers(1, 9))
    width = draw(st.sampled_from([1, 2, 5, 8, 70]))
    labels = draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([1, 3]))
    true = rng.integers(0, labels + 1, (height, width))
    true = np.repeat(np.repeat(true, scale, axis=0), scale, axis=1)
    if draw(st.booleans()):
        changed = rng.random(true.shape) < draw(st.sampled_from([0.0, 0.1, 0.4]))
        predicted = np.where(changed, rng.integers(0, labels + 1, true.shape), true)
    else:
        predicted = rng.integers(0, labels + 1, true.shape)
    wide = draw(st.booleans())

    def renamed(labelled: NDArray[Any]) -> tuple[NDArray[Any], list[int]]:
        pool = (
            rng.choice(2**24 - 1, size=labels, replace=False) + 1 if wide else 1 + np.arange(labels)
        )
        names = np.concatenate([[0], pool]).astype(np.int64)
        return names[labelled], names[1:].tolist()

    true_map, true_names = renamed(true)
    predicted_map, predicted_names = renamed(predicted)
    categories = rng.choice(CATEGORY_IDS, size=labels)
    same = draw(st.booleans())
    true_segments = [
        {"id": i, "category_id": int(c), "iscrowd": int(rng.random() < 0.25)}
        for i, c in zip(true_names, categories, strict=True)
        if rng.random() < 0.9  # the others are in the map but not in the JSON
    ]
    rng.shuffle(true_segments)  # type: ignore[arg-type]
    present = set(np.unique(predicted_map).tolist())
    predicted_segments = [
        {"id": i, "category_id": int(c if same else rng.choice(CATEGORY_IDS))}
        for i, c in zip(predicted_names, categories, strict=True)
        if i in present
    ]
    return predicted_map, predicted_segments, true_map, true_segments


def assert_as_plain(images: list[Scene], sums: Sums) -> None:
    expected = plain_pq(images)
    iou = sums.class_iou()
    for position, category_id in enumerate(CATEGORY_IDS):
        tp, fp, fn = sums.counts[position, :, 2:].sum(axis=0).tolist()
        plain = expected.get(category_id)
        assert (tp, fp, fn) == ((plain.tp, plain.fp, plain.fn) if plain else (0, 0, 0))
        assert iou[position] == (math.fsum(plain.ious) if plain else 0.0)


@settings(max_examples=400, deadline=None)
@given(st.lists(maps(), min_size=1, max_size=4))
def test_equals_the_definition_on_pixels(images: list[Scene]) -> None:
    sums, scored = score_images(images, CATEGORY_IDS)
    assert not scored.faults.any()
    assert_as_plain(images, sums)


def test_hundreds_of_segments() -> None:
    rng = np.random.default_rng(3)
    true = np.arange(400).repeat(12).reshape(80, 60) + 1
    predicted = np.where(rng.random(true.shape) < 0.2, rng.integers(1, 500, true.shape), true)
    true_segments = [
        {"id": i, "category_id": CATEGORY_IDS[i % 4], "iscrowd": int(i % 19 == 0)}
        for i in range(1, 401)
    ]
    predicted_segments = [
        {"id": int(i), "category_id": CATEGORY_IDS[i % 4]} for i in np.unique(predicted)
    ]
    images: list[Scene] = [(predicted, predicted_segments, true, true_segments)]
    sums, _ = score_images(images, CATEGORY_IDS)
    assert sums.counts[:, :, 2].sum() > 200
    assert_as_plain(images, sums)


def one(
    predicted: list[list[int]],
    predicted_categories: dict[int, int],
    true: list[list[int]],
    true_segments: list[tuple[int, int, int]],
) -> dict[int, list[int]]:
    """TP, FP, FN of each category that has any. true_segments: (id, category, iscrowd)."""
    image: Scene = (
        np.array(predicted),
        [{"id": i, "category_id": c} for i, c in predicted_categories.items()],
        np.array(true),
        [{"id": i, "category_id": c, "iscrowd": w} for i, c, w in true_segments],
    )
    sums, scored = score_images([image], CATEGORY_IDS)
    assert not scored.faults.any()
    assert_as_plain([image], sums)
    found = {c: sums.counts[i, :, 2:].sum(axis=0).tolist() for i, c in enumerate(CATEGORY_IDS)}
    return {c: counts for c, counts in found.items() if any(counts)}


def test_an_iou_of_exactly_one_half_is_no_match() -> None:
    # 2 pixels in common of 4
    assert one([[1, 1, 1, 0]], {1: 7}, [[2, 2, 3, 2]], [(2, 7, 0), (3, 1, 0)]) == {
        7: [0, 1, 1],
        1: [0, 0, 1],
    }


def test_void_leaves_the_union() -> None:
    # IoU would be 2 / 5 with the void pixels counted, is 2 / 3 without
    assert one([[1, 1, 1, 1, 0]], {1: 7}, [[2, 2, 0, 0, 2]], [(2, 7, 0)]) == {7: [1, 0, 0]}


def test_void_in_the_prediction_is_not_forgiven() -> None:
    assert one([[1, 0, 0]], {1: 7}, [[2, 2, 2]], [(2, 7, 0)]) == {7: [0, 1, 1]}


def test_a_prediction_mostly_on_void_is_ignored() -> None:
    assert one([[1, 1, 1, 0]], {1: 7}, [[0, 0, 2, 2]], [(2, 1, 0)]) == {1: [0, 0, 1]}


def test_a_prediction_half_on_void_is_a_false_positive() -> None:
    assert one([[1, 1]], {1: 7}, [[0, 2]], [(2, 1, 0)]) == {7: [0, 1, 0], 1: [0, 0, 1]}


def test_a_crowd_is_neither_matched_nor_missed() -> None:
    assert one([[1, 1]], {1: 7}, [[2, 2]], [(2, 7, 1)]) == {}


def test_only_the_last_crowd_of_a_class_forgives() -> None:
    first, last = (2, 7, 1), (3, 7, 1)
    assert one([[1, 1, 0]], {1: 7}, [[2, 2, 3]], [first, last]) == {7: [0, 1, 0]}
    assert one([[1, 1, 0]], {1: 7}, [[2, 2, 3]], [last, first]) == {}


def test_the_last_crowd_counts_even_without_pixels() -> None:
    assert one([[1, 1]], {1: 7}, [[2, 2]], [(2, 7, 1), (3, 7, 1)]) == {7: [0, 1, 0]}


def test_a_crowd_of_another_class_does_not_forgive() -> None:
    assert one([[1, 1]], {1: 7}, [[2, 2]], [(2, 1, 1)]) == {7: [0, 1, 0]}


def test_a_listed_true_segment_without_pixels_is_missed() -> None:
    assert one([[1, 1]], {1: 7}, [[2, 2]], [(2, 7, 0), (9, 1, 0)]) == {7: [1, 0, 0], 1: [0, 0, 1]}


def test_unlisted_true_pixels_are_neither_segment_nor_void() -> None:
    assert one([[1, 1]], {1: 7}, [[5, 5]], []) == {7: [0, 1, 0]}


def test_zero_listed_in_a_prediction_is_an_ordinary_segment() -> None:
    assert one([[0, 0]], {0: 7}, [[2, 2]], [(2, 7, 0)]) == {7: [1, 0, 0]}


def made_images(count: int) -> list[Scene]:
    rng = np.random.default_rng(11)
    images: list[Scene] = []
    for _ in range(count):
        true = rng.integers(0, 5, (6, 4)).repeat(3, axis=0).repeat(5, axis=1)
        predicted = np.where(rng.random(true.shape) < 0.15, 0, true)
        segments = [
            {"id": i, "category_id": CATEGORY_IDS[i - 1], "iscrowd": 0} for i in range(1, 5)
        ]
        here = set(np.unique(predicted).tolist())
        images.append((predicted, [s for s in segments if s["id"] in here], true, segments))
    return images


def bits(sums: Sums) -> tuple[bytes, bytes, list[tuple[tuple[int, int], int]]]:
    return sums.counts.tobytes(), sums.replicates.tobytes(), sorted(sums.confusion.items())


def test_sums_are_the_same_bits_in_any_order_and_sharding() -> None:
    images = made_images(60)
    whole, _ = score_images(images, CATEGORY_IDS)
    order = list(range(60))
    for shuffle in range(20):
        random.Random(shuffle).shuffle(order)
        merged = Sums.zero(len(CATEGORY_IDS), replicates=8)
        size = 1 + 3 * shuffle
        for first in range(0, 60, size):
            part, _ = score_images(images, CATEGORY_IDS, order[first : first + size])
            merged.add(part)
        assert bits(merged) == bits(whole)


def test_an_image_weighs_the_same_in_every_run() -> None:
    """Replicates depend on the hash alone, and weights are Poisson(1)."""
    image = made_images(1)
    predictions, truth = sides(image, CATEGORY_IDS)
    zeros = np.zeros(4000, dtype=np.int64)
    sums = Sums.zero(len(CATEGORY_IDS), REPLICATES)
    seeds = np.random.default_rng(0).integers(0, 2**64, 4000, dtype=np.uint64)
    score(predictions, truth, sums, prediction_rows=zeros, truth_rows=zeros, seeds=seeds)
    per_image = sums.counts[:, :, 2].sum() / 4000
    weights = sums.replicates[1].sum(axis=0) / per_image  # (replicates,): Poisson(4000)
    assert abs(weights.mean() / 4000 - 1) < 0.005
    assert 0.8 < weights.std() / math.sqrt(4000) < 1.2


TWO = np.array([[1, 1, 2], [1, 2, 2]])
TWO_SEGMENTS = [{"id": 1, "category_id": 7}, {"id": 2, "category_id": 1}]


@pytest.mark.parametrize(
    ("change", "sentence", "segment"),
    [
        ({"counts": ["033", "1"]}, "segment 2 of the prediction: the RLE covers 1 of the 6", 2),
        ({"counts": ["033", "/"]}, "segment 2 of the prediction: the RLE string has a bad", 2),
        ({"counts": ["0P", "06"]}, "segment 1 of the prediction: the RLE string ends inside", 1),
        ({"counts": ["06", "06"]}, "segment 2 of the prediction overlaps segment 1", 2),
        ({"counts": ["07", "06"]}, "segment 1 of the prediction: the RLE runs past the end", 1),
        ({"counts": ["06", "6"]}, "segment 2 of the prediction: the RLE has no pixels", 2),
        ({"category_id": [7, 3]}, "segment 2 of the prediction: its category 3 is not in", 2),
        (
            {"height": 3, "width": 2},
            "the prediction is 3 x 2 (height x width), the truth 2 x 3",
            None,
        ),
    ],
)
def test_a_fault_adds_nothing_and_is_named(
    change: dict[str, Any], sentence: str, segment: int | None
) -> None:
    good = prediction_row("good", TWO, TWO_SEGMENTS)
    table = pa.Table.from_pylist([good, {**good, **change}, good], PREDICTION_SCHEMA)
    predictions = Side.from_rows(table, CATEGORY_IDS)
    _, truth = sides([(TWO, TWO_SEGMENTS, TWO, TWO_SEGMENTS)] * 3, CATEGORY_IDS)
    sums = Sums.zero(len(CATEGORY_IDS), replicates=8)
    rows = np.arange(3)
    seeds = np.arange(3, dtype=np.uint64)
    found = score(predictions, truth, sums, prediction_rows=rows, truth_rows=rows, seeds=seeds)
    assert found.faults[:, 0].astype(bool).tolist() == [False, True, False]
    assert sums.counts[:, :, 2:].sum(axis=(1, 0)).tolist() == [4, 0, 0]
    reason, named = fault_sentence(
        found.faults[1], predictions, truth, prediction_row=1, truth_row=1
    )
    assert reason.startswith(sentence)
    assert named == segment


def test_results_follow_panopticapi() -> None:
    """Class 7: TP with IoU 2/3 and one FN; class 1: one FP; class 200 and 92: absent."""
    predicted = np.array([[1, 1, 0, 0, 3]])
    true = np.array([[2, 2, 2, 4, 5]])
    segments = [{"id": 1, "category_id": 7}, {"id": 3, "category_id": 1}]
    true_segments = [{"id": 2, "category_id": 7}, {"id": 4, "category_id": 7}]
    sums, _ = score_images([(predicted, segments, true, true_segments)], CATEGORY_IDS)
    found = results(sums, CATEGORIES)
    seven = {
        "pq": (2 / 3) / 1.5,
        "sq": 2 / 3,
        "rq": 1 / 1.5,
        "iou": 2 / 3,
        "tp": 1,
        "fp": 0,
        "fn": 1,
    }
    assert {k: found["per_class"]["7"][k] for k in seven} == pytest.approx(seven)
    assert found["per_class"]["1"]["fp"] == 1
    things = found["Things"]
    assert things["n"] == 2
    assert things["pq"] == pytest.approx((2 / 3) / 1.5 / 2)
    assert things["sq"] == pytest.approx(1 / 3)
    assert things["rq"] == pytest.approx(1 / 3)
    assert found["All"]["n"] == 2
    assert found["Stuff"] == {"pq": None, "sq": None, "rq": None, "n": 0}


def test_sizes_are_of_the_true_segment_and_of_a_false_positive_its_own() -> None:
    true = np.zeros((200, 200), dtype=np.int32)
    true[:31, :31] = 1  # small
    true[50:100, :60] = 2  # medium
    true[100:, :] = 3  # large
    predicted = np.where(true == 2, 0, true)
    predicted[:10, 100:140] = 9  # small, on void but for nothing
    true[:10, 100:140] = 4
    segments = [{"id": i, "category_id": 7} for i in (1, 3, 9)]
    true_segments = [{"id": i, "category_id": 7} for i in (1, 2, 3)]
    sums, _ = score_images([(predicted, segments, true, true_segments)], CATEGORY_IDS)
    assert sums.counts[0, :, 2:].tolist() == [[1, 1, 0], [0, 0, 1], [1, 0, 0]]


def test_confusion_counts_pairs_of_other_classes() -> None:
    predicted, true = np.array([[1, 1, 1, 2]]), np.array([[5, 5, 5, 6]])
    segments = [{"id": 1, "category_id": 7}, {"id": 2, "category_id": 1}]
    true_segments = [{"id": 5, "category_id": 200}, {"id": 6, "category_id": 1}]
    sums, _ = score_images([(predicted, segments, true, true_segments)], CATEGORY_IDS)
    assert results(sums, CATEGORIES)["confusion"] == [{"truth": 200, "prediction": 7, "count": 1}]
