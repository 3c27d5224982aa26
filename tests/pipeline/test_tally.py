"""The tally's arithmetic: a shard counts once, and the budget ends what goes wrong."""

from __future__ import annotations

from pipeline.tally import Tally


def written(tally: Tally, shard: str, images: int, codes: list[str]) -> str | None:
    return tally.written(shard, images=images, codes=codes, segments=3, size=10)


def test_a_shard_that_is_written_twice_counts_once() -> None:
    tally = Tally(total=20, max_error_rate=1)
    for _ in range(2):
        written(tally, "a", 10, ["empty"])
    progress = tally.progress()
    assert (progress.done, progress.ok, progress.error, progress.shards) == (10, 9, 1, 1)
    assert progress.codes == {"empty": 1}


def test_the_budget_is_not_judged_before_200_images() -> None:
    tally = Tally(total=1000, max_error_rate=0.05)
    assert tally.fetched("a", 199, ["forbidden"] * 199) is None
    reason = tally.fetched("b", 1, ["forbidden"])
    assert reason is not None
    assert "200 of 200 images failed (forbidden 200)" in reason


def test_a_rate_at_the_limit_is_within_it() -> None:
    tally = Tally(total=1000, max_error_rate=0.05)
    assert written(tally, "a", 400, ["empty"] * 20) is None
    assert written(tally, "b", 20, ["empty"] * 2) is not None


def test_a_fetch_and_its_shard_are_one_outcome() -> None:
    tally = Tally(total=1000, max_error_rate=0.05)
    assert tally.fetched("a", 400, ["timeout"] * 15) is None
    assert written(tally, "a", 400, ["timeout"] * 15 + ["empty"] * 5) is None
