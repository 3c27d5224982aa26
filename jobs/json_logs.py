"""Progress as one JSON object per line on stderr (`--json-logs`), for log collectors.

    {"time": "2026-11-21T10:00:00.123+00:00", "event": "progress", "done": 1024, "total": 5000, ...}

`event` is `note` (with `message`), `listed` (with `images`), `progress` (with the fields of
`pipeline.progress.Progress`, `finished`, `images_per_second`, `remaining_seconds`) or `error` (with
`message` and `exit_code`, the last line of a job that fails). Ray's workers log to Ray's files,
also as JSON.
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
    """Logs every note; progress about every 15 seconds and at the end."""

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
    """Write one JSON line to stderr."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": now, "event": event, **fields}, ensure_ascii=False)
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


@contextmanager
def reporting(*, verbose: bool, json_logs: bool) -> Iterator[Reporter]:
    """The reporter of a job: JSON lines or the console, closed at the end.

    With `json_logs`, an error with an exit code is also logged.
    """
    if json_logs:
        # RAY_DATA_LOG_ENCODING is not set: Ray 2.60 would fail when a second dataset ends.
        try:
            yield JsonReporter(verbose=verbose)
        except Exception as error:
            failure = error if isinstance(error, UserError) else store_failure(error)
            if failure is not None:
                log("error", message=str(failure), exit_code=failure.exit_code)
            raise
        return
    reporter = ConsoleReporter(verbose=verbose)
    try:
        yield reporter
    finally:
        reporter.close()
