"""When B is good enough."""

from __future__ import annotations

import pytest

from pipeline.evaluation.compare import Change, ClassChange, Comparison
from pipeline.evaluation.quality_gate import judge


def change(points: float, half: float, error: float | None = None) -> Change:
    difference = points / 100
    interval = (difference - half / 100, difference + half / 100)
    return Change(0.5, 0.5 + difference, difference, interval, (error or half / 1.96) / 100)


def comparison(overall: Change, *classes: tuple[int, Change]) -> Comparison:
    listed = tuple(
        ClassChange(i, f"class {i}", True, segments, own)
        for i, (segments, own) in enumerate(classes, start=1)
    )
    return Comparison("a", "b", "gt", 100, 0, 0, {"All": {"pq": overall}}, listed, ())


@pytest.mark.parametrize(
    ("overall", "decide_by", "passed"),
    [
        (change(-0.3, 0.1), "interval", True),
        (change(-0.3, 0.3), "interval", False),  # a drop of 0.6 can't be ruled out
        (change(-0.3, 0.3), "estimate", True),
        (change(+0.2, 0.5), "interval", True),
        (change(-0.6, 0.0), "interval", False),
        (change(-0.6, 0.0), "estimate", False),
        (change(0.0, 0.0), "interval", True),
    ],
)
def test_a_larger_drop_of_pq_must_be_ruled_out(
    overall: Change, decide_by: str, passed: bool
) -> None:
    verdict = judge(comparison(overall), max_pq_drop=0.5, decide_by=decide_by)  # type: ignore[arg-type]
    assert verdict.passed is passed
    assert passed == (not verdict.reasons)


def test_no_limit_lets_everything_pass() -> None:
    assert judge(comparison(change(-50, 1), (900, change(-50, 1)))).passed


def test_a_class_fails_only_if_its_drop_is_shown() -> None:
    fine = change(0, 1)
    shown = judge(comparison(fine, (900, change(-8, 1))), max_class_drop=5)
    assert shown.reasons[0].startswith("class 1 class 1 dropped by 8.00 points")
    assert judge(comparison(fine, (900, change(-8, 6))), max_class_drop=5).passed
    estimate = judge(comparison(fine, (900, change(-8, 6))), max_class_drop=5, decide_by="estimate")
    assert not estimate.passed


def test_classes_with_few_segments_are_not_judged() -> None:
    rare = comparison(change(0, 1), (49, change(-40, 1)))
    assert judge(rare, max_class_drop=5).passed
    assert not judge(rare, max_class_drop=5, min_segments=49).passed


def test_more_classes_ask_for_more_proof() -> None:
    one = (900, change(-8, 0, error=1.5))
    alone = judge(comparison(change(0, 1), one), max_class_drop=5)
    among_many = judge(
        comparison(change(0, 1), one, *[(900, change(0, 1))] * 100), max_class_drop=5
    )
    assert (alone.passed, among_many.passed) == (False, True)


def test_no_class_in_common_is_a_reason() -> None:
    nothing = Change(None, None, None, None, None)
    assert judge(comparison(nothing), max_pq_drop=1).reasons == (
        "no class occurs in both: PQ can't be compared",
    )
