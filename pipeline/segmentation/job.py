"""A segmentation job from settings to published snapshot: open, plan, compute, finish.

Safe to kill at any line and to run again with the same settings: what is planned is frozen, a
shard is there or it is not, and each step looks at the run folder and does what is still missing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from pipeline.amounts import counted
from pipeline.cluster.capacity import capacity
from pipeline.cluster.device import Device, decide_device, with_a_gpu
from pipeline.cluster.placement import place
from pipeline.cluster.ray_session import connect
from pipeline.config import IMAGE_SUFFIXES, SOURCE_FIELDS, RunConfig
from pipeline.errors import UserError
from pipeline.layout import MANIFEST, SEGMENTS, SNAPSHOTS, STATS
from pipeline.planning.generations import (
    Brakes,
    plan_first,
    plan_refresh,
    plan_retry,
    stage_listing,
)
from pipeline.planning.s3_inventory import undated
from pipeline.planning.scratch_db import Staging
from pipeline.planning.source import Source
from pipeline.progress import Progress, Reporter
from pipeline.run.folder import RunInfo
from pipeline.run.publish import finish, shard_sizes
from pipeline.run.run import Run, create_run, find_run
from pipeline.run.stats import record_stats
from pipeline.run.writing import Writer, locate, writing
from pipeline.schema import SCHEMA_VERSION, TRANSIENT_CODES
from pipeline.secrets import kept, withheld
from pipeline.segmentation.closing import few_segments, what_is_left
from pipeline.segmentation.execute import execute
from pipeline.segmentation.model_spec import (
    ModelDescription,
    ModelSpec,
    run_fingerprint,
    with_recommended,
    with_size_quantum,
    with_threshold,
)
from pipeline.segmentation.pending import owed
from pipeline.sharding import missing
from pipeline.storage.storage import Storage, normalize
from pipeline.version import code_version

# Where a killed job may have left temporary files, on a local disk.
WRITTEN_FOLDERS: Final = (SEGMENTS, MANIFEST, SNAPSHOTS, STATS)

__all__ = ["Reporter", "Summary", "retry", "segment"]


@dataclass(frozen=True)
class Summary:
    """What a call left behind; counts are images of the newest generation's snapshot or plan."""

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
    """Segment every image of the source into the run folder; continue what is there.

    Raises UserError for whatever the caller can mend, ErrorBudgetError when too many images fail,
    LeaseError when another job writes the folder. Nothing already written is ever lost.
    """
    reporter = reporter or Reporter()
    started = time.monotonic()
    place = locate(Storage(config.out, config.out_options))
    run = find_run(place.run)
    device = recorded_device(run, config) or decide_device(config, reporter.note)
    recorded = run.info.config if run is not None else None
    config = with_size_quantum(config, recorded, device.kind, reporter.note)
    config = with_threshold(config, recorded)
    description = ModelSpec.of(config, device=device.kind, dtype=device.dtype).describe()
    config = with_recommended(config, description, reporter.note)
    spec = ModelSpec.of(config, device=device.kind, dtype=device.dtype).expecting(description)
    if run is not None and run.generations():
        check_same(run, config, description)
        with writing(place) as writer:
            run = run.held(writer.hold)
            if config.refresh:
                _refresh(run, config, reporter)
            elif config.limit != run.info.limit and max(run.generations()) == 1:
                reporter.note(
                    f"the images of this run were frozen with --limit {run.info.limit}: add "
                    "--refresh to list the source again"
                )
            return _finish_here(writer, run, config, spec, device, reporter, started)
    with Staging() as staging, ExitStack() as held:
        # Listed before the lease is taken: an empty source writes nothing at all.
        images, size = stage_listing(
            staging, Source.of(config), config.limit, reporter.listed, reporter.note
        )
        writer = held.enter_context(writing(place))
        run = writer.run()
        if run is not None and run.generations():  # another job was quicker, and has ended
            check_same(run, config, description)
        else:
            info = describe_run(config, description, device)
            run = create_run(place.run, info, writer.hold)
            say_withheld(run, reporter)
            generation = plan_first(run, staging, images, size, config.images_per_shard)
            shards = counted(generation.shards, "shard")
            reporter.note(f"{counted(images, 'image')} in {shards}")
        staging.close()
        return _finish_here(writer, run, config, spec, device, reporter, started)


