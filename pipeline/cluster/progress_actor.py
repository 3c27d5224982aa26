"""A zero-CPU actor that stages report to: live progress, the error budget, what is under way.

Ray Data hands write results over only at the very end, so whatever is to be known while a job runs
goes through here. Reports are keyed by shard: one that is computed twice (its worker died) counts
once. Totals are kept, never recounted, and a shard is forgotten but for its name once it is
written: a report costs the same at the first shard and at the twenty-thousandth.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from detr.config import ModelError
from pipeline.cluster.metrics import Metrics
from pipeline.error_budget import (
    ByCode,
    Failures,
    FirstTries,
    counts,
    merged,
    over_budget,
    shown_over,
)
from pipeline.errors import TryAgainError, UserError
from pipeline.progress import FIRST_IMAGES, Progress

# The same shard begun so often, each time by a worker that then died, is no accident.
MAX_STARTS: Final = 20
# The rate is that of so many seconds, and of at least `FIRST_IMAGES`.
RATE_SECONDS: Final = 60.0


class BudgetExceededError(Exception):
    """Raised inside a stage so that Ray ends the job; the progress actor has the reason."""


@dataclass
class Flight:
    """A shard between its first GET and the store."""

    state: str  # one of STATES
    since: float
    starts: Counter[str] = field(default_factory=Counter)  # by state
    images: int = 0  # as the model actor tells them
    finished: int = 0  # those that the model is done with


# In the order in which a shard passes them; one that only loses rows is rewritten instead.
STATES: Final = ("fetching", "fetched", "segmenting", "segmented", "writing", "rewriting")


@dataclass(frozen=True)
class Flow:
    """The shards under way, for whoever must say what waits for what."""

    states: Mapping[str, int]  # shards by state
    quiet: float  # seconds since any stage reported anything
    longest: tuple[str, str, float] | None  # shard, state, seconds in it
    troubled: tuple[str, str, int] | None  # shard, state, how often it began


class ProgressActor:
    """The counts behind the actor; plain Python, so that tests need no cluster."""

    def __init__(self, total: int, max_error_rate: float, run: str | None = None) -> None:
        self.total = total
        self.max_error_rate = max_error_rate
        self.started = self.heard = time.monotonic()
        self.working_since: float | None = None  # a model actor had its first unit then
        self.models: set[str] = set()  # states that model actors told
        self.rate = Rate()
        self.flights: dict[str, Flight] = {}
        self.fetches: dict[str, FirstTries] = {}  # of shards not yet written
        self.seen_fetched = 0
        self.failed_fetches: dict[str, Failures] = {}  # their sum, kept as it changes
        self.written_shards: set[str] = set()
        self.failures: dict[str, Failures] = {}  # of written shards
        self.seen_written = 0
        self.first_failures: dict[str, Failures] = {}  # of those images
        self.reason: str | None = None  # to stop: stays, whatever else is still reported
        self.refusal: Exception | None = None  # the first
        self.now = Progress(total)
        self.stages: dict[str, float] = defaultdict(float)
        self.metrics = Metrics(run) if run is not None else None
        if self.metrics:
            self.metrics.set("panoptic_images_planned", total)

    # -- what stages report; a shard is named "generation/number"

    def began(self, state: str, shard: str) -> int:
        """A stage takes a shard up; returns how often it has, 1 where no worker died."""
        flight = self._enter(shard, state)
        flight.starts[state] += 1
        if state == "segmenting":
            flight.finished = 0  # also after a worker that died
            self.working_since = self.working_since or self.heard
        return flight.starts[state]

    def model(self, state: str) -> None:
        """A model actor is "loading" its model, or "loaded" it."""
        self.heard = time.monotonic()
        self.models.add(state)

    def advanced(self, shard: str, finished: int, images: int) -> None:
        """The model is done with so many of a shard's images; a late report changes nothing."""
        flight = self.flights.get(shard)
        if flight is None or shard in self.written_shards:
            return
        self.heard = time.monotonic()
        flight.finished, flight.images = finished, images

    def fetched(
        self,
        shard: str,
        images: int,
        failures: ByCode,
        *,
        size: int = 0,
        retries: Mapping[str, int] | None = None,
        seconds: float = 0.0,
        done: bool = True,
    ) -> str | None:
        """A unit's GETs so far, or all of them; returns the reason to stop, if there is one.

        images, failures: of those that no earlier generation has tried, as the budget counts them;
        a GET that is under way is an image that has not failed.
        """
        self.heard = time.monotonic()
        if shard not in self.written_shards:
            self._forget_fetch(shard)
            self.fetches[shard] = FirstTries(images, failures)
            self.seen_fetched += images
            self.failed_fetches = merged(self.failed_fetches, failures)
        if done:
            self._enter(shard, "fetched")
            self.now.bytes_fetched += size
            self.now.retries += sum((retries or {}).values())
            self.stages["fetch"] += seconds
            if self.metrics:
                self.metrics.add("panoptic_bytes_total", size, "fetched")
                self.metrics.add("panoptic_stage_seconds_total", seconds, "fetch")
                for code, count in (retries or {}).items():
                    self.metrics.add("panoptic_fetch_retries_total", count, code)
        return self.verdict()

    def segmented(
        self, shard: str, seconds: Mapping[str, float], batches: Mapping[int, int] | None = None
    ) -> None:
        """Seconds that an actor spent on a unit, by stage, and its batches by size."""
        self._enter(shard, "segmented")
        for stage, value in seconds.items():
            self.stages[stage] += value
        if self.metrics:
            for stage, value in seconds.items():
                self.metrics.add("panoptic_stage_seconds_total", value, stage)
            self.metrics.batches(batches or {})

    def written(
        self,
        shard: str,
        *,
        images: int,
        failures: ByCode,
        segments: int,
        size: int,
        seconds: float = 0.0,
        first_tries: FirstTries | None = None,
        empty: int = 0,
    ) -> str | None:
        """A shard is in the store; returns the reason to stop, if there is one.

        empty: images that are ok and have no segment.
        first_tries: those of its images that no earlier generation has tried, if not all.
        """
        first_tries = first_tries or FirstTries(images, failures)
        self.heard = time.monotonic()
        self.flights.pop(shard, None)
        self.stages["write"] += seconds
        if shard not in self.written_shards:
            self._forget_fetch(shard)
            self.written_shards.add(shard)
            self.working_since = self.working_since or self.started
            self.failures = merged(self.failures, failures)
            self.seen_written += first_tries.images
            self.first_failures = merged(self.first_failures, first_tries.failures)
            self.now.done += images
            self.now.shards += 1
            self.now.segments += segments
            self.now.empty += empty
            self.now.bytes += size
            if self.metrics:
                failed = counts(failures)
                self.metrics.add("panoptic_images_total", images - failed.total(), "ok")
                for code, count in failed.items():
                    self.metrics.add("panoptic_images_total", count, code)
                self.metrics.add("panoptic_segments_total", segments)
                self.metrics.add("panoptic_shards_total", 1)
                self.metrics.add("panoptic_bytes_total", size, "written")
                self.metrics.add("panoptic_stage_seconds_total", seconds, "write")
        return self.verdict()

    def rewritten(self, shard: str) -> None:
        """A live shard was copied without the rows that leave it: no image was computed."""
        self.heard = time.monotonic()
        self.flights.pop(shard, None)

    def refuse(self, error: Exception) -> None:
        """A stage can't go on for a reason that the user can mend."""
        self.refusal = self.refusal or error

    # -- what the driver asks

    def first_refusal(self) -> Exception | None:
        return self.refusal

    def verdict(self) -> str | None:
        """The sentence that ends the job, once it is shown that too large a part fails.

        It is kept: good images that arrive while the job ends must not leave it without a reason.
        Images that failed before are not counted: they were chosen because they fail.
        """
        if self.reason is None:
            seen = self.seen_written + self.seen_fetched
            failures = merged(self.first_failures, self.failed_fetches)
            if shown_over(seen, counts(failures).total(), self.max_error_rate):
                self.reason = over_budget(seen, failures, self.max_error_rate)
        return self.reason

    def progress(self) -> Progress:
        codes = counts(self.failures)
        self.now.ok, self.now.error = self.now.done - codes.total(), codes.total()
        self.now.codes = dict(codes)
        self.now.stage_seconds = dict(self.stages)
        now = time.monotonic()
        self.now.seconds = now - self.working_since if self.working_since is not None else 0.0
        under_way = [
            flight for shard, flight in self.flights.items() if shard not in self.written_shards
        ]
        self.now.in_work = sum(flight.images for flight in under_way)
        self.now.ahead = sum(flight.finished for flight in under_way)
        self.now.rate = self.rate.read(self.now.finished, now)
        self.now.phase = "" if self.now.finished else self._phase()
        self.now.phase_seconds = now - self.started
        return self.now

    def _phase(self) -> str:
        """What the first image waits for."""
        if any(flight.state == "segmenting" for flight in self.flights.values()):
            return "first batch"
        if "loaded" in self.models:
            return "fetching"
        return "model loading" if self.models else "starting"

    def look(self) -> tuple[Progress, Flow]:
        """Progress, and what is under way; once a second, so gauges are set here too."""
        progress, flow = self.progress(), self.flow()
        if self.metrics:
            self.metrics.set("panoptic_images_per_second", progress.images_per_second)
            self.metrics.set("panoptic_quiet_seconds", flow.quiet)
            for state in STATES:
                self.metrics.set("panoptic_shards_in_flight", flow.states.get(state, 0), state)
        return progress, flow

    def flow(self) -> Flow:
        now = time.monotonic()
        longest = min(self.flights.items(), key=lambda item: item[1].since, default=None)
        begun = [
            (shard, state, starts)
            for shard, flight in self.flights.items()
            for state, starts in flight.starts.items()
        ]
        return Flow(
            states=dict(Counter(flight.state for flight in self.flights.values())),
            quiet=now - self.heard,
            longest=longest and (longest[0], longest[1].state, now - longest[1].since),
            troubled=max(begun, key=lambda entry: entry[2], default=None),
        )

    def _enter(self, shard: str, state: str) -> Flight:
        self.heard = time.monotonic()
        flight = self.flights.setdefault(shard, Flight(state, self.heard))
        flight.state, flight.since = state, self.heard
        return flight

    def _forget_fetch(self, shard: str) -> None:
        before = self.fetches.pop(shard, FirstTries(0, {}))
        self.seen_fetched -= before.images
        if before.failures:  # rare: sums of folders can't be undone, so they are made again
            self.failed_fetches = {}
            for other in self.fetches.values():
                self.failed_fetches = merged(self.failed_fetches, other.failures)


