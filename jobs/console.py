"""Output for people: progress as a live line on a terminal, as a line every 15 seconds in a log.

Notes and progress go to stderr, so that stdout has results only.
"""

from __future__ import annotations

import codecs
import json
import sys
import time
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.amounts import counted, duration
from pipeline.progress import Progress, Reporter

LOG_SECONDS: Final = 15.0


def plain_console(*, stderr: bool = False) -> Console:
    """A rich console that prints texts as they are.

    Without markup, emoji and highlighting, because names of files and classes may contain brackets
    and colons; long lines are not broken.
    """
    return _Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise the error again, for `cli.run`; rich would exit with code 1."""
        raise


class ConsoleReporter(Reporter):
    """Notes, and progress with images/s, ETA and counts of ok and error."""

    def __init__(self, *, verbose: bool = False) -> None:
        self.verbose = verbose
        self._console = plain_console(stderr=True)
        self._live: Live | None = None
        self._logged = 0.0
        self._finished = False

    def note(self, text: str) -> None:
        self._console.print(text)

    def listed(self, images: int) -> None:
        self._say(f"listing: {counted(images, 'image')}", final=False)

    def progress(self, progress: Progress) -> None:
        ended = progress.done >= progress.total
        if ended and self._finished:
            return
        self._finished = ended  # a night may run two jobs in sequence
        self._say(progress_line(progress), final=self._finished)
        if self._finished:
            self.close()

    def close(self) -> None:
        """Stop the live line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _say(self, line: str, *, final: bool) -> None:
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=4)
                self._live.start()
            self._live.update(Text(line))
        elif final or time.monotonic() - self._logged >= LOG_SECONDS:
            self._logged = time.monotonic()
            self._console.print(line)


def progress_line(progress: Progress) -> str:
    """One line of text; an image counts when the model has finished it.

    `1,024 of 5,000 images (20 %), 12.3 images/s, 5 min left, 64 in work, 3 errors (empty 3)`
    """
    total, finished = progress.total, progress.finished
    parts = [f"{finished:,} of {counted(total, 'image')}"]
    if total:
        parts[0] += f" ({100 * finished // total} %)"
    written = progress.done >= total
    rate = progress.images_per_second if written else progress.rate
    if rate:
        parts.append(f"{rate:.3g} images/s")
    if progress.phase and not finished:
        parts.append(f"{progress.phase}, {duration(progress.phase_seconds)}")
    if progress.remaining_seconds and not written:
        parts.append(f"{duration(progress.remaining_seconds)} left")
    if progress.in_work:
        parts.append(f"{progress.in_work:,} in work")
    if progress.error:
        kinds = ", ".join(f"{code} {count}" for code, count in sorted(progress.codes.items()))
        parts.append(f"{counted(progress.error, 'error')} ({kinds})")
    return ", ".join(parts)


def print_json(value: Any) -> None:
    """Write one line of JSON to stdout; non-ASCII characters escaped unless stdout is UTF-8."""
    wide = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    sys.stdout.write(json.dumps(value, ensure_ascii=not wide) + "\n")
