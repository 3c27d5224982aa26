"""A run scored by the actor: figures, counts, rows, and everything that can be wrong with it."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import ray

from detr.categories import Categories
from pipeline.errors import TryAgainError, UserError
from pipeline.evaluation.coco_files import evaluate_files
from pipeline.evaluation.evaluator import PqActor, evaluate_run, score_shard
from pipeline.evaluation.truth import load_truth
from pipeline.panoptic.score import InvalidError, Partial
from pipeline.run.publish import finish_generation
from pipeline.run.run import Run
from pipeline.run.snapshots import RunSnapshot
from pipeline.train.synthetic import SCENE_CATEGORIES
from tests.factories import damaged, made_scenes, make_run, shard_row, write_coco
from tests.pipeline.panoptic.plain_pq import plain_pq

pytestmark = pytest.mark.usefixtures("ray_session")

TRUTH = made_scenes(12)
PREDICTED = {name: damaged(true, i) for i, (name, true) in enumerate(TRUTH.items())}


def figures(result: dict) -> dict:
    return {key: result[key] for key in ("All", "Things", "Stuff", "per_class", "sizes")}


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_coco(tmp_path_factory.mktemp("truth"), "gt", TRUTH))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, truth: str) -> tuple[Run, dict]:
    rows = {name: shard_row(name, predicted) for name, predicted in PREDICTED.items()}
    field = pa.field("camera", pa.string())
    for number, row in enumerate(rows.values()):
        row["camera"] = "left" if number % 2 else "right"
    run = make_run(tmp_path_factory.mktemp("run"), rows, kept=(field,))
    return run, evaluate_run(run.storage.url, truth)


def test_equals_the_definition_on_pixels(evaluated: tuple[Run, dict]) -> None:
    _, result = evaluated
    expected = plain_pq([(*PREDICTED[name], *TRUTH[name]) for name in TRUTH])
    for category in SCENE_CATEGORIES:
        found = result["per_class"][str(category.id)]
        plain = expected.get(category.id)
        counts = (plain.tp, plain.fp, plain.fn) if plain else (0, 0, 0)
        assert (found["tp"], found["fp"], found["fn"]) == counts
        assert found["iou"] == (math.fsum(plain.ious) if plain else 0.0)
    assert result["images"]["scored"] == 12
    assert 0 < result["All"]["pq"] < 1
    low, high = result["All"]["pq_interval"]
    assert low < result["All"]["pq"] < high


def test_any_number_of_shards_gives_the_same_bits(
    tmp_path: Path, evaluated: tuple[Run, dict], truth: str
) -> None:
    rows = {name: shard_row(name, predicted) for name, predicted in PREDICTED.items()}
    run = make_run(tmp_path, rows, per_shard=1)
    result = evaluate_run(run.storage.url, truth)
    assert result["shards"] > evaluated[1]["shards"]
    assert figures(result) == figures(evaluated[1])


def test_coco_files_score_as_the_run_does(
    tmp_path: Path, evaluated: tuple[Run, dict], truth: str
) -> None:
    predictions = write_coco(tmp_path, "pred", PREDICTED)
    assert figures(evaluate_files(str(predictions), truth)) == figures(evaluated[1])


def test_a_part_delivered_twice_counts_once(evaluated: tuple[Run, dict]) -> None:
    run, _ = evaluated
    folder = "evaluation/0001/gt"
    ready = load_truth(run.storage, f"{folder}/truth")
    assert ready is not None
    path = run.snapshot().shards[0].path
    part = score_shard(run, path, ready[0], folder)
    actor: Any = PqActor.remote(ready[0].category_list)
    assert ray.get([actor.add.remote(path, part) for _ in range(3)]) == [True, False, False]
    total: Partial = ray.get(actor.total.remote())
    assert total.sums.counts.tobytes() == part.sums.counts.tobytes()


def test_writes_figures_and_a_row_per_image(evaluated: tuple[Run, dict]) -> None:
    run, result = evaluated
    folder = Path(run.storage.url) / "evaluation/0001/gt"
    assert json.loads((folder / "pq.json").read_text()) == result
    rows = f"from read_parquet('{folder}/{result['per_image']}/*.parquet')"
    assert result["rows"] == len(TRUTH)
    names = duckdb.execute(f"select file_name {rows} order by 1").fetchall()
    assert names == [(name,) for name in sorted(TRUTH)]
    query = f"select camera, sum(tp), sum(fp), sum(fn) {rows} group by camera order by camera"
    by_camera = duckdb.execute(query).fetchall()
    assert [row[0] for row in by_camera] == ["left", "right"]
    totals = [sum(c[k] for c in result["per_class"].values()) for k in ("tp", "fp", "fn")]
    assert [sum(row[k] for row in by_camera) for k in (1, 2, 3)] == totals
    classes = duckdb.execute(f"from read_parquet('{folder}/per_class.parquet')").fetchall()
    assert len(classes) == len(SCENE_CATEGORIES)
    assert result["worst"] == sorted(result["worst"], key=lambda w: (w["pq"], w["file_name"]))


@pytest.mark.parametrize("at", ["converting", "shards"])
def test_two_evaluations_of_one_name_at_a_time_do_not_mix(
    tmp_path: Path, evaluated: tuple[Run, dict], truth: str, at: str
) -> None:
    """The second, against other truth, is made while the first is at work."""
    rows = {name: shard_row(name, predicted) for name, predicted in PREDICTED.items()}
    run = make_run(tmp_path / "run", rows, per_shard=5)
    other = write_coco(tmp_path / "other", "gt", dict(list(TRUTH.items())[:7]))
    second: list[dict] = []

    def note(text: str) -> None:
        if at in text and not second:
            second.append(evaluate_run(run.storage.url, str(other)))

    first = evaluate_run(run.storage.url, truth, note=note)
    assert figures(first) == figures(evaluated[1])
    assert second[0]["images"]["scored"] == 7
    run_snapshot = RunSnapshot(run, 1)
    assert run_snapshot.result("gt") == first
    table = pa.concat_tables(run_snapshot.per_image("gt", ("file_name", "status")))
    assert sorted(table["file_name"].to_pylist()) == sorted(TRUTH)
    assert table["status"].to_pylist().count("scored") == 12
    left = {entry.path.split("/")[4] for entry in run.storage.list("evaluation/0001/gt/per_image")}
    assert left == {first["per_image"].rpartition("/")[2]}
    assert first["truth_sha256"] != second[0]["truth_sha256"]


def test_rows_stay_readable_until_an_evaluation_ends(tmp_path: Path, truth: str) -> None:
    rows = {name: shard_row(name, predicted) for name, predicted in PREDICTED.items()}
    run = make_run(tmp_path, rows, per_shard=5)
    run_snapshot = RunSnapshot(run, 1)
    seen: list[int] = []

    def note(text: str) -> None:
        if "shards" in text:
            seen.append(sum(table.num_rows for table in run_snapshot.per_image("gt", ("hash",))))

    evaluate_run(run.storage.url, truth)
    evaluate_run(run.storage.url, truth, note=note)
    assert seen
    assert set(seen) == {12}


def test_the_same_truth_has_the_same_hash_wherever_it_lies(
    tmp_path: Path, evaluated: tuple[Run, dict], truth: str
) -> None:
    run = make_run(tmp_path / "run", {n: shard_row(n, t) for n, t in TRUTH.items()})
    shutil.copytree(Path(truth).parent, tmp_path / "elsewhere")
    result = evaluate_run(run.storage.url, str(tmp_path / "elsewhere" / Path(truth).name))
    assert result["truth_sha256"] == evaluated[1]["truth_sha256"]


def test_truth_scored_as_prediction_is_perfect(tmp_path: Path, truth: str) -> None:
    run = make_run(tmp_path, {name: shard_row(name, true) for name, true in TRUTH.items()})
    result = evaluate_run(run.storage.url, truth)
    assert {result[g]["pq"] for g in ("All", "Things", "Stuff")} == {1.0}
    for entry in result["per_class"].values():
        assert entry["pq"] == (1.0 if entry["tp"] else 0.0)
        assert not entry["fp"]
        assert not entry["fn"]
    assert evaluate_files(truth, truth)["All"]["pq"] == 1.0


def test_images_without_truth_or_prediction_and_failed_ones_are_counted(tmp_path: Path) -> None:
    names = list(TRUTH)
    predicted = {**{n: TRUTH[n] for n in names[:9]}, **made_scenes(2, first=50)}
    rows = {name: shard_row(name, p) for name, p in predicted.items()}
    rows[names[0]] = shard_row(names[0], "truncated")
    truth = write_coco(tmp_path, "gt", TRUTH)
    result = evaluate_run(make_run(tmp_path / "run", rows).storage.url, str(truth))
    assert result["images"] == {
        "scored": 8,
        "failed": 1,
        "without_truth": 2,
        "without_prediction": 3,
        "invalid": 0,
    }
    assert result["named"] == {
        "failed": [names[0]],
        "without_truth": ["000050.jpg", "000051.jpg"],
        "without_prediction": names[9:],
    }
    missed = sum(entry["fn"] for entry in result["per_class"].values())
    assert missed == len(TRUTH[names[0]][1])


def test_an_unfinished_run_is_scored_as_far_as_it_is(tmp_path: Path, truth: str) -> None:
    rows = {name: shard_row(name, true) for name, true in TRUTH.items()}
    run = make_run(tmp_path, rows, shards=1)
    result = evaluate_run(run.storage.url, truth)
    assert (result["complete"], result["shards"]) == (False, 1)
    scored = result["images"]["scored"]
    assert 0 < scored < 12
    assert result["images"]["without_prediction"] == 12 - scored
    assert len(result["named"]["without_prediction"]) == min(5, 12 - scored)


FIRST, SECOND = (segment["id"] for segment in TRUTH["000003.jpg"][1][:2])


def overlapping(name: str) -> dict:
    row = shard_row(name, TRUTH[name])
    row["counts"] = [row["counts"][1], *row["counts"][1:]]
    return row


def resized(name: str) -> dict:
    segment_map, segments = TRUTH[name]
    return shard_row(name, (np.ascontiguousarray(segment_map[:, :-8]), segments))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (overlapping, f"segment {SECOND} of the prediction overlaps segment {FIRST}"),
        (resized, "(height x width), the truth"),
        (lambda name: {**shard_row(name, TRUTH[name]), "category_id": [99] * len(TRUTH[name][1])},
         "its category 99 is not in the truth's categories"),
    ],
)  # fmt: skip
def test_an_invalid_image_is_named_and_the_rest_is_scored(
    tmp_path: Path, truth: str, change, words: str
) -> None:
    bad = "000003.jpg"
    rows = {name: shard_row(name, true) for name, true in TRUTH.items()}
    rows[bad] = change(bad)
    run = make_run(tmp_path, rows)
    with pytest.raises(InvalidError) as caught:
        evaluate_run(run.storage.url, truth)
    message = str(caught.value)
    assert message.startswith("segments/0001/shard-")
    assert f"image '{bad}'" in message
    assert words in message
    written = json.loads((tmp_path / "evaluation/0001/gt/pq.json").read_text())
    assert written["images"]["scored"] == 11
    assert [entry["image"] for entry in written["invalid"]] == [bad]
    assert written["All"]["pq"] == 1.0


def test_a_broken_shard_is_named_and_the_rest_is_scored(tmp_path: Path, truth: str) -> None:
    run = make_run(tmp_path, {name: shard_row(name, true) for name, true in TRUTH.items()})
    shard = run.snapshot().shards[0]
    (tmp_path / shard.path).write_bytes(b"PAR1 no more")
    with pytest.raises(InvalidError, match=shard.path):
        evaluate_run(run.storage.url, truth)
    written = json.loads((tmp_path / "evaluation/0001/gt/pq.json").read_text())
    assert written["images"]["scored"] == 12 - shard.rows
    assert written["invalid"][0]["shard"] == shard.path


def test_truth_of_other_categories_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {n: shard_row(n, t) for n, t in TRUTH.items()})
    other = Categories.from_json([{"id": 1, "name": "cat", "isthing": 1}])
    truth = write_coco(tmp_path, "gt", TRUTH, categories=other)
    with pytest.raises(UserError, match=r"category 1 is .ball. .* and .cat."):
        evaluate_run(run.storage.url, str(truth))


def test_follow_takes_shards_as_they_come(tmp_path: Path, truth: str) -> None:
    """A job that commits its shards while it is being scored."""
    rows = {name: shard_row(name, true) for name, true in TRUTH.items()}
    whole = make_run(tmp_path / "whole", rows)
    run = make_run(tmp_path / "run", rows, shards=1)
    later = [shard.path for shard in whole.snapshot().shards[1:]]
    notes: list[str] = []

    def go_on() -> None:
        for path in later:
            run.storage.write(path, whole.storage.read(path))
        finish_generation(run, run.generation(1), run.present(1), max_error_rate=1.0)

    timer = threading.Timer(4.0, go_on)
    timer.start()
    result = evaluate_run(run.storage.url, truth, follow=True, note=notes.append)
    timer.join()
    assert result["complete"]
    assert result["images"]["scored"] == 12
    assert len([note for note in notes if "PQ 100.00" in note]) >= 2


class Deadly(Run):
    """A run whose shards end the process that reads them, as one too large for its memory does."""

    def read_shard(self, path: str, *rest: Any, **named: Any) -> pa.Table:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.mark.slow(seconds=20)
def test_a_shard_that_ends_its_worker_each_time_ends_the_evaluation(
    tmp_path: Path, truth: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a job of this process told Ray to try its tasks for ever."""
    made = make_run(tmp_path, {n: shard_row(n, t) for n, t in TRUTH.items()}, per_shard=100)
    monkeypatch.setenv("RAY_TASK_MAX_RETRIES", "-1")
    run = Deadly(made.storage, made.info)
    monkeypatch.setattr("pipeline.evaluation.evaluator.open_run", lambda *options: run)
    with pytest.raises(TryAgainError, match="lost a task of the evaluation 4 times"):
        evaluate_run(run.storage.url, truth)
