"""What a job says of itself when it ends, and what it writes down of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.layout import stats_path
from pipeline.progress import Progress
from pipeline.run.stats import record_stats
from pipeline.segmentation.job import few_segments
from pipeline.segmentation.pending import Owed, what_is_left
from pipeline.sharding import Generation
from tests.factories import Night


@pytest.mark.parametrize(
    ("there", "progress", "sentence"),
    [
        (
            1,
            Progress(100, done=20, shards=2, in_work=40),
            "3 of 10 shards are written, 40 images in work were lost",
        ),
        (0, Progress(100), "0 of 10 shards are written"),
        (
            0,
            Progress(100, in_work=1),
            "0 of 10 shards are written, 1 image in work was lost",
        ),
    ],
)
def test_a_stopped_job_says_what_is_written_and_what_was_lost(
    there: int, progress: Progress, sentence: str
) -> None:
    generation = Generation(1, "first", (10,) * 10, 0)
    todo = Owed({1: list(generation.units())[there:]}, [])
    assert what_is_left(generation, todo, progress) == sentence


def test_shards_that_others_lost_are_counted_with_the_generation_s() -> None:
    first, second = Generation(1, "first", (5, 5), 0), Generation(2, "refresh", (5,), 0)
    todo = Owed({1: list(first.units())[:1], 2: list(second.units())}, [])
    said = what_is_left(second, todo, Progress(10, done=5, shards=1, in_work=5))
    assert said == "1 of 2 shards are written, 5 images in work were lost"


@pytest.mark.parametrize(
    ("ok", "empty", "said"), [(20, 20, True), (20, 18, True), (20, 17, False), (0, 0, False)]
)
def test_images_of_which_hardly_any_has_a_segment_are_no_success(
    ok: int, empty: int, said: bool
) -> None:
    hint = few_segments(Progress(20, done=20, ok=ok, empty=empty), 0.85)
    assert (hint is not None) == said
    if hint:
        assert f"{empty} of 20 images have no segment" in hint
        assert "--threshold 0.85 asks" in hint
        assert "try --threshold 0.5" in hint


def test_statistics_hold_nothing_of_the_moment(tmp_path: Path) -> None:
    run = Night(tmp_path).run
    record_stats(run, 1, Progress(4, done=4, phase="x", empty=1, in_work=3, ahead=2, rate=1.0), {})
    [entry] = json.loads(run.storage.read(stats_path(1)))
    assert entry["done"] == 4
    assert not {"empty", "phase", "phase_seconds", "in_work", "ahead", "rate"} & {*entry}
