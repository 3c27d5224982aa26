"""`stats/000G.json`: progress, versions and device of each call that computed generation G."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from pipeline.layout import stats_path
from pipeline.progress import UNRECORDED, Progress
from pipeline.run.run import Run
from pipeline.version import versions


def record_stats(run: Run, generation: int, progress: Progress, facts: dict[str, Any]) -> None:
    """Append one call's entry to `stats/000G.json`: facts, versions, progress.

    Nothing is written if `progress.total` is 0.
    """
    if not progress.total:
        return
    path = stats_path(generation)
    entry = {**facts, "versions": versions(), **asdict(progress)}
    entry = {name: value for name, value in entry.items() if name not in UNRECORDED}
    while True:  # until no other job wrote in between
        before = run.storage.look(path)
        entries = [] if before is None else json.loads(before)
        data = json.dumps([*entries, entry]).encode()
        if before is None and run.storage.write_if_absent(path, data):
            return
        if before is not None and run.storage.swap(path, before, data):
            return


def read_stats(run: Run, generation: int) -> list[dict[str, Any]]:
    try:
        return json.loads(run.storage.read(stats_path(generation)))
    except FileNotFoundError:
        return []
