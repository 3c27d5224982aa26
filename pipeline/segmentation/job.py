"""A segmentation job from settings to published snapshot: open, plan, compute, finish.

A job can be killed at any line and started again with the same settings: a plan never changes, a
shard is written whole or not at all, and each step reads the run folder and does what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from pipeline.amounts import counted
from pipeline.cluster.archive_tasks import in_tasks
from pipeline.cluster.capacity import capacity
from pipeline.cluster.device import Device, decide_device, with_a_gpu
from pipeline.cluster.placement import place
from pipeline.cluster.ray_session import join_ray
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.layout import MANIFEST, SEGMENTS, SNAPSHOTS, STATS
from pipeline.planning.generations import (
    Brakes,
    plan_first,
    plan_refresh,
    plan_retry,
    stage_listing,
)
from pipeline.planning.scratch_db import Staging
from pipeline.planning.source import Source
from pipeline.progress import Progress, Reporter
from pipeline.run.publish import finish_generation
from pipeline.run.run import Run, create_run, find_run
from pipeline.run.stats import record_stats
from pipeline.run.writing import Place, Writer, locate, writing
from pipeline.schema import TRANSIENT_CODES
from pipeline.segmentation.execute import execute
from pipeline.segmentation.graph import Computation
from pipeline.segmentation.model_spec import (
    ModelDescription,
    ModelSpec,
    with_recommended,
    with_run_threshold,
    with_size_quantum,
)
from pipeline.segmentation.pending import owed, what_is_left
from pipeline.segmentation.run_info import (
    check_same,
    describe_run,
    recorded_device,
    say_withheld,
)
from pipeline.sharding import missing
from pipeline.storage.storage import Storage

# Folders on a local disk in which a killed job may have left temporary files.
WRITTEN_FOLDERS: Final = (SEGMENTS, MANIFEST, SNAPSHOTS, STATS)
HARDLY_ANY: Final = 0.1  # part of the images with a segment, up to which `few_segments` warns


@dataclass(frozen=True)
class Summary:
    """The outcome of a call; counts are images of the newest generation's snapshot or plan."""

    out: str
    images: int
    ok: int
    error: int
    shards: int
    shards_done: int
    computed: int
    seconds: float
    images_per_second: float
    segments: int
    snapshot: int | None
    published: bool  # readers see that snapshot
    device: str


def segment(config: RunConfig, reporter: Reporter | None = None) -> Summary:
    """Segment every image of the source into the run folder, or continue the run in the folder.

    Raises UserError for an error that the caller can mend, ErrorBudgetError when too many images
    fail, LeaseError when another job writes the folder. Shards already written stay.
    """
    job = Job.open(config, reporter or Reporter())
    if job.run is None or not job.run.generations():
        return _begin(job)
    with writing(job.place) as writer:
        run = job.run.held(writer.hold)
        if job.config.refresh:
            _refresh(run, job.config, job.reporter)
        elif job.config.limit != run.info.limit and max(run.generations()) == 1:
            job.reporter.note(
                f"the images of this run were frozen with --limit {run.info.limit}: add --refresh "
                "to list the source again"
            )
        return _finish_here(job, writer, run)


def retry(config: RunConfig, codes: Sequence[str], reporter: Reporter | None = None) -> Summary:
    """Compute the failed images of a finished run again, as its next generation.

    codes: the error codes to retry; empty: TRANSIENT_CODES. Finishes an unfinished generation
    instead. Raises like `segment`, and UserError for a run without a plan.
    """
    job = Job.open(config, reporter or Reporter())
    assert job.run is not None  # the settings were read from it
    with writing(job.place) as writer:
        run = job.run.held(writer.hold)
        newest = max(run.generations(), default=0)
        if not newest:
            raise UserError(
                f"{run.storage.url} has nothing planned yet: run what made it again, and then retry"
            )
        if newest in run.snapshot_numbers():  # else a generation is under way: finish that one
            chosen = codes or sorted(TRANSIENT_CODES)
            generation = plan_retry(run, chosen, config.images_per_shard, config.source_options)
            images = generation.images if generation else 0
            job.reporter.note(f"{counted(images, 'failed image')} to compute again")
        return _finish_here(job, writer, run)


@dataclass(frozen=True)
class Job:
    """A job before its first write: the folder, the model and the device are decided."""

    place: Place
    run: Run | None  # None: a new folder
    config: RunConfig  # size quantum and threshold filled in
    device: Device
    spec: ModelSpec
    description: ModelDescription
    reporter: Reporter
    started: float

    @classmethod
    def open(cls, config: RunConfig, reporter: Reporter) -> Job:
        """Raises UserError if the run in the folder has another source, model or setting."""
        started = time.monotonic()
        place = locate(Storage(config.out, config.out_options))
        run = find_run(place.run)
        device = recorded_device(run, config) or decide_device(config, reporter.note)
        recorded = run.info.config if run is not None else None
        config = with_size_quantum(config, recorded, device.kind, reporter.note)
        config = with_run_threshold(config, recorded)
        description = ModelSpec.of(config, device=device.kind, dtype=device.dtype).describe()
        config = with_recommended(config, description, reporter.note)
        spec = ModelSpec.of(config, device=device.kind, dtype=device.dtype).expecting(description)
        if run is not None and run.generations():
            check_same(run, config, description)
        return cls(place, run, config, device, spec, description, reporter, started)


