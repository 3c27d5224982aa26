"""Logs for machines: every line of stderr is one JSON object with a time and an event."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from jobs.json_logs import reporting
from pipeline.errors import ErrorBudgetError
from pipeline.progress import Progress


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all(datetime.fromisoformat(line.pop("time")).tzinfo for line in found)
    return found


def test_notes_and_progress_are_objects_with_their_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with reporting(verbose=False, json_logs=True) as reporter:
        reporter.note("4 images in 1 shard")
        reporter.progress(Progress(total=4, done=1, ok=1, seconds=2.0))
        reporter.progress(Progress(total=4, done=2, ok=2))  # too soon after the last one
        reporter.progress(Progress(total=4, done=4, ok=3, error=1, codes={"empty": 1}))
        reporter.progress(Progress(total=4, done=4))  # the end is said once
    first, second, last = lines(capsys)
    assert first == {"event": "note", "message": "4 images in 1 shard"}
    assert (second["event"], second["done"], second["images_per_second"]) == ("progress", 1, 0.5)
    assert (last["done"], last["error"], last["codes"]) == (4, 1, {"empty": 1})


def test_a_failure_is_an_event_with_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ErrorBudgetError), reporting(verbose=False, json_logs=True):
        raise ErrorBudgetError("too many")
    [event] = lines(capsys)
    assert event == {"event": "error", "message": "too many", "exit_code": 4}