def retry(config: RunConfig, codes: Sequence[str], reporter: Reporter | None = None) -> Summary:
    """Compute the failed images of a finished run again, as its next generation."""
    reporter = reporter or Reporter()
    started = time.monotonic()
    place = locate(Storage(config.out, config.out_options))
    run = find_run(place.run)
    assert run is not None  # the settings were read from it
    device = recorded_device(run, config) or decide_device(config, reporter.note)
    config = with_size_quantum(config, run.info.config, device.kind, reporter.note)
    config = with_threshold(config, run.info.config)
    spec = ModelSpec.of(config, device=device.kind, dtype=device.dtype)
    description = spec.describe()
    check_same(run, config, description)
    spec = spec.expecting(description)
    with writing(place) as writer:
        run = run.held(writer.hold)
        newest = max(run.generations(), default=0)
        if not newest:
            raise UserError(
                f"{run.storage.url} has nothing planned yet: run what made it again, and then retry"
            )
        if newest in run.snapshot_numbers():  # else a generation is under way: finish that one
            chosen = codes or sorted(TRANSIENT_CODES)
            generation = plan_retry(run, chosen, config.images_per_shard, config.source_options)
            images = generation.images if generation else 0
            reporter.note(f"{counted(images, 'failed image')} to compute again")
        return _finish_here(writer, run, config, spec, device, reporter, started)


def _finish_here(
    writer: Writer,
    run: Run,
    config: RunConfig,
    spec: ModelSpec,
    device: Device,
    reporter: Reporter,
    started: float,
) -> Summary:
    """Compute and finish, and publish where a job may (run/writing.py)."""
    done = work(run, config, spec, device, reporter, started, publish=writer.may_publish)
    if writer.nights is not None and done.snapshot is not None and not done.published:
        reporter.note(
            f"{writer.nights.storage.url} is a folder of nights: snapshot {done.snapshot} of "
            f"{run.storage.url} is made, and the next `panoptic nightly` with its settings judges "
            "and publishes it"
        )
    return done


def recorded_device(run: Run | None, config: RunConfig) -> Device | None:
    """The device that the run was made on, unless the caller names one."""
    if run is None or config.device != "auto" or run.info.device != "cpu":
        return None
    dtype = config.dtype if config.dtype != "auto" else str(run.info.config["dtype"])
    return Device("cpu", run.info.device, dtype)


def check_same(run: Run, config: RunConfig, description: ModelDescription) -> None:
    """Raises UserError, naming the field, if the run was made from other things, or with storage
    options that are not given now."""
    for setting, names in run.info.withheld.items():
        missing_names = [name for name in names if name not in getattr(config, setting)]
        if missing_names:
            flag = "--" + setting.replace("_", "-").removesuffix("s")
            raise UserError(
                f"{config.out} was made with {flag} {missing_names[0]}=..., which is written "
                "nowhere: give it again"
            )
    for name, value in source_fields(config).items():
        # A run that is older than a setting was made with its default.
        then = run.info.source.get(name, RunConfig.model_fields[name].default)
        if undated(then) != undated(value):
            raise UserError(
                f"{config.out} was made with {name} {then!r}, not {value!r}: "
                "a run keeps its source; use another --out"
            )
    digest, fields = run_fingerprint(description, config)
    if digest == run.info.fingerprint:
        return
    then = run.info.fingerprint_fields
    names = [name for name in {**then, **fields} if then.get(name) != fields.get(name)]
    raise UserError(
        f"{config.out} was made with {names[0]} {_short(then.get(names[0]))}, not "
        f"{_short(fields.get(names[0]))}: results of two settings don't mix; use another --out"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:28] + "..." + text[-28:]


