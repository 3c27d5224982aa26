"""Is B good enough to take A's place? One answer, with its reasons. Pure.

Overall PQ must be shown not to have dropped by more than allowed: the lower end of the paired
interval decides, so little ground truth never lets a bad model through in silence. Single classes
are many, and the intervals of rare ones wide: there a larger drop must itself be shown, at a level
corrected for the number of classes tested (Bonferroni), among classes with enough true segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final, Literal

from pipeline.evaluation.compare import Comparison
from pipeline.panoptic.figures import LEVEL

MIN_SEGMENTS: Final = 50
DecideBy = Literal["interval", "estimate"]


@dataclass(frozen=True)
class Verdict:
    """passed, and every reason against (each a sentence)."""

    passed: bool
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "reasons": list(self.reasons)}


def judge(
    comparison: Comparison,
    *,
    max_pq_drop: float | None = None,
    max_class_drop: float | None = None,
    decide_by: DecideBy = "interval",
    min_segments: int = MIN_SEGMENTS,
) -> Verdict:
    """The verdict on B. Drops are in points (a hundredth of PQ); None allows any.

    decide_by "estimate" takes the measured differences as they are.
    """
    reasons = []
    if max_pq_drop is not None:
        reasons += _overall(comparison, max_pq_drop, decide_by)
    if max_class_drop is not None:
        reasons += _classes(comparison, max_class_drop, decide_by, min_segments)
    return Verdict(not reasons, tuple(reasons))


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
    tested = [own for own in comparison.classes if own.segments >= min_segments]
    reasons = []
    for own in tested:
        change = own.pq
        if change.difference is None:
            continue
        drop = -100 * change.difference
        if decide_by == "interval":
            # The 400 replicates hold no such far quantile: the normal one stands for it.
            level = NormalDist().inv_cdf(1 - (1 - LEVEL) / len(tested))
            drop -= level * 100 * (change.error or 0.0)
        if drop > allowed:
            shown = "" if decide_by == "estimate" else f", {drop:.2f} of them shown"
            reasons.append(
                f"class {own.category_id} {own.name} dropped by {-100 * change.difference:.2f} "
                f"points{shown}, {allowed:g} are allowed"
            )
    return reasons
