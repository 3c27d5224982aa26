"""Durations and counts in words."""

from __future__ import annotations

import pytest

from pipeline.amounts import counted, duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.04 s"),
        (6.4, "6 s"),
        (99.4, "99 s"),
        (100, "2 min"),
        (5999, "100 min"),
        (6000, "1.7 h"),
        (47 * 3600, "47.0 h"),
        (60 * 3600, "2.5 days"),
    ],
)
def test_a_duration_has_the_unit_that_people_would_use(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 shards"), (1, "1 shard"), (2000, "2,000 shards")]
)
def test_a_count_has_its_noun_in_the_right_number(number: int, words: str) -> None:
    assert counted(number, "shard") == words
