"""Two evaluations side by side: the same images, the same samples, differences that hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detr.categories import Categories, Category
from pipeline.errors import UserError
from pipeline.evaluation.compare import (
    Comparison,
    OtherTruthError,
    changes,
    compare,
)
from pipeline.evaluation.quality_gate import judge
from pipeline.panoptic.bootstrap import add_rows, image_weights
from pipeline.panoptic.figures import results
from pipeline.panoptic.pq import REPLICATES, Side, Sums, score
from pipeline.panoptic.score import score_rows
from pipeline.run.snapshots import IncompleteError, RunSnapshot, open_snapshot
from pipeline.train.synthetic import SCENE_CATEGORIES
from tests.factories import (
    POPULATION_CATEGORIES,
    ROWS,
    damaged,
    evaluate_rows,
    evaluated_run,
    made_population,
    made_scenes,
    make_run,
    shard_row,
    sides,
    truth_table,
)

TRUTH = made_scenes(12)
BETTER = {name: damaged(true, i) for i, (name, true) in enumerate(TRUTH.items())}
WORSE = {name: damaged(damaged(true, i), i + 100) for i, (name, true) in enumerate(TRUTH.items())}


def both(tmp_path: Path, a: dict[str, Any], b: dict[str, Any]) -> Comparison:
    left = evaluated_run(tmp_path / "a", a, TRUTH)
    right = evaluated_run(tmp_path / "b", b, TRUTH, per_shard=7)
    return compare(open_snapshot(left.storage.url), open_snapshot(right.storage.url))


def test_rows_add_up_to_the_very_sums_of_the_scoring(tmp_path: Path) -> None:
    run = make_run(tmp_path, {name: shard_row(name, own) for name, own in BETTER.items()})
    again = Sums.zero(len(SCENE_CATEGORIES))
    total = Sums.zero(len(SCENE_CATEGORIES))
    for shard in run.snapshot().shards:
        rows = run.read_shard(shard.path)
        partial, table = score_rows(rows, truth_table(TRUTH), SCENE_CATEGORIES.ids)
        total.add(partial.sums)
        add_rows(again, table, SCENE_CATEGORIES.ids)
    assert (again.counts == total.counts).all()
    assert (again.replicates == total.replicates).all()
    assert again.counts[..., 2].sum() > 10


def test_weights_are_poisson_and_the_same_each_time() -> None:
    hashes = np.arange(500, dtype=np.uint64) * np.uint64(2**50)
    weights = image_weights(hashes, REPLICATES)
    assert (weights == image_weights(hashes, REPLICATES)).all()
    for k in range(4):
        assert (weights == k).mean() == pytest.approx(math.exp(-1) / math.factorial(k), abs=0.005)


def evaluated_twice(tmp_path: Path) -> tuple[RunSnapshot, RunSnapshot]:
    """Two runs that were scored against TRUTH."""
    runs = [evaluated_run(tmp_path / name, BETTER, TRUTH, per_shard=3) for name in "ab"]
    a, b = (open_snapshot(run.storage.url) for run in runs)
    return a, b


def change_result(run_snapshot: RunSnapshot, **values: Any) -> None:
    """Write other values into `pq.json`; None takes one out."""
    place = f"evaluation/{run_snapshot.number:04d}/gt/pq.json"
    result = {**run_snapshot.result("gt"), **values}
    kept = {key: value for key, value in result.items() if value is not None}
    run_snapshot.run.storage.write(place, json.dumps(kept).encode())


def test_truth_of_swapped_categories_is_other_truth(tmp_path: Path) -> None:
    """As many true segments on each image, but of another category."""
    a, b = evaluated_twice(tmp_path)
    one, two, *_ = SCENE_CATEGORIES.ids
    swap = {one: two, two: one}
    swapped = {
        name: (
            segment_map,
            [{**s, "category_id": swap.get(s["category_id"], s["category_id"])} for s in segments],
        )
        for name, (segment_map, segments) in TRUTH.items()
    }
    evaluate_rows(b.run, swapped)
    with pytest.raises(OtherTruthError, match="used different ground truth"):
        compare(a, b)


def test_an_evaluation_that_lost_some_of_its_rows_is_refused(tmp_path: Path) -> None:
    a, b = evaluated_twice(tmp_path)
    assert compare(a, b).images == 12
    gone, *_ = b.rows("gt")
    b.run.storage.delete(gone)
    for pair in ((a, b), (b, a)):
        with pytest.raises(IncompleteError, match=r"per-image rows where 12 were scored"):
            compare(*pair)
    for path in b.rows("gt"):
        b.run.storage.delete(path)
    with pytest.raises(IncompleteError, match="has 0 per-image rows"):
        compare(a, b)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"complete": False}, r"before the snapshot was finished \(with \d+ shards?\)"),
        ({"truth_sha256": None}, "older version"),
    ],
)
def test_an_evaluation_that_does_not_say_enough_is_refused(
    tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    a, b = evaluated_twice(tmp_path)
    change_result(b, **values)
    with pytest.raises(IncompleteError, match=words):
        compare(a, b)


def test_rows_of_another_evaluation_at_work_are_not_read(tmp_path: Path) -> None:
    a, b = evaluated_twice(tmp_path)
    [path, *_] = b.rows("gt")
    other = path.replace(ROWS, "2026-11-27T010204.000000Z-ffffffff")
    b.run.storage.write(other, b.run.storage.read(path))
    assert compare(a, b).images == 12


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    found = both(tmp_path, BETTER, BETTER)
    for figures in found.groups.values():
        assert figures["pq"].difference == 0
        assert figures["pq"].interval == (0.0, 0.0)
    assert found.changed == ()
    assert judge(found, max_pq_drop=0, max_class_drop=0, min_segments=1).passed


def test_only_images_that_both_scored_count(tmp_path: Path) -> None:
    names = list(TRUTH)
    a = {name: BETTER[name] for name in names[:9]}
    b: dict[str, Any] = {name: WORSE[name] for name in names[3:]}
    b[names[4]] = "truncated"
    found = both(tmp_path, a, b)
    common = names[3:9]
    assert (found.images, found.only_a, found.only_b) == (6, 3, 3)
    for side, predictions in (("a", a), ("b", b)):
        rows = {name: shard_row(name, predictions[name]) for name in common}
        alone = make_run(tmp_path / f"alone-{side}", rows, per_shard=100)
        table = alone.read_shard(alone.snapshot().shards[0].path)
        partial, _ = score_rows(table, truth_table(TRUTH), SCENE_CATEGORIES.ids)
        expected = results(partial.sums, SCENE_CATEGORIES)
        for group, figures in found.groups.items():
            assert getattr(figures["pq"], side) == expected[group]["pq"]
            assert getattr(figures["rq"], side) == expected[group]["rq"]
        for own in found.classes:
            assert getattr(own.pq, side) == expected["per_class"][str(own.category_id)]["pq"]


def test_classes_and_images_are_listed_by_their_change(tmp_path: Path) -> None:
    found = both(tmp_path, BETTER, WORSE)
    drops = [own.pq.difference for own in found.classes]
    assert drops == sorted(drops)  # type: ignore[type-var]
    moves = [abs(image.b - image.a) for image in found.changed]
    assert moves == sorted(moves, reverse=True)
    assert {image.file_name for image in found.changed} <= set(TRUTH)
    change = found.groups["All"]["pq"]
    assert change.difference is not None
    assert change.interval is not None
    assert change.difference < 0
    assert change.interval[0] < change.difference < change.interval[1]


def test_other_truth_is_refused(tmp_path: Path) -> None:
    left = evaluated_run(tmp_path / "a", BETTER, TRUTH)
    other = {
        name: (segment_map, segments[1:]) if name == "000003.jpg" else (segment_map, segments)
        for name, (segment_map, segments) in TRUTH.items()
    }
    right = evaluated_run(tmp_path / "b", BETTER, other)
    with pytest.raises(UserError, match="used different ground truth"):
        compare(open_snapshot(left.storage.url), open_snapshot(right.storage.url))


def test_classes_that_only_the_truth_has_are_missed_and_no_other_is_charged(tmp_path: Path) -> None:
    kite = Category(100, "kite", True, (0, 0, 0))
    tram = Category(101, "tram", True, (0, 0, 0))
    more = Categories([*SCENE_CATEGORIES, kite])
    first, *rest = TRUTH.items()
    segments = [{**first[1][1][0], "category_id": kite.id}, *first[1][1][1:]]
    truth = {first[0]: (first[1][0], segments), **dict(rest)}
    runs = [
        evaluated_run(tmp_path / name, predicted, TRUTH)
        for name, predicted in (("a", BETTER), ("b", WORSE))
    ]
    for run in runs:
        evaluate_rows(run, truth, name="more", categories=more)
    a, b = (open_snapshot(run.storage.url) for run in runs)
    found = compare(a, b, "more")
    classes = {own.name: own for own in found.classes}
    assert (classes["kite"].segments, classes["kite"].pq.b) == (1, 0)
    sums = Sums.zero(len(more))
    for shard in runs[1].snapshot().shards:
        rows = runs[1].read_shard(shard.path)
        sums.add(score_rows(rows, truth_table(truth), more.ids)[0].sums)
    expected = results(sums, more)
    assert found.groups["All"]["pq"].b == expected["All"]["pq"]
    for own in found.classes:
        assert own.pq.b == expected["per_class"][str(own.category_id)]["pq"], own.name
    evaluate_rows(runs[0], truth, name="more", categories=Categories([*more, tram]))
    with pytest.raises(UserError, match="used different ground truth"):
        compare(a, b, "more")


def test_several_evaluations_are_told_apart_by_name(tmp_path: Path) -> None:
    run = evaluated_run(tmp_path / "a", BETTER, TRUTH)
    evaluate_rows(run, TRUTH, name="again")
    run_snapshot = open_snapshot(f"{run.storage.url}/snapshots/0001.parquet")
    with pytest.raises(UserError, match="evaluated as again and as gt: choose one with --name"):
        compare(run_snapshot, run_snapshot)
    assert compare(run_snapshot, run_snapshot, "again").truth == "again"


@pytest.mark.parametrize("samples", [100, pytest.param(300, marks=pytest.mark.slow(seconds=25))])
def test_intervals_of_a_difference_hold_it_and_classes_raise_few_false_alarms(samples: int) -> None:
    """Samples of a population on which two made models differ by a known amount."""
    population = made_population(1500)
    worse = []
    rng = np.random.default_rng(9)
    for predicted, segments, true, true_segments in population:
        gone = rng.integers(1, 9) if rng.random() < 0.3 else 0
        hidden = np.where(predicted == gone, 0, predicted)
        kept = [s for s in segments if s["id"] != gone]
        worse.append((hidden, kept, true, true_segments))
    models: list[Side] = []
    truth = sides(population, list(POPULATION_CATEGORIES.ids))[1]
    for images in (population, worse):
        models.append(sides(images, list(POPULATION_CATEGORIES.ids))[0])

    def sampled(rows: np.ndarray, seeds: np.ndarray) -> dict[str, Any]:
        both = []
        for model in models:
            own = Sums.zero(len(POPULATION_CATEGORIES))
            score(model, truth, own, prediction_rows=rows, truth_rows=rows, seeds=seeds)
            both.append(own)
        return changes(both, POPULATION_CATEGORIES)

    everything = np.arange(len(population))
    known = sampled(everything, everything.astype(np.uint64))
    true_drop = {own.category_id: -100 * own.pq.difference for own in known["classes"]}
    allowed = max(true_drop.values())  # no class drops by more: each alarm is a false one
    held, alarms, widths = 0, 0, []
    for repetition in range(samples):
        draw = np.random.default_rng(repetition)
        rows = draw.integers(0, len(population), 250)
        seeds = draw.integers(0, 2**64, 250, dtype=np.uint64)
        found = sampled(rows, seeds)
        pq = found["groups"]["All"]["pq"]
        held += pq.interval[0] <= known["groups"]["All"]["pq"].difference <= pq.interval[1]
        widths.append(pq.interval[1] - pq.interval[0])
        comparison = Comparison("a", "b", "gt", 250, 0, 0, changed=(), **found)
        alarms += not judge(comparison, max_class_drop=allowed).passed
    assert 0.90 <= held / samples <= 0.985
    assert alarms / samples <= 0.06
    # Pairing is worth it: the interval of one model alone is several times as wide.
    own = Sums.zero(len(POPULATION_CATEGORIES))
    rows = np.arange(250)
    score(
        models[0], truth, own, prediction_rows=rows, truth_rows=rows, seeds=rows.astype(np.uint64)
    )
    low, high = results(own, POPULATION_CATEGORIES)["All"]["pq_interval"]
    assert np.mean(widths) < 0.7 * (high - low)
