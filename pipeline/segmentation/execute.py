"""Run the Ray Data graph on the missing shards: progress to the reporter, failures as UserError."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, cast

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
from pipeline.cluster.ray_internals import kill_actor
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
# What Ray raises when its own retries did not replace a lost node, worker or object.
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
    done: Callable[[Progress], None],
) -> None:
    """Compute the units of each generation, then the rewrites.

    `done` gets the last progress, also when the job stops early. Raises ErrorBudgetError when too
    many images fail, UserError for an error in a stage that a user can mend (such as weights that a
    worker can't reach), and TryAgainError when the cluster lost more than Ray replaced.
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
                copies = [rewrite for rewrite in rewrites if rewrite.generation == number]
                rewrite_shards(run, copies, progress_actor)
    except BaseException as error:
        with suppress(Exception):  # the error that stopped the job matters more than one of `done`
            done(watch.last)
        _end_models(progress_actor)
        if isinstance(error, Exception):
            _raise_sentence(error, progress_actor)
        raise
    else:
        done(watch.last)
    finally:
        with suppress(RayError, RuntimeError):  # the actor or the Ray session has ended
            ray.kill(progress_actor)


def _end_models(progress_actor: ActorHandle) -> None:
    """End the model actors of a job that failed.

    Ray Data lets go of its actors, and each lives as long as anything in this process refers to it,
    such as the error's traceback. Its CPU or GPU would be missing to the next job of this process,
    which would wait without end.
    """
    with suppress(RayError, RuntimeError, TimeoutError):
        actors = ray.get(progress_actor.model_actors.remote(), timeout=PROGRESS_ACTOR_SECONDS)
        for actor_id in cast("list[str]", actors):
            kill_actor(actor_id)


def _pool(placement: Placement) -> str:
    """Such as `1 cpu model actor`, `2 to 8 cuda model actors`."""
    minimum, maximum = placement.min_actors, placement.max_actors
    number = counted(maximum, f"{placement.device} model actor")
    return number if minimum == maximum else f"{minimum:,} to {number}"


def _raise_sentence(error: BaseException, progress_actor: ActorHandle) -> None:
    """Raise the UserError inside Ray's wrapping; return if the error is none for the user."""
    reason: str | None = None
    refusal: Exception | None = None
    with suppress(RayError, TimeoutError):
        answers = [progress_actor.verdict.remote(), progress_actor.first_refusal.remote()]
        reason, refusal = cast("Any", ray.get(answers, timeout=PROGRESS_ACTOR_SECONDS))
    if reason is not None:
        raise ErrorBudgetError(
            f"{reason}; stopped early, shards already written stay: mend the cause and run the "
            "same command again"
        ) from None
    for cause in causes(refusal or error):
        if isinstance(cause, UserError) and not isinstance(cause, RayError):  # not Ray's wrapper
            if isinstance(cause, StorageError) and cause.may_pass:
                raise TryAgainError(f"{cause}; run the same command again") from None
            raise cause from None
        if isinstance(cause, ModelError):
            raise UserError(str(cause)) from None
        if isinstance(cause, LOST):
            line = str(cause).strip().split("\n", 1)[0]
            raise TryAgainError(
                f"the cluster lost what it was working on ({type(cause).__name__}: {line}); "
                "shards already written stay: run the same command again"
            ) from error


class Meter:
    """GPU-seconds of a job: the GPUs of the cluster, at most those that the actor pool may take."""

    def __init__(self, most: float, now: float) -> None:
        self.gpu_seconds = 0.0
        self._most = most
        self._read = now

    def read(self, gpus: float, now: float) -> float:
        """Add `gpus` for the seconds since the last reading; returns GPU-seconds in all."""
        self.gpu_seconds += min(gpus, self._most) * (now - self._read)
        self._read = now
        return self.gpu_seconds


class Watch:
    """A thread that gives the reporter the progress actor's state once a second."""

    def __init__(
        self, progress_actor: ActorHandle, reporter: Reporter, placement: Placement
    ) -> None:
        self.last = Progress(0)  # of the last reading
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
            state = ray.get(self._progress_actor.look.remote(), timeout=PROGRESS_ACTOR_SECONDS)
            progress, flow = cast(tuple[Progress, Flow], state)
            gpus = ray.cluster_resources().get("GPU", 0.0)
            gpu_seconds = self._meter.read(gpus, time.monotonic())
            self.last = replace(progress, gpu_seconds=round(gpu_seconds, 3))
            self._reporter.progress(self.last)
            for note in (self._watchdog.trouble(flow), self._stuck(flow)):
                if note:
                    self._reporter.note(note)
        except (RayError, TimeoutError):  # Ray restarts the actor, or the job ends with an error
            return

    def _stuck(self, flow: Flow) -> str | None:
        if not self._watchdog.is_due(flow):
            return None
        dead = sum(not node["Alive"] for node in ray.nodes())
        cluster = ClusterState(ray.cluster_resources(), ray.available_resources(), dead)
        return self._watchdog.speak(flow, cluster)
