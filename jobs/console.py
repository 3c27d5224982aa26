"""What people see while a job works: a live line on a terminal, a plain line now and then in a log.

Everything here goes to stderr, so that stdout holds results alone.
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


def plain_console(*, stderr: bool = False, soft_wrap: bool = False) -> Console:
    """A console that writes text as it is: names of files and classes hold brackets and colons,
    which rich takes for styles and pictures."""
    options: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
    return _Console(stderr=stderr, soft_wrap=soft_wrap, **options)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to `cli.run`, which ends as other programs do: rich would exit with 1."""
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
        self._console.print(text, markup=False, soft_wrap=True)

    def listed(self, images: int) -> None:
        self._say(f"listing: {counted(images, 'image')}", final=False)

    def progress(self, progress: Progress) -> None:
        if self._finished:
            return
        self._finished = progress.done >= progress.total
        self._say(progress_line(progress), final=self._finished)
        if self._finished:
            self.close()

    def close(self) -> None:
        """Leave the terminal as it was."""
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
            self._console.print(line, markup=False, soft_wrap=True)


def progress_line(progress: Progress) -> str:
    """Such as `1,024 of 5,000 images (20 %), 12.3 images/s, 5 min left, 3 errors (empty 3)`."""
    parts = [f"{progress.done:,} of {counted(progress.total, 'image')}"]
    if progress.total:
        parts[0] += f" ({100 * progress.done // progress.total} %)"
    if progress.done:
        parts.append(f"{progress.images_per_second:.3g} images/s")
    remaining = progress.remaining_seconds
    if remaining and progress.done < progress.total:
        parts.append(f"{duration(remaining)} left")
    if progress.error:
        kinds = ", ".join(f"{code} {count}" for code, count in sorted(progress.codes.items()))
        parts.append(f"{counted(progress.error, 'error')} ({kinds})")
    if not progress.done:
        parts.append(f"starting, {duration(progress.seconds)}")
    return ", ".join(parts)


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    wide = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    sys.stdout.write(json.dumps(value, ensure_ascii=not wide) + "\n")