class Rate:
    """Images a second of late, from counts that are read about once a second.

    The time before the first image was finished, while the model was loaded, is no part of it.
    """

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()  # when, how many by then

    def read(self, finished: int, now: float) -> float | None:
        """Count these; None as long as fewer than `FIRST_IMAGES` came since the first count."""
        if finished and (not self._counts or finished != self._counts[-1][1]):
            self._counts.append((now, finished))
        while len(self._counts) > 2:
            when, count = self._counts[1]
            if now - when < RATE_SECONDS or finished - count < FIRST_IMAGES:
                break
            self._counts.popleft()
        if not self._counts:
            return None
        since, before = self._counts[0]
        if finished - before < FIRST_IMAGES or now <= since:
            return None
        return (finished - before) / (now - since)


def start_progress_actor(total: int, max_error_rate: float, run: str | None = None) -> ActorHandle:
    """Beside the driver, because a node of its own could be lost while the job lives on."""
    actor: Any = ray.remote(ProgressActor)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return actor.options(
        num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1
    ).remote(total, max_error_rate, run)


def check_budget(verdict: ray.ObjectRef) -> None:
    """Raises BudgetExceededError if the progress actor gave a reason to stop."""
    reason = ray.get(verdict)
    if reason is not None:
        raise BudgetExceededError(reason)


@contextmanager
def refusals_told(progress_actor: ActorHandle | None) -> Iterator[None]:
    """Tell the progress actor of a UserError or ModelError that is raised inside.

    Ray Data wraps what a stage raises, and the wrapping travels to the driver without its cause.
    """
    try:
        yield
    except (UserError, ModelError) as error:
        if progress_actor is not None:
            with suppress(RayError):  # the driver then shows Ray's own words
                ray.get(progress_actor.refuse.remote(error))
        raise


def begin(progress_actor: ActorHandle, state: str, shard: str) -> None:
    """Say that this stage takes a shard up. Raises TryAgainError for one that kills its workers."""
    starts = cast(int, ray.get(progress_actor.began.remote(state, shard)))
    if starts > MAX_STARTS:
        generation, _, number = shard.partition("/")
        raise TryAgainError(
            f"{state} shard {number} of generation {generation} has ended {starts - 1} workers: "
            "most likely they ran out of memory (use a smaller --images-per-shard for the next "
            "run, or larger nodes); shards already written stay"
        )
