"""Size of the actor pool and resources of each stage, checked before a job starts. Pure.

Ray starts actors before tasks, and if actors hold all CPUs, fetch tasks wait for ever without an
error. So one fetch and one write task must fit beside the smallest pool.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from pipeline.errors import UserError

FETCH_CPUS: Final = 0.25
WRITE_CPUS: Final = 0.25
CPU_THREADS_PER_ACTOR: Final = 4  # at most, if other actors use the other cores
IMAGES_PER_CPU_ACTOR: Final = 20  # fewer take less time than loading another model
WORKER_BYTES: Final = 400_000_000  # Python, Arrow, the storage client, and rows being written
ACTOR_BYTES: Final = {"cpu": 3_200_000_000, "cuda": 6_000_000_000}  # torch, model, decoded batches
ACTORS_MEMORY: Final = 0.7  # part of the memory that Ray Data leaves to actors
DECODE_THREADS_PER_GPU: Final = 16
NO_GPU: Final = (
    "--device cuda: the cluster has no GPU and its autoscaler may start none; use --device cpu, or "
    "give Ray the GPUs (`ray start --num-gpus`)"
)


@dataclass(frozen=True)
class Capacity:
    """Resources of a cluster by Ray's names: `CPU`, `GPU`, `memory` (bytes)."""

    now: Mapping[str, float]
    most: Mapping[str, float] | None = None  # what the autoscaler may grow to, if reported
    grows: bool = False  # an autoscaler starts nodes

    def ceiling(self, kind: str) -> float:
        """The most that the cluster may ever have; infinite if an autoscaler reports no limit."""
        if self.grows and self.most is None:
            return math.inf
        return self.known(kind)

    def known(self, kind: str) -> float:
        """What the cluster has, or what its autoscaler reports as possible."""
        return max(self.now.get(kind, 0.0), (self.most or {}).get(kind, 0.0))


@dataclass(frozen=True)
class Placement:
    """The size of the actor pool and the resources of each actor."""

    device: Literal["cpu", "cuda"]
    min_actors: int
    max_actors: int
    actor_cpus: float
    actor_gpus: float
    threads: int


@dataclass(frozen=True)
class Memory:
    """Bytes that each task or actor of a stage declares to Ray, which starts no more than fit."""

    fetch: int
    actor: int
    write: int


def stage_memory(unit_bytes: float, placement: Placement, total: float) -> Memory | None:
    """The memory of each stage; None, so that nothing is declared, if memory is scarce.

    unit_bytes: encoded bytes of a unit; total: bytes of the cluster for tasks and actors. A task
    whose declared memory doesn't fit would wait for ever without an error. So None is returned if
    the smallest pool would take more than half of `total`; Ray's memory monitor then ends workers.
    """
    fetch = int(WORKER_BYTES + 3 * unit_bytes)  # bodies, Arrow table, copy of the block
    actor = int(ACTOR_BYTES[placement.device] + 2 * unit_bytes)
    write = int(WORKER_BYTES + unit_bytes)  # rows are a tenth of the bytes, in a few copies
    if 2 * (placement.min_actors * actor + fetch + write) > total:
        return None
    return Memory(fetch, actor, write)


def place(
    found: Capacity, *, device: str, actors: tuple[int, int] | None, units: int, images: int
) -> Placement:
    """Choose the device and the actor pool for a cluster.

    device: auto, cpu or cuda; actors: smallest and largest pool, None to choose; units: shards to
    compute; images: in all units. If an autoscaler reports no limit, the pool may have an actor for
    each unit: Ray requests GPUs as there is work, up to the cluster's own limit. Raises UserError
    if the stages don't fit together.
    """
    cpus, gpus = found.known("CPU"), found.known("GPU")
    possible = found.ceiling("GPU")
    chosen: Literal["cpu", "cuda"] = (
        "cuda" if device == "cuda" or (device == "auto" and possible >= 1) else "cpu"
    )
    if chosen == "cuda":
        if possible < 1:
            raise UserError(NO_GPU)
        slots = int(min(possible, max(units, 1)))
        cpus_per_gpu = cpus / max(gpus, 1)
        threads = max(1, min(DECODE_THREADS_PER_GPU, int(cpus_per_gpu) - 1))
        # Half, because Ray Data reserves CPUs for other stages when it grows a pool.
        actor_cpus = max(0.5, cpus_per_gpu / 2)
    else:
        slots = _cpu_slots(cpus, found.known("memory"), images)
        # All actors together have no more threads than cores.
        pool = max(1, min((actors or (1, slots))[1], units))
        max_threads = max(CPU_THREADS_PER_ACTOR, int(cpus) // slots)
        threads = max(1, min(max_threads, int(cpus) // pool))
        # One CPU less than threads, for fetch and write tasks, which take little CPU time.
        actor_cpus = float(threads - 1) if threads > 1 else 0.5
    # The pool begins with all present GPUs and grows with its load and the cluster.
    present = int(found.now.get("GPU", 0)) if chosen == "cuda" else 1
    low, high = actors or (max(1, min(present, slots)), slots)
    high = max(low, min(high, max(units, 1)))
    low = min(low, high)
    needed = low * actor_cpus + FETCH_CPUS + WRITE_CPUS
    if needed > found.ceiling("CPU"):
        raise UserError(
            f"{low} model actor(s) of {actor_cpus:g} CPUs with a fetch and a write beside them "
            f"need {needed:g} CPUs, the cluster has {cpus:g}: use a smaller --num-actors or more "
            "CPUs"
        )
    if chosen == "cuda" and low > possible:
        raise UserError(
            f"--num-actors {low} asks for more GPUs than the cluster can have ({possible:g})"
        )
    return Placement(
        device=chosen,
        min_actors=low,
        max_actors=high,
        actor_cpus=actor_cpus,
        actor_gpus=1.0 if chosen == "cuda" else 0.0,
        threads=threads,
    )


def _cpu_slots(cpus: float, memory: float, images: int) -> int:
    """Number of model actors without GPUs: one a core, if memory and images suffice.

    A model on two threads waits at every layer for the slower thread, so the time that Ray's
    processes take from one core delays both. Two models of one thread each lose that time once.
    """
    fit = cpus if not memory else ACTORS_MEMORY * memory // ACTOR_BYTES["cpu"]
    return max(1, int(min(cpus, fit, images // IMAGES_PER_CPU_ACTOR)))
