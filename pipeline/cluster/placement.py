"""Preflight: where the stages of a job run, or in one sentence why they can't.

Ray starts actors before tasks, and actors that hold every CPU starve the fetch for ever without an
error. So sizes are chosen, and checked, before anything is started: one task of every stage must
fit beside the smallest pool. Pure: it is told what the cluster has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from pipeline.errors import UserError

FETCH_CPUS: Final = 0.25
WRITE_CPUS: Final = 0.25
CPU_THREADS_PER_ACTOR: Final = 4  # at most, while other actors may have the rest
IMAGES_PER_CPU_ACTOR: Final = 20  # fewer are done sooner than another actor has loaded the model
WORKER_BYTES: Final = 400_000_000  # Python, Arrow, the storage client, and rows being written
ACTOR_BYTES: Final = {"cpu": 3_200_000_000, "cuda": 6_000_000_000}  # torch, model, decoded batches
ACTORS_MEMORY: Final = 0.7  # of the memory: what Ray Data leaves to them beside the other stages
DECODE_THREADS_PER_GPU: Final = 16
NO_GPU: Final = (
    "--device cuda: the cluster has no GPU and its autoscaler may start none; use --device cpu, or "
    "give Ray the GPUs (`ray start --num-gpus`)"
)


@dataclass(frozen=True)
class Capacity:
    """Amounts by Ray's names: `CPU`, `GPU`, `memory` (bytes)."""

    now: Mapping[str, float]
    most: Mapping[str, float] | None = None  # what the autoscaler may grow it to, where it says so
    grows: bool = False  # an autoscaler starts nodes

    def ceiling(self, kind: str) -> float:
        """The most there may ever be; infinite where an autoscaler doesn't say."""
        if self.grows and self.most is None:
            return math.inf
        return self.known(kind)

    def known(self, kind: str) -> float:
        """What is there or was said to be possible."""
        return max(self.now.get(kind, 0.0), (self.most or {}).get(kind, 0.0))


@dataclass(frozen=True)
class Placement:
    """The actor pool's size and what each actor holds."""

    device: Literal["cpu", "cuda"]
    min_actors: int
    max_actors: int
    actor_cpus: float
    actor_gpus: float
    threads: int


@dataclass(frozen=True)
class Memory:
    """Bytes that a task or an actor of each stage declares, so that Ray starts no more than fit."""

    fetch: int
    actor: int
    write: int


def stage_memory(unit_bytes: float, placement: Placement, total: float) -> Memory | None:
    """What each stage needs for units of so many encoded bytes; None where memory is too tight.

    total: what the cluster has for tasks and actors. A declaration that doesn't fit would wait for
    ever without a word, so where the smallest pool would take more than half of what there is
    nothing is declared, and Ray's memory monitor is the guard.
    """
    fetch = int(WORKER_BYTES + 3 * unit_bytes)  # bodies, their Arrow table, and the block's copy
    actor = int(ACTOR_BYTES[placement.device] + 2 * unit_bytes)
    write = int(WORKER_BYTES + unit_bytes)  # rows are a tenth of the bytes, in a few copies
    if 2 * (placement.min_actors * actor + fetch + write) > total:
        return None
    return Memory(fetch, actor, write)


def place(
    found: Capacity, *, device: str, actors: tuple[int, int] | None, units: int, images: int
) -> Placement:
    """Choose the device and the pool from what the cluster has and may still start.

    Where an autoscaler doesn't say how far it goes, the pool may have an actor for each unit: Ray
    asks for their GPUs as there is work, and the cluster's own limit holds. Raises UserError where
    the stages don't fit together.
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
        each = cpus / max(gpus, 1)  # a GPU's share of the cores
        threads = max(1, min(DECODE_THREADS_PER_GPU, int(each) - 1))
        # Half of the share: Ray Data grows a pool only into what it doesn't keep for other stages.
        actor_cpus = max(0.5, each / 2)
    else:
        slots = _cpu_slots(cpus, found.known("memory"), images)
        # Actors share the cores: more threads than cores would only fight for them.
        pool = max(1, min((actors or (1, slots))[1], units))
        most = max(CPU_THREADS_PER_ACTOR, int(cpus) // slots)
        threads = max(1, min(most, int(cpus) // pool))
        # A core less than its threads: fetching and writing are light, the model is not.
        actor_cpus = float(threads - 1) if threads > 1 else 0.5
    # What is there is taken at once; from then on the pool grows with its load and the cluster.
    there = int(found.now.get("GPU", 0)) if chosen == "cuda" else 1
    low, high = actors or (max(1, min(there, slots)), slots)
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
    """How many model actors a machine without GPUs gets: of one thread each, if it can hold them.

    A model on two threads waits for the slower of them at every layer, so whatever Ray's own
    processes take from one core costs both. Two models of one thread each lose it once.
    """
    fit = cpus if not memory else ACTORS_MEMORY * memory // ACTOR_BYTES["cpu"]
    return max(1, int(min(cpus, fit, images // IMAGES_PER_CPU_ACTOR)))
