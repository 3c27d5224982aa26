"""The quality gate of `panoptic compare`: whether B is good enough to replace A, and why not.

For overall PQ the lower end of the paired interval must stay within the allowed drop, so that
little ground truth can't let a bad model pass. Single classes are many, and rare classes have wide
intervals: a class fails only if all of its interval lies beyond the allowed drop. That interval is
corrected for the number of classes (Bonferroni), and classes with few segments in the ground truth
are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Literal

from pipeline.evaluation.compare import Comparison
from pipeline.panoptic.figures import LEVEL

MIN_SEGMENTS: Final = 50
DecideBy = Literal["interval", "estimate"]


@dataclass(frozen=True)
class GateResult:
    """The result of the quality gate; reasons: why B failed, a sentence each."""

    passed: bool
    reasons: tuple[str, ...]


def judge(
    comparison: Comparison,
    *,
    max_pq_drop: float | None = None,
    max_class_drop: float | None = None,
    decide_by: DecideBy = "interval",
    min_segments: int = MIN_SEGMENTS,
) -> GateResult:
    """The result for B. max_pq_drop, max_class_drop: in points (PQ times 100); None allows any.

    decide_by: "estimate" ignores the intervals. min_segments: of a class in the ground truth, else
    the class is not tested.
    """
    reasons = []
    if max_pq_drop is not None:
        reasons += _overall(comparison, max_pq_drop, decide_by)
    if max_class_drop is not None:
        reasons += _classes(comparison, max_class_drop, decide_by, min_segments)
    return GateResult(not reasons, tuple(reasons))


def _overall(comparison: Comparison, allowed: float, decide_by: DecideBy) -> list[str]:
    pq = comparison.groups["All"]["pq"]
    if pq.difference is None:
        return ["no class occurs in both: PQ can't be compared"]
    change = 100 * pq.difference
    if -change > allowed:
        return [f"PQ dropped by {-change:.2f} points, {allowed:g} are allowed"]
    if decide_by == "interval" and pq.interval is not None and -100 * pq.interval[0] > allowed:
        return [
            f"PQ changed by {change:+.2f} points, but a drop of {-100 * pq.interval[0]:.2f} can't "
            f"be ruled out on {comparison.images:,} images, {allowed:g} are allowed: score more "
            "images, or decide by the estimate"
        ]
    return []


def _classes(
    comparison: Comparison, allowed: float, decide_by: DecideBy, min_segments: int
) -> list[str]:
    tested = [entry for entry in comparison.classes if entry.segments >= min_segments]
    reasons = []
    for entry in tested:
        change = entry.pq
        if change.difference is None:
            continue
        drop = -100 * change.difference
        if decide_by == "interval":
            # 400 replicates are too few for so small a quantile: that of the normal is used.
            level = NormalDist().inv_cdf(1 - (1 - LEVEL) / len(tested))
            drop -= level * 100 * (change.error or 0.0)
        if drop > allowed:
            shown = "" if decide_by == "estimate" else f", {drop:.2f} of them shown"
            reasons.append(
                f"class {entry.category_id} {entry.name} dropped by {-100 * change.difference:.2f} "
                f"points{shown}, {allowed:g} are allowed"
            )
    return reasons
