"""A zero-CPU actor that stages report to: live progress and the error budget.

Ray Data hands write results over only at the very end, so whatever is to be known while a job runs
goes through here. Reports are keyed by shard: a shard that is computed twice (its worker died)
counts once.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import ray
from ray.actor import ActorHandle

BUDGET_AFTER_IMAGES: Final = 200  # below it, one bad folder would stop a good job


class BudgetExceededError(Exception):
    """Raised inside a stage so that Ray ends the job; the driver asks the tally for the reason."""


@dataclass
class Progress:
    """What a job has done so far. Counts are images."""

    total: int
    done: int = 0
    ok: int = 0
    error: int = 0
    shards: int = 0
    segments: int = 0
    bytes: int = 0
    seconds: float = 0.0
    codes: dict[str, int] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def images_per_second(self) -> float:
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def remaining_seconds(self) -> float | None:
        return (self.total - self.done) / self.images_per_second if self.done else None


class Tally:
    """The counts behind the actor; plain Python, so that tests need no cluster."""

    def __init__(self, total: int, max_error_rate: float) -> None:
        self.total = total
        self.max_error_rate = max_error_rate
        self.started = time.monotonic()
        self.failed_fetches: dict[str, tuple[int, list[str]]] = {}
        self.shards: dict[str, dict[str, Any]] = {}
        self.stages: dict[str, dict[str, float]] = {}

    def fetched(self, shard: str, images: int, codes: list[str]) -> str | None:
        """A unit's bytes are there; returns the reason to stop, if there is one."""
        self.failed_fetches[shard] = (images, codes)
        return self.verdict()

    def segmented(self, shard: str, seconds: dict[str, float]) -> None:
        """Seconds that an actor spent on a unit, by stage."""
        self.stages[shard] = seconds

    def written(
        self, shard: str, *, images: int, codes: list[str], segments: int, size: int
    ) -> str | None:
        """A shard is in the store; returns the reason to stop, if there is one."""
        self.shards[shard] = {"images": images, "codes": codes, "segments": segments, "bytes": size}
        return self.verdict()

    def verdict(self) -> str | None:
        """The sentence that ends the job, once enough images are seen and too many failed."""
        outcomes = dict(self.failed_fetches)
        outcomes.update((s, (d["images"], d["codes"])) for s, d in self.shards.items())
        seen = sum(images for images, _ in outcomes.values())
        codes = Counter(code for _, shard_codes in outcomes.values() for code in shard_codes)
        if seen < BUDGET_AFTER_IMAGES:
            return None
        return over_budget(seen, codes, self.max_error_rate)

    def progress(self) -> Progress:
        codes = Counter(code for shard in self.shards.values() for code in shard["codes"])
        done = sum(shard["images"] for shard in self.shards.values())
        stages: Counter[str] = Counter()
        for seconds in self.stages.values():
            stages.update(seconds)
        return Progress(
            total=self.total,
            done=done,
            ok=done - codes.total(),
            error=codes.total(),
            shards=len(self.shards),
            segments=sum(shard["segments"] for shard in self.shards.values()),
            bytes=sum(shard["bytes"] for shard in self.shards.values()),
            seconds=time.monotonic() - self.started,
            codes=dict(codes),
            stage_seconds=dict(stages),
        )


def over_budget(images: int, codes: Counter[str], max_error_rate: float) -> str | None:
    """Why so many errors are too many, or None where they aren't."""
    failed = codes.total()
    if not images or failed <= max_error_rate * images:
        return None
    kinds = ", ".join(f"{code} {count}" for code, count in codes.most_common())
    return (
        f"{failed} of {images} images failed ({kinds}), more than --max-error-rate "
        f"{max_error_rate:g} allows"
    )


def start_tally(total: int, max_error_rate: float) -> ActorHandle:
    actor: Any = ray.remote(Tally)
    return actor.options(num_cpus=0).remote(total, max_error_rate)


def check_budget(verdict: ray.ObjectRef) -> None:
    """Raises BudgetExceededError if the tally gave a reason to stop."""
    reason = ray.get(verdict)
    if reason is not None:
        raise BudgetExceededError(reason)
