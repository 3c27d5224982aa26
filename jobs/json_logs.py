"""Progress as one JSON object a line on stderr, for whatever collects a job's logs.

    {"time": "2026-11-21T10:00:00.123+00:00", "event": "progress", "done": 1024, "total": 5000, ...}

`event` is `note` (with `message`), `listed` (with `images`), `progress` (with the fields of
`pipeline.progress.Progress`, and what follows from them) or `error` (with `message` and
`exit_code`, the last line of a job that fails). Lines of Ray's own workers stay where Ray keeps
them, as JSON too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from jobs.console import LOG_SECONDS, ConsoleReporter
from pipeline.errors import UserError
from pipeline.progress import Progress, Reporter
from pipeline.storage.entry import store_failure


class JsonReporter(Reporter):
    """Every note, and progress about every 15 seconds and at the end."""

    def __init__(self, *, verbose: bool = False) -> None:
        self.verbose = verbose
        self._last = -LOG_SECONDS
        self._done = False

    def note(self, text: str) -> None:
        log("note", message=text)

    def listed(self, images: int) -> None:
        if self._due():
            log("listed", images=images)

    def progress(self, progress: Progress) -> None:
        ended = progress.total > 0 and progress.done >= progress.total
        if (ended and not self._done) or (not ended and self._due()):
            self._done = ended
            log(
                "progress",
                **asdict(progress),
                finished=progress.finished,
                images_per_second=round(progress.images_per_second, 3),
                remaining_seconds=progress.remaining_seconds,
            )

    def _due(self) -> bool:
        if time.monotonic() - self._last < LOG_SECONDS:
            return False
        self._last = time.monotonic()
        return True


def log(event: str, **fields: Any) -> None:
    """One line on stderr, written whole."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": now, "event": event, **fields}, ensure_ascii=False)
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


@contextmanager
def reporting(*, verbose: bool, json_logs: bool) -> Iterator[Reporter]:
    """Whoever tells the person, or the log, how a job goes."""
    if json_logs:
        # Not RAY_DATA_LOG_ENCODING: with it Ray 2.60 fails when a second dataset ends.
        try:
            yield JsonReporter(verbose=verbose)
        except Exception as error:
            told = error if isinstance(error, UserError) else store_failure(error)
            if told is not None:
                log("error", message=str(told), exit_code=told.exit_code)
            raise
        return
    reporter = ConsoleReporter(verbose=verbose)
    try:
        yield reporter
    finally:
        reporter.close()
