"""Preflight: where the stages of a job run, or in one sentence why they can't.

Ray starts actors before tasks, and actors that hold every CPU starve the fetch for ever without an
error. So sizes are chosen, and checked, before anything is started: one task of every stage must
fit beside the smallest pool. Pure: it is told what the cluster has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from pipeline.errors import UserError

FETCH_CPUS: Final = 0.25
WRITE_CPUS: Final = 0.25
CPU_THREADS_PER_ACTOR: Final = 4
DECODE_THREADS_PER_GPU: Final = 16


@dataclass(frozen=True)
class Placement:
    """The actor pool's size and what each actor holds."""

    device: Literal["cpu", "cuda"]
    min_actors: int
    max_actors: int
    actor_cpus: float
    actor_gpus: float
    threads: int


def place(
    resources: Mapping[str, float],
    *,
    most: Mapping[str, float] | None,
    device: str,
    actors: tuple[int, int] | None,
    units: int,
) -> Placement:
    """Choose the device and the pool from what the cluster has and may still start.

    resources: now (`CPU`, `GPU`); most: what the autoscaler may grow to, None if it can't grow or
    doesn't say. Raises UserError where the stages don't fit together.
    """
    cpus = max(resources.get("CPU", 0.0), (most or {}).get("CPU", 0.0))
    gpus = max(resources.get("GPU", 0.0), (most or {}).get("GPU", 0.0))
    chosen: Literal["cpu", "cuda"] = (
        "cuda" if device == "cuda" or (device == "auto" and gpus >= 1) else "cpu"
    )
    if chosen == "cuda":
        if gpus < 1:
            raise UserError(
                "--device cuda: the cluster has no GPU and its autoscaler may start none; use "
                "--device cpu, or give Ray the GPUs (`ray start --num-gpus`)"
            )
        slots = int(gpus)
        threads = max(1, min(DECODE_THREADS_PER_GPU, int(cpus / gpus) - 1))
        actor_cpus = float(threads) if cpus / gpus >= 2 else 0.5
    else:
        slots = max(1, int(cpus // CPU_THREADS_PER_ACTOR))
        # Actors share the cores: more threads than cores would only fight for them.
        pool = max(1, min((actors or (1, slots))[1], units))
        threads = max(1, min(CPU_THREADS_PER_ACTOR, int(cpus) // pool))
        # A core less than its threads: fetching and writing are light, the model is not.
        actor_cpus = float(threads - 1) if threads > 1 else 0.5
    low, high = actors or (1, slots)
    high = max(low, min(high, max(units, 1)))
    low = min(low, high)
    needed = low * actor_cpus + FETCH_CPUS + WRITE_CPUS
    if needed > cpus:
        raise UserError(
            f"{low} model actor(s) of {actor_cpus:g} CPUs with a fetch and a write beside them "
            f"need {needed:g} CPUs, the cluster has {cpus:g}: use a smaller --num-actors or more "
            "CPUs"
        )
    if chosen == "cuda" and low > gpus:
        raise UserError(
            f"--num-actors {low} asks for more GPUs than the cluster can have ({gpus:g})"
        )
    return Placement(
        device=chosen,
        min_actors=low,
        max_actors=high,
        actor_cpus=actor_cpus,
        actor_gpus=1.0 if chosen == "cuda" else 0.0,
        threads=threads,
    )
