"""What a night does in itself: the words of its report command, and how it tells of its failure."""

from __future__ import annotations

import pytest

from pipeline.nightly.nightly import failure_of, filled, program_of

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


TOKEN = "pl4nted"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["sh", "-c", "exit 7", TOKEN], "the report command ended with 7: sh"),
        (["/bin/sh", "-c", f"echo {TOKEN} >&2; exit 1"], "the report command ended with 1: sh"),
        (["/nowhere/send", TOKEN], "the report command can't be run: send: No such file or"),
        ([f"curl https://host/{TOKEN}"], "the report command can't be run: curl: No such file or"),
        ([f"KEY={TOKEN} send"], "the report command can't be run: KEY: No such file or directory"),
        (["sh", f"{TOKEN}\0"], "the report command can't be run: sh: a word holds a zero byte"),
        (["", TOKEN], "the report command can't be run: :"),
    ],
)
def test_a_report_that_fails_is_told_by_its_program_alone(command: list[str], told: str) -> None:
    """For the sentence is written into the summary of the night."""
    failure = failure_of(command)
    assert failure is not None
    assert failure.startswith(told)
    assert TOKEN not in failure
    assert TOKEN not in program_of(command)


def test_a_report_that_succeeds_is_no_reason_to_stop() -> None:
    assert failure_of(["true"]) is None
