"""What a job tells while it runs: its progress, and who wants to know of it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progress:
    """What a job has done so far. Counts are images."""

    total: int
    done: int = 0
    ok: int = 0
    error: int = 0
    shards: int = 0
    segments: int = 0
    bytes: int = 0  # written
    bytes_fetched: int = 0
    retries: int = 0  # GETs made again
    seconds: float = 0.0
    gpu_seconds: float = 0.0  # of the GPUs that were there for it; the driver measures them
    codes: dict[str, int] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def images_per_second(self) -> float:
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def remaining_seconds(self) -> float | None:
        return (self.total - self.done) / self.images_per_second if self.done else None


class Reporter:
    """Who wants to know how a job goes; this one says nothing. Called from any thread."""

    verbose = False

    def note(self, text: str) -> None:
        """One thing that happened, in a line."""

    def listed(self, images: int) -> None:
        """So many images were listed so far."""

    def progress(self, progress: Progress) -> None:
        """So much is done, about once a second."""
