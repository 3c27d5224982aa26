"""`stats/000G.json`: what each call that worked on a generation did, and on what."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from pipeline.progress import Progress
from pipeline.run.layout import stats_path
from pipeline.run.run import Run
from pipeline.version import versions


def record_stats(run: Run, generation: int, progress: Progress, facts: dict[str, Any]) -> None:
    """Add one call's work to `stats/000G.json`, a list with an entry a call."""
    if not progress.total:
        return  # stopped before anything was seen
    path = stats_path(generation)
    entries = read_stats(run, generation)
    entry = {**facts, "versions": versions(), **asdict(progress)}
    run.storage.write(path, json.dumps([*entries, entry]).encode())


def read_stats(run: Run, generation: int) -> list[dict[str, Any]]:
    try:
        return json.loads(run.storage.read(stats_path(generation)))
    except FileNotFoundError:
        return []