def source_fields(config: RunConfig) -> dict[str, Any]:
    """What says which images: frozen with the run."""
    values = config.model_dump(mode="json", include=set(SOURCE_FIELDS))
    return {**values, "source": normalize(config.source)}


def describe_run(
    config: RunConfig,
    description: ModelDescription,
    device: Device,
    suffixes: Sequence[str] | None = None,
) -> RunInfo:
    """`run.json` of a new run. Holds storage options (profile, endpoint), never a credential.

    suffixes: of the photos, where a run before this one says them.
    """
    digest, fields = run_fingerprint(description, config)
    settings = config.model_dump(mode="json", exclude={"refresh", "shards", "address"})
    if not config.keep_signed_urls:  # so that older versions read it
        del settings["keep_signed_urls"]
    if config.images_per_shard is None:
        del settings["images_per_shard"]
    options = {name: getattr(config, name) for name in ("source_options", "out_options")}
    return RunInfo(
        schema_version=SCHEMA_VERSION,
        source={**source_fields(config), "suffixes": list(suffixes or IMAGE_SUFFIXES)},
        limit=config.limit,
        weights=config.weights,
        weights_sha256=description.weights_sha256,
        fingerprint=digest,
        fingerprint_fields=fields,
        category_list=description.categories.to_json(),
        device=device.kind if device.kind == "cpu" else device.name,
        code_version=code_version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config={
            **settings,
            "dtype": device.dtype,
            "threshold": description.threshold,
            **{name: kept(given) for name, given in options.items()},
        },
        withheld={name: withheld(given) for name, given in options.items() if withheld(given)},
    )


def say_withheld(run: Run, reporter: Reporter) -> None:
    """Tell which options of a new run were not written down."""
    for setting, names in run.info.withheld.items():
        reporter.note(
            f"{setting}: {', '.join(names)} stays in the memory of this job and is written "
            "nowhere: give it again with each command on this run"
        )


def _refresh(run: Run, config: RunConfig, reporter: Reporter) -> None:
    newest = max(run.generations())
    if newest not in run.snapshot_numbers():
        reporter.note(f"generation {newest} is not finished: finishing it before listing again")
        return
    generation = plan_refresh(
        run,
        Source.of(config, run.info.source),
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
    """Compute what is owed and finish the newest generation, if this call may.

    The caller holds the lease. publish: False makes the snapshot without moving any reader to it.
    """
    generation = run.generation(max(run.generations()))
    sizes = shard_sizes(run)
    todo = owed(run, generation, sizes, config.shards)
    progress = Progress(total=0)
    if todo.images or todo.rewrites:
        run.mark_success(False)
        for folder in WRITTEN_FOLDERS:  # this process alone writes there now
            run.storage.sweep(folder)
        connect(config.address)
        found = capacity(config.address)
        kind = device.kind if todo.images else "cpu"  # rows are copied without the model
        if kind == "cuda" and found.ceiling("GPU") >= 1:
            found = with_a_gpu(found, config, reporter.note)  # its node says how many cores it has
        units = sum(len(units) for units in todo.units.values())
        placement = place(
            found, device=kind, actors=config.actors(), units=units, images=todo.images
        )
        facts = {"device": device.name, "dtype": device.dtype, "placement": vars(placement)}

        def done(seen: Progress) -> None:
            nonlocal progress
            progress = seen
            record_stats(run, generation.number, seen, facts)

        try:
            execute(
                run,
                todo.units,
                todo.rewrites,
                config=config,
                spec=spec,
                placement=placement,
                reporter=reporter,
                done=done,
            )
        except KeyboardInterrupt:
            reporter.note(what_is_left(generation, todo, progress))
            raise
        if config.threshold is not None and (hint := few_segments(progress, config.threshold)):
            reporter.note(hint)
        sizes = shard_sizes(run)
    else:
        reporter.note("nothing to compute: every shard is there")
    left = missing(generation, sizes)
    snapshot = None
    if not left:
        snapshot = finish(run, generation, sizes, config.max_error_rate, publish=publish)
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
