"""`Progress`, the counts of a running job, and `Reporter`, which receives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final


@dataclass
class Progress:
    """The work of a job so far. Counts are images unless said otherwise."""

    total: int
    done: int = 0  # in written shards
    ok: int = 0
    error: int = 0
    shards: int = 0
    segments: int = 0
    bytes: int = 0  # written
    bytes_fetched: int = 0
    retries: int = 0  # GETs made again
    seconds: float = 0.0  # since the first model actor had work
    gpu_seconds: float = 0.0  # GPUs held times seconds; measured by the driver
    codes: dict[str, int] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    empty: int = 0  # ok, and without any segment
    # The state at this moment:
    phase: str = ""  # what the first image waits for: "model loading" ...; empty after it
    phase_seconds: float = 0.0  # since the job began
    in_work: int = 0  # images of shards that model actors hold or that are being written
    ahead: int = 0  # images in work that the model has finished
    rate: float | None = None  # recent images per second; None before `FIRST_IMAGES` are finished

    @property
    def finished(self) -> int:
        """Images that the model has finished, written or not."""
        return min(self.done + self.ahead, self.total)

    @property
    def images_per_second(self) -> float:
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def remaining_seconds(self) -> float | None:
        """None as long as `rate` is None."""
        return (self.total - self.finished) / self.rate if self.rate else None


# Fields that are shown, but not written to the statistics of a run folder.
UNRECORDED: Final = ("empty", "phase", "phase_seconds", "in_work", "ahead", "rate")
FIRST_IMAGES: Final = 10  # fewer give no reliable rate


class Reporter:
    """Receives the reports of a job, from any thread; this base class ignores them."""

    verbose = False

    def note(self, text: str) -> None:
        """One line about something that happened."""

    def listed(self, images: int) -> None:
        """images: listed so far."""

    def progress(self, progress: Progress) -> None:
        """Called about once a second."""
