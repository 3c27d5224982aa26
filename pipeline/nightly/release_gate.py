"""May this snapshot take the live one's place? Truth where there is some, shares of images always.

Asked of what a night made, before anybody reads it; pure reading, so a night that was killed asks
again and hears the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

from pipeline.evaluation.compare import Comparison, OtherTruthError, compare
from pipeline.evaluation.drift import COLUMNS, Shares, alarms
from pipeline.evaluation.evaluator import default_name, evaluate_run
from pipeline.evaluation.quality_gate import judge
from pipeline.nightly.settings import NightlyConfig
from pipeline.panoptic.score import InvalidError
from pipeline.run.folder import ShardEntry
from pipeline.run.snapshots import IncompleteError, RunSnapshot
from pipeline.sharding import origin_of

SAMPLED_ROWS: Final = 100_000  # a shard is a uniform sample, so a part of them is enough
READERS: Final = 16

Note = Callable[[str], None]


@dataclass(frozen=True)
class Judged:
    """Every reason against publishing (none: it may be), and what was found on the way."""

    reasons: tuple[str, ...]
    evaluation: dict[str, Any] | None = None
    comparison: Comparison | None = None


def evaluation_name(config: NightlyConfig) -> str:
    return config.evaluation or default_name(config.truth or "")


def evaluate_candidate(
    candidate: RunSnapshot, config: NightlyConfig, note: Note
) -> dict[str, Any] | None:
    """`pq.json` of the snapshot against the configured truth, made now; None without truth.

    Images that can't be scored (an image that was replaced by one of another size) are counted in
    it and don't stop a night.
    """
    if config.truth is None:
        return None
    try:
        return evaluate_run(
            candidate.run.storage.url,
            config.truth,
            config.truth_masks,
            name=evaluation_name(config),
            snapshot=candidate.number,
            address=config.address,
            options=candidate.run.storage.options,
            truth_options=config.options_of(config.truth),
            note=note,
        )
    except InvalidError as error:
        note(f"not all images can be scored: {error}")
        return error.result


def judge_quality(
    candidate: RunSnapshot, baseline: RunSnapshot | None, config: NightlyConfig, note: Note
) -> Judged:
    """Evaluate the candidate and compare it with the baseline."""
    result = evaluate_candidate(candidate, config, note)
    if result is None or baseline is None:
        return Judged((), result)
    name = evaluation_name(config)
    if name not in baseline.evaluations():
        note("evaluating the baseline against this truth")
        evaluate_candidate(baseline, config, note)
    try:
        comparison = compare(baseline, candidate, name)
    except (OtherTruthError, IncompleteError) as error:
        what = "the truth has changed" if isinstance(error, OtherTruthError) else str(error)
        note(f"{what}: evaluating the baseline again")
        evaluate_candidate(baseline, config, note)
        comparison = compare(baseline, candidate, name)
    verdict = judge(
        comparison,
        max_pq_drop=config.max_pq_drop,
        max_class_drop=config.max_class_drop,
        decide_by=config.decide_by,
        min_segments=config.min_class_segments,
    )
    return Judged(verdict.reasons, result, comparison)


def judge_shares(
    candidate: RunSnapshot, live: RunSnapshot | None, config: NightlyConfig, *, same_weights: bool
) -> list[str]:
    """Reasons in what the images look like, against those that are live.

    With the weights unchanged only rows that are new since are looked at: those of every generation
    after the live one, so that rows which a night was stopped for, or which were rolled back, are
    looked at again though a later generation copied them. Other weights may see other classes,
    which is theirs to do: their error and empty rates are looked at.
    """
    if live is None:
        return []
    fresh = [
        entry
        for entry in candidate.snapshot.shards
        if not (same_weights and origin_of(entry.path)[0] <= live.number)
    ]
    limits = config.limits if same_weights else replace(config.limits, class_drift=1.0)
    before, after = _shares(live, live.snapshot.shards), _shares(candidate, fresh)
    return alarms(before, after, candidate.run.info.categories, limits)


def _shares(candidate: RunSnapshot, shards: Sequence[ShardEntry]) -> Shares:
    """Shares of the rows of these shards, or of an even part of them."""
    rows = sum(entry.rows for entry in shards)
    stride = max(1, rows // SAMPLED_ROWS)
    ids = candidate.run.info.categories.ids

    def read(entry: ShardEntry) -> Shares:
        return Shares.of(candidate.run.read_shard(entry.path, COLUMNS), ids)

    total = Shares.zero(len(ids))
    with ThreadPoolExecutor(READERS) as pool:
        for own in pool.map(read, list(shards)[::stride]):
            total.add(own)
    return total
