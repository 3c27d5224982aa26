"""What a job tells while it runs: its progress, and who wants to know of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final


@dataclass
class Progress:
    """What a job has done so far. Counts are images."""

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
    gpu_seconds: float = 0.0  # of the GPUs that were there for it; the driver measures them
    codes: dict[str, int] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    empty: int = 0  # ok, and without any segment
    # Of this moment alone:
    phase: str = ""  # what is waited for before the first image: "model loading" ...
    phase_seconds: float = 0.0  # since the job began, as long as there is a phase
    in_work: int = 0  # images of the shards that the model actors hold or that are being written
    ahead: int = 0  # those of them that the model has finished
    rate: float | None = None  # images a second lately; None before `FIRST_IMAGES` are finished

    @property
    def finished(self) -> int:
        """Images that the model has finished, written or not."""
        return min(self.done + self.ahead, self.total)

    @property
    def images_per_second(self) -> float:
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def remaining_seconds(self) -> float | None:
        """By the rate of late; None as long as there is none."""
        return (self.total - self.finished) / self.rate if self.rate else None


# What people are told, and the statistics of a run folder don't hold.
UNRECORDED: Final = ("empty", "phase", "phase_seconds", "in_work", "ahead", "rate")
FIRST_IMAGES: Final = 10  # a rate of fewer would be an accident


class Reporter:
    """Who wants to know how a job goes; this one says nothing. Called from any thread."""

    verbose = False

    def note(self, text: str) -> None:
        """One thing that happened, in a line."""

    def listed(self, images: int) -> None:
        """So many images were listed so far."""

    def progress(self, progress: Progress) -> None:
        """So much is done, about once a second."""
