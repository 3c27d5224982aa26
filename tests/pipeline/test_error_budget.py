"""The early stop errs as seldom as it says, at any number of looks; the last word is plain."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.cluster.progress_actor import ProgressActor
from pipeline.error_budget import (
    FALSE_STOP,
    FIRST_EXPECTED,
    FIRST_IMAGES,
    Failures,
    enough_rate,
    exceeds,
    log_evidence,
    over_budget,
    shown_over,
)

LIMITS = (0.001, 0.01, 0.05, 0.1, 0.3)


def failures(count: int) -> dict[str, Failures]:
    return {"not_found": Failures(count, "s3://b/x", "404")} if count else {}


def stops(rate: float, limit: float, runs: int, most_failures: int) -> NDArray[np.int64]:
    """(runs,) images after which each run is stopped, looked at after every image; else -1.

    The evidence only grows at a failure, so runs are drawn as the gaps between failures.
    """
    random = np.random.default_rng(int(1000 * rate / limit))
    images = random.geometric(rate, (runs, most_failures)).cumsum(axis=1)
    failed = np.arange(1, most_failures + 1)
    shown = log_evidence(images, failed, limit) >= -np.log(FALSE_STOP)
    shown &= images >= min(FIRST_IMAGES, FIRST_EXPECTED / limit)
    first = shown.argmax(axis=1)
    return np.where(shown.any(axis=1), images[np.arange(runs), first], -1)


@pytest.mark.parametrize("limit", LIMITS)
def test_a_job_at_90_percent_of_its_limit_is_stopped_in_fewer_than_1_of_1000(limit: float) -> None:
    stopped = stops(0.9 * limit, limit, runs=10_000, most_failures=500)
    assert (stopped > 0).sum() < 10


@pytest.mark.parametrize("limit", LIMITS)
def test_a_job_at_3_times_its_limit_is_stopped_within_12_of_it(limit: float) -> None:
    stopped = stops(3 * limit, limit, runs=2_000, most_failures=60)
    assert ((stopped > 0) & (stopped <= 12 / limit)).mean() >= 0.95


def test_a_long_job_at_15_times_its_limit_is_stopped() -> None:
    assert (stops(0.075, 0.05, runs=200, most_failures=2_000) > 0).all()


def test_no_job_just_below_its_limit_is_stopped_shard_by_shard() -> None:
    random = np.random.default_rng(1)
    for rate in (0.04, 0.045):
        for _ in range(100):
            progress_actor = ProgressActor(60 * 512, 0.05)
            for shard in range(60):
                bad = failures(int(random.binomial(512, rate)))
                assert progress_actor.fetched(f"1/{shard}", 512, bad) is None
                key = f"1/{shard}"
                assert (
                    progress_actor.written(key, images=512, failures=bad, segments=0, size=0)
                    is None
                )


def test_a_single_failure_shows_that_a_limit_of_0_is_passed() -> None:
    assert not shown_over(10_000, 0, 0.0)
    assert shown_over(10_000, 1, 0.0)


@pytest.mark.parametrize("limit", [0.5, 0.9, 1.0])
def test_a_large_limit_is_judged_too(limit: float) -> None:
    assert shown_over(500, 500, limit) == (limit < 1)
    assert not shown_over(500, int(500 * limit), limit)


def test_the_advised_rate_is_accepted_as_it_is_printed() -> None:
    for images in range(1, 1501):
        for failed in range(1, images + 1, max(1, images // 40)):
            advised = float(f"{enough_rate(images, failed):g}")
            assert over_budget(images, failures(failed), advised) is None, (images, failed)
            assert advised - failed / images < 0.001 + 1e-12


def test_a_part_is_compared_with_a_rate_as_people_write_it() -> None:
    assert not exceeds(29, 100, 0.29)
    assert exceeds(30, 100, 0.29)
    assert not exceeds(57, 100, 0.57)
    assert not exceeds(0, 0, 0.0)
