"""The Ray Data graph of a segmentation job: work units -> bytes -> segments -> shards.

    units of one generation          a few numbers each; the driver holds no image
      -> fetch_units                 tasks: manifest slice, async GETs, an error per failed image
      -> Segmenter                   actor pool, each with the model: decode, batches, RLE
      -> ShardSink                   tasks: one PUT per shard

A block is a unit is a shard: `override_num_blocks` makes one block of each unit, and without a
target block size Ray Data neither splits nor joins blocks. Ray retries lost tasks and actors. An
exception that leaves a stage ends the job: a bug, the spent error budget, a unit that killed too
many workers, or something that the user can mend. `rewrite_shards` is a second, smaller graph: it
copies shards without the rows that a generation drops, and needs no model.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, DataContext

from pipeline.cluster.placement import FETCH_CPUS, WRITE_CPUS, Placement, stage_memory
from pipeline.cluster.progress_actor import begin
from pipeline.cluster.ray_internals import let_no_stage_run_ahead, map_blocks
from pipeline.config import RunConfig
from pipeline.planning.manifest import read_leaving
from pipeline.run.run import Run
from pipeline.run.shard_format import Provenance, put_shard
from pipeline.segmentation.batches import Decoding
from pipeline.segmentation.fetch import fetch_units
from pipeline.segmentation.model_spec import ModelSpec
from pipeline.segmentation.segmenter import Segmenter
from pipeline.segmentation.sink import ShardSink
from pipeline.sharding import Generation, Rewrite, WorkUnit, unit_key

UNKNOWN_IMAGE_BYTES = 200_000.0  # assumed for an image without a size in the listing
RETRIES = "RAY_TASK_MAX_RETRIES"
NO_PROGRESS_SECONDS = 6 * 3600.0  # spot nodes may be hours away; a hang must still end


def configure_ray_data(verbose: bool) -> None:
    """Set the options of Ray Data whose defaults do not fit one block per shard."""
    context = DataContext.get_current()
    context.target_max_block_size = None
    context.max_errored_blocks = 0  # an errored block is a bug, never a silently missing shard
    context.max_consecutive_actor_init_deaths = 3
    context.execution_no_progress_timeout_s = NO_PROGRESS_SECONDS
    # The pool grows while its actors are full. Ray's default, 175 % of an actor's concurrent calls,
    # is never reached: an actor gets no more tasks than it runs at a time.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    # By default half of all CPUs and memory is reserved for the other stages, which need little;
    # then the actor pool would not grow onto a free GPU.
    context.op_resource_reservation_ratio = 0.2
    # Rows that wait for their write are lost with the driver.
    context.downstream_capacity_backpressure_ratio = 1.0
    let_no_stage_run_ahead()
    context.enable_progress_bars = verbose  # they show blocks; the reporter shows images
    context.enable_auto_log_stats = verbose


@contextmanager
def tasks_retried_for_ever() -> Iterator[None]:
    """Ray retries the tasks of this job however often they lose their worker.

    Ray's default limit is 3 retries: a fetch or a write would end a long job with the fourth spot
    node that it loses. `progress_actor.begin` ends a job whose unit kills its workers. Ray Data
    retries its actors without a limit by itself. Ray reads the variable once and keeps the value,
    so other tasks of this process must set `max_retries`.
    """
    before = os.environ.get(RETRIES)
    os.environ.setdefault(RETRIES, "-1")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(RETRIES, None)


@dataclasses.dataclass(frozen=True)
class Computation:
    """How units become shards: the model, how images are decoded, and on which resources."""

    spec: ModelSpec
    decoding: Decoding
    placement: Placement
    batch_size: int | None = None  # None: as many images as fit
    source_options: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, config: RunConfig, spec: ModelSpec, placement: Placement) -> Computation:
        decoding = Decoding(config.exif, config.max_pixels, config.decode)
        return cls(spec, decoding, placement, config.batch_size, config.source_options)


@dataclasses.dataclass(frozen=True)
class Stages:
    """The two stages before the sink; a benchmark of the engine replaces them."""

    fetch: Callable[..., pa.Table] = fetch_units
    segmenter: type = Segmenter


def compute_shards(
    run: Run,
    generation: Generation,
    units: Sequence[WorkUnit],
    *,
    computation: Computation,
    provenance: Provenance,
    progress_actor: ActorHandle,
    stages: Stages = Stages(),  # frozen
) -> None:
    """Compute the shards of `units` and write them; returns when all are in the store."""
    placement = computation.placement
    known = generation.bytes / max(generation.images, 1) or UNKNOWN_IMAGE_BYTES
    largest = max(unit.images for unit in units)
    total = ray.cluster_resources().get("memory", 0.0)
    memory = stage_memory(known * largest, placement, total)
    dataset = ray.data.from_items(
        [dataclasses.asdict(unit) for unit in units], override_num_blocks=len(units)
    )
    fetched = dataset.map_batches(
        stages.fetch,  # type: ignore[arg-type]  # the stub knows no fn_kwargs
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=FETCH_CPUS,
        memory=memory and memory.fetch,
        fn_kwargs={
            "run": run,
            "source_options": computation.source_options,
            "progress_actor": progress_actor,
        },
    )
    # A block is a unit is a shard; the actor makes the model's batches.
    segmented = map_blocks(
        fetched,
        stages.segmenter,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(
            min_size=placement.min_actors,
            max_size=placement.max_actors,
            # Two units are in work, and their stages overlap (segmenter.py). Units that wait in the
            # actor would gain nothing and be lost with it.
            max_tasks_in_flight_per_actor=2,
            max_concurrent_calls_per_actor=2,
            enable_true_multi_threading=True,
        ),
        num_cpus=placement.actor_cpus,
        num_gpus=placement.actor_gpus,
        memory=memory and memory.actor,
        fn_constructor_args=(computation.spec,),
        fn_constructor_kwargs={
            "decoding": computation.decoding,
            "batch_size": computation.batch_size,
            "threads": placement.threads,
            "code_version": run.info.code_version,
            "progress_actor": progress_actor,
        },
    )
    sink = ShardSink(run.storage, generation, provenance, progress_actor)
    needs: dict[str, float] = {"num_cpus": WRITE_CPUS}
    if memory:
        needs["memory"] = memory.write
    segmented.write_datasink(sink, ray_remote_args=needs)


def rewrite_shards(run: Run, rewrites: Sequence[Rewrite], progress_actor: ActorHandle) -> None:
    """Copy live shards without their removed rows; on CPUs, without the model.

    rewrites: all of one generation.
    """
    [number] = {rewrite.generation for rewrite in rewrites}
    items = [dataclasses.asdict(rewrite) for rewrite in rewrites]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    dataset.map_batches(
        _rewrite,  # type: ignore[arg-type]  # the stub knows no fn_kwargs
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=WRITE_CPUS,
        fn_kwargs={
            "run": run,
            "dropped": run.generation(number).dropped_path,
            "progress_actor": progress_actor,
        },
    ).materialize()


def _rewrite(
    rewrites: pa.Table, *, run: Run, dropped: str, progress_actor: ActorHandle
) -> pa.Table:
    for row in rewrites.to_pylist():
        rewrite = Rewrite(**row)
        key = unit_key(rewrite.origin, rewrite.shard)
        begin(progress_actor, "rewriting", key)
        copy_shard(run, rewrite, dropped)
        progress_actor.rewritten.remote(key)
    return rewrites.select(["path"])


def copy_shard(run: Run, rewrite: Rewrite, dropped: str) -> None:
    """Copy a live shard without its removed rows. dropped: the path of the list of these rows."""
    rows = run.read_shard(rewrite.source)
    leaving = read_leaving(run.storage, dropped, rewrite.origin, rewrite.shard)
    keep = [name not in leaving for name in rows["file_name"].to_pylist()]
    kept = rows.filter(pa.array(keep))
    assert kept.num_rows == rewrite.rows, (rewrite, kept.num_rows)
    metadata = rows.schema.metadata or {}
    values = {key.decode(): value.decode() for key, value in metadata.items()}
    provenance = Provenance(
        fingerprint=values["panoptic.fingerprint"],
        weights_sha256=values["panoptic.weights_sha256"],
        device=values["panoptic.device"],
    )
    put_shard(run.storage, rewrite.path, kept, provenance)
