"""The progress actor: reports of stages in, progress, error budget and shards in flight out.

Ray Data returns the results of writes only at the end of a job, so stages report to this actor,
which needs no CPU. Reports have the key of their shard: a shard that is computed twice, because its
worker died, counts once. The actor keeps running totals, and of a written shard only the key, so
the cost of a report does not grow with the number of shards.
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
from pipeline.sharding import unit_name

# A stage that begins the same shard more often, because its workers die, ends the job.
MAX_STARTS: Final = 20
# The window of the rate, which has at least `FIRST_IMAGES` images.
RATE_SECONDS: Final = 60.0


class BudgetExceededError(Exception):
    """Raised in a stage to end the job when too many images failed; the message is the reason."""


@dataclass
class Flight:
    """A shard between its first GET and its write."""

    state: str  # one of STATES
    since: float
    starts: Counter[str] = field(default_factory=Counter)  # by state
    images: int = 0  # as reported by the model actor
    finished: int = 0  # images that the model has finished


# In the order of a shard's way; a shard that only loses rows is "rewriting".
STATES: Final = ("fetching", "fetched", "segmenting", "segmented", "writing", "rewriting")


@dataclass(frozen=True)
class Flow:
    """The shards in flight, for the watchdog."""

    states: Mapping[str, int]  # shards by state
    quiet: float  # seconds since the last report of any stage
    longest: tuple[str, str, float] | None  # shard, state, seconds in it
    troubled: tuple[str, str, int] | None  # shard, state, how often the stage began it


class ProgressActor:
    """The class of the actor; plain Python, so that tests need no cluster.

    total: images of the job; run: the tag of the metrics, None for no metrics.
    """

    def __init__(self, total: int, max_error_rate: float, run: str | None = None) -> None:
        self.total = total
        self.max_error_rate = max_error_rate
        self.started = self.heard = time.monotonic()
        self.working_since: float | None = None  # when a model actor had its first unit
        self.actor_ids: set[str] = set()  # of model actors
        self.models: set[str] = set()  # states that model actors reported
        self.rate = Rate()
        self.flights: dict[str, Flight] = {}
        self.fetches: dict[str, FirstTries] = {}  # of shards not yet written
        self.seen_fetched = 0
        self.failed_fetches: dict[str, Failures] = {}  # sum over `fetches`
        self.written_shards: set[str] = set()
        self.failures: dict[str, Failures] = {}  # of written shards
        self.seen_written = 0
        self.first_failures: dict[str, Failures] = {}  # of the images of `seen_written`
        self.reason: str | None = None  # to end the job; never changes again
        self.refusal: Exception | None = None  # the first one reported
        self.now = Progress(total)
        self.stages: dict[str, float] = defaultdict(float)
        self.metrics = Metrics(run) if run is not None else None
        if self.metrics:
            self.metrics.set("panoptic_images_planned", total)

    # -- reports of stages; shard: its `unit_key`, "generation/number"

    def began(self, state: str, shard: str) -> int:
        """A stage begins a shard; returns how often it has begun it: 1 unless a worker died."""
        flight = self._enter(shard, state)
        flight.starts[state] += 1
        if state == "segmenting":
            flight.finished = 0  # after a worker died, too
            self.working_since = self.working_since or self.heard
        return flight.starts[state]

    def model(self, state: str, actor_id: str = "") -> None:
        """A model actor is "loading" its model or has "loaded" it."""
        self.heard = time.monotonic()
        self.models.add(state)
        if actor_id:
            self.actor_ids.add(actor_id)

    def model_actors(self) -> list[str]:
        """The ids of all model actors that the job has had."""
        return sorted(self.actor_ids)

    def advanced(self, shard: str, finished: int, images: int) -> None:
        """The model has finished so many of a shard's images; ignored for a written shard."""
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
        """A fetch task reports on its shard. Returns the reason to end the job (`verdict`) or None.

        images: how many of the shard's images are tried for the first time, those with a GET under
        way included; failures: how many of these have failed so far. Images that an earlier
        generation tried are in neither. Both replace those of the shard's earlier report, and are
        passed over once the shard is written. done: the task has ended; only then size (bytes
        fetched), retries (repeated GETs by error code) and seconds (of the task) are added to the
        job's sums. A task that runs again adds them again.
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
        """A model actor has finished a shard. seconds: by stage; batches: their number by size."""
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
        """A shard is written; returns the reason to end the job (`verdict`).

        size: bytes written; first_tries: the images that no earlier generation has tried, None for
        all; empty: ok images without a segment.
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
        """A live shard was copied without its dropped rows."""
        self.heard = time.monotonic()
        self.flights.pop(shard, None)

    def refuse(self, error: Exception) -> None:
        """Keep the first error that the user can mend, for `first_refusal`."""
        self.refusal = self.refusal or error

    # -- calls of the driver

    def first_refusal(self) -> Exception | None:
        return self.refusal

    def verdict(self) -> str | None:
        """The reason to end the job: too large a part of the images fails; None as long as not.

        The reason stays, also if later images are good. Images that an earlier generation has tried
        do not count: a retry consists of failed images.
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
        flights = [
            flight for shard, flight in self.flights.items() if shard not in self.written_shards
        ]
        self.now.in_work = sum(flight.images for flight in flights)
        self.now.ahead = sum(flight.finished for flight in flights)
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
        """Progress and the shards in flight; sets the gauges, too. Called once a second."""
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
        if before.failures:  # rare; common folders can't be subtracted
            self.failed_fetches = {}
            for fetch in self.fetches.values():
                self.failed_fetches = merged(self.failed_fetches, fetch.failures)


class Rate:
    """Images per second over the last `RATE_SECONDS`, from counts about once a second.

    The time before the first finished image does not count.
    """

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()  # time, images finished by then

    def read(self, finished: int, now: float) -> float | None:
        """Images per second; None until `FIRST_IMAGES` were finished after the first count.

        finished: images so far; now: seconds of a monotonic clock.
        """
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
    """Start the actor on the driver's node: the job could outlive any other node."""
    actor: Any = ray.remote(ProgressActor)
    driver_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return actor.options(
        num_cpus=0, scheduling_strategy=driver_node, max_restarts=-1, max_task_retries=-1
    ).remote(total, max_error_rate, run)


def check_budget(verdict: ray.ObjectRef) -> None:
    """Raises BudgetExceededError if the progress actor gave a reason to stop."""
    reason = ray.get(verdict)
    if reason is not None:
        raise BudgetExceededError(reason)


@contextmanager
def refusals_told(progress_actor: ActorHandle | None) -> Iterator[None]:
    """Report a UserError or ModelError of the block to the progress actor.

    Ray Data wraps an exception of a stage, and the wrapper reaches the driver without its cause.
    """
    try:
        yield
    except (UserError, ModelError) as error:
        if progress_actor is not None:
            with suppress(RayError):  # the driver then shows Ray's error
                ray.get(progress_actor.refuse.remote(error))
        raise


def begin(progress_actor: ActorHandle, state: str, shard: str) -> None:
    """Report that a stage begins a shard. Raises TryAgainError after `MAX_STARTS` dead workers."""
    starts = cast(int, ray.get(progress_actor.began.remote(state, shard)))
    if starts > MAX_STARTS:
        raise TryAgainError(
            f"{state} shard {unit_name(shard)} has ended {starts - 1} workers: most likely they "
            "ran out of memory (use a smaller --images-per-shard for the next run, or larger "
            "nodes); shards already written stay"
        )
