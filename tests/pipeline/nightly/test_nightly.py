"""What a night does in itself: the words of its report command."""

from __future__ import annotations

import pytest

from pipeline.nightly.nightly import filled

PLACES = {"run": "s3://b/run", "snapshot": "7", "baseline": "", "out": "s3://b"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("{run}/snapshots/{snapshot}", "s3://b/run/snapshots/7"),
        ("send ${HOME}/x {out}", "send ${HOME}/x s3://b"),
        ("${run}", "${run}"),
        ("{baseline}", ""),
        ("awk '{print $1}'", "awk '{print $1}'"),
        ('{"snapshot": {snapshot}, "a": {}}', '{"snapshot": 7, "a": {}}'),
        ("{unknown} {0} {", "{unknown} {0} {"),
    ],
)
def test_only_what_a_night_knows_is_filled_in(word: str, expected: str) -> None:
    assert filled(word, PLACES) == expected