def _begin(job: Job) -> Summary:
    """Plan the first generation of a new run, and compute it."""
    config, reporter = job.config, job.reporter
    with Staging() as staging, ExitStack() as stack:
        # Listed before the lease is taken: nothing is written for an empty source.
        images, size = stage_listing(
            staging,
            Source.of(config, each=in_tasks(config.address)),
            config.limit,
            reporter.listed,
            reporter.note,
        )
        writer = stack.enter_context(writing(job.place))
        run = writer.run()
        if run is not None and run.generations():  # another job was quicker, and has ended
            check_same(run, config, job.description)
        else:
            info = describe_run(config, job.description, job.device)
            run = create_run(job.place.run, info, writer.hold)
            say_withheld(run, reporter)
            generation = plan_first(run, staging, images, size, config.images_per_shard)
            shards = counted(generation.shards, "shard")
            reporter.note(f"{counted(images, 'image')} in {shards}")
        staging.close()
        return _finish_here(job, writer, run)


def _finish_here(job: Job, writer: Writer, run: Run) -> Summary:
    """Compute, make the snapshot, and publish it unless nightly does that (run/writing.py)."""
    done = work(
        run, job.config, job.spec, job.device, job.reporter, job.started, publish=writer.may_publish
    )
    if writer.nights is not None and done.snapshot is not None and not done.published:
        job.reporter.note(
            f"{writer.nights.storage.url} is a folder of nights: snapshot {done.snapshot} of "
            f"{run.storage.url} is made, and the next `panoptic nightly` with its settings judges "
            "and publishes it"
        )
    return done


def _refresh(run: Run, config: RunConfig, reporter: Reporter) -> None:
    newest = max(run.generations())
    if newest not in run.snapshot_numbers():
        reporter.note(f"generation {newest} is not finished: finishing it before listing again")
        return
    generation = plan_refresh(
        run,
        Source.of(config, run.info.source, in_tasks(config.address)),
        config.limit,
        images_per_shard=config.images_per_shard,
        brakes=Brakes(config.max_removed_rate),
        progress=reporter.listed,
        note=reporter.note,
    )
    if generation is None:
        reporter.note("the source has not changed")
    else:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in generation.counts.items() if count)
        reporter.note(f"generation {generation.number}: {kinds}")


def work(
    run: Run,
    config: RunConfig,
    spec: ModelSpec,
    device: Device,
    reporter: Reporter,
    started: float,
    *,
    publish: bool = True,
) -> Summary:
    """Compute the missing shards; if none is missing then, make the newest generation's snapshot.

    The caller holds the lease. started: `time.monotonic()`. publish: False makes the snapshot, and
    readers stay with the former one. Raises like `segment`.
    """
    generation = run.generation(max(run.generations()))
    sizes = run.present()
    todo = owed(run, generation, sizes, config.shards)
    progress = Progress(total=0)
    if todo.images or todo.rewrites:
        run.mark_success(False)
        for folder in WRITTEN_FOLDERS:  # this process alone writes there now
            run.storage.sweep(folder)
        join_ray(config.address)
        resources = capacity(config.address)
        kind = device.kind if todo.images else "cpu"  # rows are copied without the model
        if kind == "cuda" and resources.ceiling("GPU") >= 1:
            resources = with_a_gpu(resources, config, reporter.note)
        units = sum(len(units) for units in todo.units.values())
        placement = place(
            resources, device=kind, actors=config.actors(), units=units, images=todo.images
        )
        facts = {"device": device.name, "dtype": device.dtype, "placement": vars(placement)}

        def done(last: Progress) -> None:
            nonlocal progress
            progress = last
            record_stats(run, generation.number, last, facts)

        try:
            execute(
                run,
                todo.units,
                todo.rewrites,
                computation=Computation.of(config, spec, placement),
                max_error_rate=config.max_error_rate,
                reporter=reporter,
                done=done,
            )
        except KeyboardInterrupt:
            reporter.note(what_is_left(generation, todo, progress))
            raise
        if config.threshold is not None and (hint := few_segments(progress, config.threshold)):
            reporter.note(hint)
        sizes = run.present()
    else:
        reporter.note("nothing to compute: every shard is there")
    left = missing(generation, sizes)
    snapshot = None
    if not left:
        snapshot = finish_generation(run, generation, sizes, config.max_error_rate, publish=publish)
    return Summary(
        out=run.storage.url,
        images=snapshot.rows if snapshot else generation.images,
        ok=snapshot.ok if snapshot else progress.ok,
        error=snapshot.error if snapshot else progress.error,
        shards=len(snapshot.shards) if snapshot else generation.shards,
        shards_done=len(snapshot.shards) if snapshot else generation.shards - len(left),
        computed=progress.done,
        seconds=round(time.monotonic() - started, 3),
        images_per_second=round(progress.images_per_second, 3),
        segments=progress.segments,
        snapshot=snapshot.number if snapshot else None,
        published=snapshot is not None and run.latest() == snapshot.number,
        device=f"{device.kind} {device.dtype}",
    )


def few_segments(progress: Progress, threshold: float) -> str | None:
    """A hint if at most HARDLY_ANY of the successful images have a segment; else None.

    threshold: the smallest class probability of a segment, as the job used it.
    """
    if not progress.ok or progress.ok - progress.empty > HARDLY_ANY * progress.ok:
        return None
    lower = 0.5 if threshold > 0.5 else threshold / 2
    return (
        f"{progress.empty:,} of {counted(progress.ok, 'image')} have no segment: most likely these "
        f"weights are not as sure of anything as --threshold {threshold:g} asks (try --threshold "
        f"{lower:g} in another --out), or were trained too briefly or on other things"
    )
