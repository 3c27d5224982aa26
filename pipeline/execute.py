"""Run the graph on what is owed, with progress told while it runs and errors made sentences."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Final, cast

import ray
from ray.actor import ActorHandle

from detr.config import ModelError
from pipeline.config import RunConfig
from pipeline.engine_model import ModelSpec
from pipeline.errors import ErrorBudgetError, UserError
from pipeline.graph import compute_shards, configure_ray_data, rewrite_shards
from pipeline.placement import Placement
from pipeline.plan import Rewrite, WorkUnit
from pipeline.run import Run
from pipeline.shards import Provenance
from pipeline.tally import Progress, start_tally

POLL_SECONDS: Final = 1.0


class Reporter:
    """Who wants to know how a job goes; this one says nothing. Called from any thread."""

    verbose = False

    def note(self, text: str) -> None:
        """One thing that happened, in a line."""

    def listed(self, images: int) -> None:
        """So many images were listed so far."""

    def progress(self, progress: Progress) -> None:
        """So much is done, about once a second."""


def execute(
    run: Run,
    units: Mapping[int, Sequence[WorkUnit]],
    rewrites: Sequence[Rewrite],
    config: RunConfig,
    spec: ModelSpec,
    placement: Placement,
    reporter: Reporter,
) -> Progress:
    """Compute the units of each generation, then the rewrites. Returns what was done.

    Raises ErrorBudgetError when too many images fail, and the UserError or ModelError that stopped
    a stage, such as weights that a worker can't reach.
    """
    configure_ray_data(reporter.verbose)
    total = sum(unit.images for owed in units.values() for unit in owed)
    tally = start_tally(total, config.max_error_rate)
    provenance = Provenance(run.info.fingerprint, run.info.weights_sha256, run.info.device)
    reporter.note(
        f"{total:,} images on {placement.min_actors} to {placement.max_actors} "
        f"{placement.device} model actors of {placement.threads} threads"
    )
    with _Watch(tally, reporter):
        for number, owed in units.items():
            generation = run.generation(number)
            try:
                compute_shards(
                    run,
                    generation,
                    owed,
                    config=config,
                    spec=spec,
                    placement=placement,
                    provenance=provenance,
                    tally=tally,
                )
            except Exception as error:
                _raise_sentence(error, tally)
                raise
    # A later generation may copy what an earlier one wrote.
    for number in sorted({rewrite.generation for rewrite in rewrites}):
        rewrite_shards(run, [rewrite for rewrite in rewrites if rewrite.generation == number])
    progress = _progress(tally)
    ray.kill(tally)
    return progress


def _raise_sentence(error: BaseException, tally: ActorHandle) -> None:
    """Raise the reason behind Ray's wrapping, if it is one for the user."""
    reason = ray.get(tally.verdict.remote())
    if reason is not None:
        raise ErrorBudgetError(
            f"{reason}; stopped early, shards already written stay: mend the cause and run the "
            "same command again"
        ) from None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (UserError, ModelError)):
            raise UserError(str(cause)) from None
        cause = getattr(cause, "cause", None) or cause.__cause__


class _Watch:
    """Tells the reporter about the tally once a second, from a thread of its own."""

    def __init__(self, tally: ActorHandle, reporter: Reporter) -> None:
        self._tally = tally
        self._reporter = reporter
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

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
        self._reporter.progress(_progress(self._tally))


def _progress(tally: ActorHandle) -> Progress:
    return cast(Progress, ray.get(tally.progress.remote()))
