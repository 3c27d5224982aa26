"""The progress actor's arithmetic: a shard counts once, and the budget ends what goes wrong."""

from __future__ import annotations

import time

import pytest

from pipeline.cluster.progress_actor import ProgressActor, Rate
from pipeline.error_budget import Failures, FirstTries


def failed(**codes: int) -> dict[str, Failures]:
    return {code: Failures(count, "s3://b/x", "why") for code, count in codes.items()}


def written(
    progress_actor: ProgressActor, shard: str, images: int, failures: dict[str, Failures]
) -> str | None:
    return progress_actor.written(shard, images=images, failures=failures, segments=3, size=10)


def test_a_shard_that_is_written_twice_counts_once() -> None:
    progress_actor = ProgressActor(total=20, max_error_rate=1)
    for _ in range(2):
        written(progress_actor, "a", 10, failed(empty=1))
    progress = progress_actor.progress()
    assert (progress.done, progress.ok, progress.error, progress.shards) == (10, 9, 1, 1)
    assert progress.codes == {"empty": 1}


def test_the_first_images_alone_stop_no_job() -> None:
    progress_actor = ProgressActor(total=1000, max_error_rate=0.05)
    assert progress_actor.fetched("a", 119, failed(forbidden=119)) is None
    reason = progress_actor.fetched("b", 1, failed(forbidden=1))
    assert reason is not None
    assert "120 of 120 images failed (forbidden 120)" in reason


def test_a_rate_that_is_not_shown_to_be_above_the_limit_stops_no_job() -> None:
    progress_actor = ProgressActor(total=1000, max_error_rate=0.05)
    assert written(progress_actor, "a", 400, failed(empty=20)) is None
    assert written(progress_actor, "b", 20, failed(empty=2)) is None
    assert written(progress_actor, "c", 80, failed(empty=40)) is not None


def test_images_that_failed_before_do_not_stop_the_job_that_tries_them_again() -> None:
    progress_actor = ProgressActor(total=6000, max_error_rate=0.05)
    new = FirstTries(1000, failed(empty=10))
    both = {"images": 5000, "failures": failed(timeout=4000, empty=10), "segments": 3, "size": 10}
    assert progress_actor.fetched("a", 1000, failed(empty=10)) is None
    assert progress_actor.written("a", first_tries=new, **both) is None
    assert progress_actor.progress().codes == {"timeout": 4000, "empty": 10}


def test_a_fetch_and_its_shard_are_one_outcome() -> None:
    progress_actor = ProgressActor(total=1000, max_error_rate=0.05)
    assert progress_actor.fetched("a", 400, failed(timeout=15)) is None
    assert written(progress_actor, "a", 400, failed(timeout=15, empty=5)) is None
    assert (
        progress_actor.fetched("a", 400, failed(timeout=400)) is None
    )  # fetched again: it is written


def test_a_reason_to_stop_stays_one_when_more_images_are_good() -> None:
    progress_actor = ProgressActor(total=1000, max_error_rate=0.05)
    reason = progress_actor.fetched("a", 200, failed(forbidden=40), done=False)
    assert reason is not None
    assert progress_actor.fetched("b", 300, {}) == reason
    assert progress_actor.verdict() == reason
    assert "40 of 200 images failed" in reason


def test_reports_of_a_fetch_under_way_replace_each_other() -> None:
    progress_actor = ProgressActor(total=1000, max_error_rate=0.5)
    for images in (300, 350, 400):
        assert progress_actor.fetched("a", images, failed(timeout=150), done=False) is None
    assert progress_actor.seen_fetched == 400
    assert progress_actor.failed_fetches["timeout"].count == 150


def test_a_written_shard_is_no_longer_under_way() -> None:
    progress_actor = ProgressActor(total=10, max_error_rate=1)
    assert progress_actor.began("fetching", "1/0") == 1
    progress_actor.fetched("1/0", 5, {})
    assert progress_actor.began("segmenting", "1/0") == 1
    assert progress_actor.flow().states == {"segmenting": 1}
    written(progress_actor, "1/0", 5, {})
    assert progress_actor.flow().states == {}


