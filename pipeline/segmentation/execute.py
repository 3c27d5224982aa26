"""Run the graph on what is owed, with progress told while it runs and errors made sentences."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RaySystemError,
    WorkerCrashedError,
)

from detr.config import ModelError
from pipeline.amounts import counted
from pipeline.cluster.placement import Placement
from pipeline.cluster.progress_actor import Flow, start_progress_actor
from pipeline.cluster.watchdog import ClusterState, Watchdog
from pipeline.errors import ErrorBudgetError, TryAgainError, UserError, causes
from pipeline.progress import Progress, Reporter
from pipeline.run.run import Run
from pipeline.run.shard_format import Provenance
from pipeline.segmentation.graph import (
    Computation,
    compute_shards,
    configure_ray_data,
    rewrite_shards,
    tasks_retried_for_ever,
)
from pipeline.sharding import Rewrite, WorkUnit
from pipeline.storage.entry import StorageError

POLL_SECONDS: Final = 1.0
PROGRESS_ACTOR_SECONDS: Final = 10.0
# What Ray raises when it could not make good a loss by itself.
LOST: Final = (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RaySystemError,
    WorkerCrashedError,
)


def execute(
    run: Run,
    units: Mapping[int, Sequence[WorkUnit]],
    rewrites: Sequence[Rewrite],
    *,
    computation: Computation,
    max_error_rate: float,
    reporter: Reporter,
    done: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Compute the units of each generation, then the rewrites. Returns what was done.

    `done` is told the same, also when the job stops early. Raises ErrorBudgetError when too many
    images fail, the UserError or ModelError that stopped a stage (such as weights that a worker
    can't reach), and TryAgainError when the cluster lost more than Ray could make good.
    """
    configure_ray_data(reporter.verbose)
    placement = computation.placement
    total = sum(unit.images for owed in units.values() for unit in owed)
    progress_actor = start_progress_actor(total, max_error_rate, run.storage.url)
    provenance = Provenance(run.info.fingerprint, run.info.weights_sha256, run.info.device)
    reporter.note(
        f"{counted(total, 'image')} on {_pool(placement)} of {counted(placement.threads, 'thread')}"
    )
    watch = Watch(progress_actor, reporter, placement)
    try:
        with watch, tasks_retried_for_ever():
            for number, owed in units.items():
                compute_shards(
                    run,
                    run.generation(number),
                    owed,
                    computation=computation,
                    provenance=provenance,
                    progress_actor=progress_actor,
                )
            # A later generation may copy what an earlier one wrote.
            for number in sorted({rewrite.generation for rewrite in rewrites}):
                owed_copies = [each for each in rewrites if each.generation == number]
                rewrite_shards(run, owed_copies, progress_actor)
    except BaseException as error:
        with suppress(Exception):  # a store that is down: why the job stopped matters more
            done(watch.last)
        if isinstance(error, Exception):
            _raise_sentence(error, progress_actor)
        raise
    else:
        done(watch.last)
    finally:
        _kill(progress_actor)
    return watch.last


def _pool(placement: Placement) -> str:
    """Such as `1 cpu model actor`, `2 to 8 cuda model actors`."""
    least, most = placement.min_actors, placement.max_actors
    number = counted(most, f"{placement.device} model actor")
    return number if least == most else f"{least:,} to {number}"


def _raise_sentence(error: BaseException, progress_actor: ActorHandle) -> None:
    """Raise the reason behind Ray's wrapping, if it is one for the user."""
    reason: str | None = None
    refusal: Exception | None = None
    with suppress(RayError, TimeoutError):
        reason = cast(
            "str | None", ray.get(progress_actor.verdict.remote(), timeout=PROGRESS_ACTOR_SECONDS)
        )
        told = ray.get(progress_actor.first_refusal.remote(), timeout=PROGRESS_ACTOR_SECONDS)
        refusal = cast("Exception | None", told)
    if reason is not None:
        raise ErrorBudgetError(
            f"{reason}; stopped early, shards already written stay: mend the cause and run the "
            "same command again"
        ) from None
    for cause in causes(refusal or error):
        if isinstance(cause, UserError) and not isinstance(cause, RayError):  # Ray's are both
            if isinstance(cause, StorageError) and cause.may_pass:
                raise TryAgainError(f"{cause}; run the same command again") from None
            raise cause from None
        if isinstance(cause, ModelError):
            raise UserError(str(cause)) from None
        if isinstance(cause, LOST):
            first = str(cause).strip().split("\n", 1)[0]
            raise TryAgainError(
                f"the cluster lost what it was working on ({type(cause).__name__}: {first}); "
                "shards already written stay: run the same command again"
            ) from error


def _kill(progress_actor: ActorHandle) -> None:
    try:
        ray.kill(progress_actor)
    except (RayError, RuntimeError):  # it is gone, or Ray is
        return


class Meter:
    """GPU-seconds of a job: the GPUs that are there, but no more than its pool may take."""

    def __init__(self, most: float, now: float) -> None:
        self.gpu_seconds = 0.0
        self._most = most
        self._read = now

    def read(self, gpus: float, now: float) -> float:
        """Count these GPUs since the reading before; returns what there is in all."""
        self.gpu_seconds += min(gpus, self._most) * (now - self._read)
        self._read = now
        return self.gpu_seconds


class Watch:
    """Tells the reporter about the progress actor once a second, from a thread of its own."""

    def __init__(
        self, progress_actor: ActorHandle, reporter: Reporter, placement: Placement
    ) -> None:
        self.last = Progress(0)  # what was seen last
        self._progress_actor = progress_actor
        self._reporter = reporter
        self._watchdog = Watchdog(placement)
        self._meter = Meter(placement.max_actors * placement.actor_gpus, time.monotonic())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._tell()

    def _poll(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._tell()

    def _tell(self) -> None:
        try:
            looked = ray.get(self._progress_actor.look.remote(), timeout=PROGRESS_ACTOR_SECONDS)
            progress, flow = cast(tuple[Progress, Flow], looked)
            held = self._meter.read(ray.cluster_resources().get("GPU", 0.0), time.monotonic())
            self.last = replace(progress, gpu_seconds=round(held, 3))
            self._reporter.progress(self.last)
            for note in (self._watchdog.trouble(flow), self._stuck(flow)):
                if note:
                    self._reporter.note(note)
        except (
            RayError,
            TimeoutError,
        ):  # the progress actor comes back, or the job ends for a reason
            return

    def _stuck(self, flow: Flow) -> str | None:
        if not self._watchdog.is_due(flow):
            return None
        dead = sum(not node["Alive"] for node in ray.nodes())
        cluster = ClusterState(ray.cluster_resources(), ray.available_resources(), dead)
        return self._watchdog.speak(flow, cluster)
