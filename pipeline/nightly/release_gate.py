"""The release gate: the reasons against publishing a snapshot, from PQ and from shares of images.

PQ is compared if ground truth is configured, shares of images always. The gate writes only
evaluations, so a killed call repeats it with the same result.
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

SAMPLED_ROWS: Final = 100_000  # about so many rows are read; each shard is a uniform sample
READERS: Final = 16

Note = Callable[[str], None]


@dataclass(frozen=True)
class Judged:
    """The result of the release gate."""

    reasons: tuple[str, ...]  # against publishing; empty: the snapshot may be published
    evaluation: dict[str, Any] | None = None  # pq.json
    comparison: Comparison | None = None  # with the baseline


def evaluation_name(config: NightlyConfig) -> str:
    return config.evaluation or default_name(config.truth or "")


def evaluate_candidate(
    candidate: RunSnapshot, config: NightlyConfig, note: Note
) -> dict[str, Any] | None:
    """Evaluate the snapshot against the configured truth; returns `pq.json`, None without truth.

    Images that can't be scored (such as one replaced by an image of another size) are counted in
    `pq.json` and are no reason against publishing.
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
    """Evaluate the candidate, and the baseline if needed, and compare the two."""
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
    gate = judge(
        comparison,
        max_pq_drop=config.max_pq_drop,
        max_class_drop=config.max_class_drop,
        decide_by=config.decide_by,
        min_segments=config.min_class_segments,
    )
    return Judged(gate.reasons, result, comparison)


def judge_shares(
    candidate: RunSnapshot, live: RunSnapshot | None, config: NightlyConfig, *, same_weights: bool
) -> list[str]:
    """The reasons against publishing from shares of images, compared with the live snapshot.

    same_weights: compare only the rows of generations after the live one. These include rows for
    which an earlier call was stopped, and rows that were rolled back. With other weights all rows
    are compared, but not by class, since other weights may predict other classes.
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
    """Shares of the rows of `shards`, or of each n-th shard beyond SAMPLED_ROWS rows."""
    rows = sum(entry.rows for entry in shards)
    stride = max(1, rows // SAMPLED_ROWS)
    ids = candidate.run.info.categories.ids

    def read(entry: ShardEntry) -> Shares:
        return Shares.of(candidate.run.read_shard(entry.path, COLUMNS), ids)

    total = Shares.zero(len(ids))
    with ThreadPoolExecutor(READERS) as pool:
        for shares in pool.map(read, list(shards)[::stride]):
            total.add(shares)
    return total
