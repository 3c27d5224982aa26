"""Kinds of pixels in the pictures of differences, written out one by one."""

from __future__ import annotations

import numpy as np

from pipeline.report.difference import (
    BETTER,
    CHANGED,
    CHANGES,
    OTHER,
    SAME,
    VOID,
    WORSE,
    compare_changes,
)


def test_each_pixel_of_two_predictions_has_its_kind() -> None:
    pixels = [  # category before, now and in the truth; -1: none
        (1, 1, 1, SAME),
        (2, 2, 1, SAME),
        (2, 1, 1, BETTER),
        (-1, 1, 1, BETTER),
        (1, 2, 1, WORSE),
        (1, -1, 1, WORSE),
        (2, 3, 1, OTHER),
        (2, 3, -1, VOID),
        (1, 1, -1, VOID),
    ]
    before, now, true, expected = zip(*pixels, strict=True)
    kinds = compare_changes(*(np.array([row]) for row in (before, now, true)))
    assert [CHANGES[kind] for kind in kinds[0]] == list(expected)


def test_without_truth_a_pixel_has_changed_or_not() -> None:
    kinds = compare_changes(np.array([[1, 1, -1]]), np.array([[1, 2, 1]]))
    assert [CHANGES[kind] for kind in kinds[0]] == [SAME, CHANGED, CHANGED]