def test_starts_of_a_shard_whose_workers_die_are_counted_by_stage() -> None:
    progress_actor = ProgressActor(total=10, max_error_rate=1)
    starts = [progress_actor.began("segmenting", "1/7") for _ in range(3)]
    assert starts == [1, 2, 3]
    assert progress_actor.began("writing", "1/7") == 1
    assert progress_actor.flow().troubled == ("1/7", "segmenting", 3)


def test_reports_cost_the_same_at_the_last_of_20_000_shards() -> None:
    progress_actor = ProgressActor(total=20_000, max_error_rate=1)

    def seconds(first: int) -> float:
        start = time.process_time()
        for shard in range(first, first + 1_000):
            progress_actor.fetched(str(shard), 1, {})
            written(progress_actor, str(shard), 1, failed(empty=1))
        return time.process_time() - start

    spent = [seconds(first) for first in range(0, 20_000, 1_000)]
    assert min(spent[-5:]) < 5 * min(spent[:5])


def test_images_count_as_the_model_finishes_them() -> None:
    progress_actor = ProgressActor(total=40, max_error_rate=1)
    progress_actor.began("segmenting", "1/0")
    progress_actor.began("segmenting", "1/1")
    progress_actor.advanced("1/0", 7, 10)
    progress_actor.advanced("1/1", 0, 10)
    progress = progress_actor.progress()
    assert (progress.done, progress.finished, progress.in_work) == (0, 7, 20)
    written(progress_actor, "1/0", 10, {})
    progress_actor.advanced("1/0", 7, 10)  # late, from another process than the write
    progress = progress_actor.progress()
    assert (progress.done, progress.finished, progress.in_work) == (10, 10, 10)


def test_what_a_dead_worker_had_finished_is_finished_no_more() -> None:
    progress_actor = ProgressActor(total=20, max_error_rate=1)
    progress_actor.began("segmenting", "1/0")
    progress_actor.advanced("1/0", 9, 10)
    progress_actor.began("segmenting", "1/0")
    assert progress_actor.progress().finished == 0


def test_what_the_first_image_waits_for_is_said() -> None:
    progress_actor = ProgressActor(total=20, max_error_rate=1)
    phases = [progress_actor.progress().phase]
    progress_actor.began("fetching", "1/0")
    progress_actor.model("loading")
    phases.append(progress_actor.progress().phase)
    progress_actor.model("loaded")
    phases.append(progress_actor.progress().phase)
    progress_actor.began("segmenting", "1/0")
    phases.append(progress_actor.progress().phase)
    progress_actor.advanced("1/0", 1, 10)
    phases.append(progress_actor.progress().phase)
    assert phases == ["starting", "model loading", "fetching", "first batch", ""]


def test_the_time_before_the_model_had_work_is_no_part_of_a_call_s_seconds() -> None:
    progress_actor = ProgressActor(total=20, max_error_rate=1)
    progress_actor.started -= 60
    progress_actor.began("segmenting", "1/0")
    progress_actor.advanced("1/0", 10, 10)
    written(progress_actor, "1/0", 10, {})
    assert progress_actor.progress().seconds < 30


def test_a_rate_needs_ten_images_and_forgets_what_was_long_ago() -> None:
    rate = Rate()
    assert rate.read(0, 50.0) is None  # the model is being loaded
    assert rate.read(1, 100.0) is None
    assert rate.read(10, 104.0) is None
    assert rate.read(21, 110.0) == 2.0  # 20 images since the first
    assert rate.read(21, 120.0) == 1.0  # it stands still
    found = None
    for second in range(130, 300):  # then one every half second
        found = rate.read(21 + 2 * (second - 130), float(second))
    assert found == pytest.approx(2.0)


def test_a_slow_rate_is_that_of_ten_images_however_long_they_take() -> None:
    rate, found = Rate(), None
    for image in range(1, 31):
        found = rate.read(image, 100.0 * image)
    assert found == pytest.approx(0.01)
