"""Which rows a night is judged by: those that readers haven't seen, wherever they lie by now."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detr.panoptic import Panoptic, Segment
from pipeline.config import load_config
from pipeline.evaluation.evaluator import evaluate_run
from pipeline.nightly.release_gate import judge_quality, judge_shares
from pipeline.nightly.settings import NightlyConfig
from pipeline.run.folder import ShardEntry
from pipeline.run.run import Run
from pipeline.run.snapshots import RunSnapshot
from tests.factories import (
    MadeImage,
    add_generation,
    damaged,
    made_scenes,
    make_run,
    publish_run,
    shard_row,
    write_coco,
)

GOOD = Panoptic(np.ones((2, 2), np.uint8), (Segment(1, 1, True, 1.0),))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """8 good images, then 15 broken ones; a third generation copies 14 of those."""
    run = publish_run(tmp_path, [MadeImage(f"{n}.png", "/x", GOOD) for n in range(8)])
    broken = [MadeImage(f"{n}.png", "/x", "not_an_image") for n in range(100, 115)]
    add_generation(run, broken, number=2, shards=1)
    *stay, old = sorted(run.snapshot(2).shards, key=lambda entry: entry.path)
    copy = "segments/0003/kept-0002-000000.parquet"
    add_generation(run, broken[:14], number=3, shards=1)
    run.storage.write(copy, run.storage.read("segments/0003/shard-000000-of-000001.parquet"))
    assert old.path.startswith("segments/0002/")
    run.write_snapshot(3, [*stay, ShardEntry(copy, 14, 0, 14, 1)])
    return run


def reasons(run: Run, number: int, live: int) -> list[str]:
    config = load_config(NightlyConfig, {"source": "/x", "out": "/y", "weights": "r50"})
    return judge_shares(RunSnapshot(run, number), RunSnapshot(run, live), config, same_weights=True)


def test_rows_that_were_stopped_are_new_until_they_are_published(run: Run) -> None:
    assert "15 of 15 images failed" in reasons(run, 2, live=1)[0]
    assert "14 of 14 images failed" in reasons(run, 3, live=1)[0]  # though they were copied


def test_rows_that_are_live_are_not_judged_again(run: Run) -> None:
    assert reasons(run, 3, live=2) == []


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("spoilt", ["rows", "truth"])
def test_a_baseline_whose_evaluation_does_not_hold_is_evaluated_again(
    tmp_path: Path, spoilt: str
) -> None:
    scenes = made_scenes(12)
    predicted = {name: damaged(true, seed) for seed, (name, true) in enumerate(scenes.items())}
    truth = str(write_coco(tmp_path, "gt", scenes))
    older = str(write_coco(tmp_path / "older", "gt", dict(list(scenes.items())[:9])))
    before, after = (
        RunSnapshot(
            make_run(tmp_path / name, {n: shard_row(n, p) for n, p in predicted.items()}), 1
        )
        for name in ("before", "after")
    )
    evaluate_run(before.run.storage.url, older if spoilt == "truth" else truth)
    if spoilt == "rows":
        gone, *rest = before.rows("gt")
        assert rest
        before.run.storage.delete(gone)
    values = {"source": "/x", "out": "/y", "weights": "r50", "truth": truth}
    notes: list[str] = []
    judged = judge_quality(after, before, load_config(NightlyConfig, values), notes.append)
    assert judged.reasons == ()
    assert judged.comparison is not None
    assert judged.comparison.images == 12
    assert any("evaluating the baseline again" in note for note in notes)
